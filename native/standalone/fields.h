// The names by which a file knows the kinds of operations and their fields. Files name both in words, so that a kind or a field
// that is added to operation.h, or moved in it, does not change the meaning of files that exist.
//
// A kind or a field that is renamed here breaks existing files: give the new one a new name, and keep the old one.
#pragma once

#include <cstdint>
#include <string_view>

#include "../engine/operation.h"

namespace ts::standalone {

enum class FieldType { kInt32, kInt64, kFloat, kDouble, kAddress, kSet };

struct Field {
  const char* name;
  uint32_t offset;  // in ts_operation
  FieldType type;
};

struct Kind {
  const char* name;    // in files: that of TS_CONVOLUTION, or of its int8 form
  ts_kind kind;
  bool int8;
  const char* params;  // the member of ts_operation's union that it may fill in, or ""
};

// Null where this library does not know the name.
const Kind* find_kind(std::string_view name);
// Of the fields that all operations have, and of those of the kind's own member.
const Field* find_field(const Kind& kind, std::string_view name);

}  // namespace ts::standalone
