// A network file: its header, its sections and the values in them. docs/native-format.md describes the bytes.
//
// The file may come from anyone. Nothing in it is used before it is checked: offsets and sizes against the file, checksums
// against the bytes, counts against what is left of a section. Numbers are little-endian.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "failure.h"

namespace ts::standalone {

struct Span {
  const uint8_t* data = nullptr;
  uint64_t size = 0;
};

// Fletcher-64: sums of the 32-bit words, and of these sums, modulo 2^32 - 1. The last word is filled with zeros.
uint64_t fletcher64(Span bytes);

// A file that is mapped, or memory of the caller.
class Mapping {
 public:
  static std::unique_ptr<Mapping> open(const char* path);
  static std::unique_ptr<Mapping> of(const void* data, size_t size);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  Span bytes() const { return bytes_; }

 private:
  Mapping(Span bytes, bool owned) : bytes_(bytes), owned_(owned) {}
  Span bytes_;
  bool owned_;
};

// The sections of a file whose header and checksums are right.
class Sections {
 public:
  explicit Sections(Span file);
  // Fails where the file has no such section.
  Span at(const char* name) const;

 private:
  struct Section {
    char name[8];
    Span bytes;
  };
  std::vector<Section> sections_;
};

// Reads 64-bit values of a section one after the other.
class Cursor {
 public:
  Cursor(Span section, const char* name) : section_(section), name_(name) {}

  uint64_t left() const { return (section_.size - at_) / 8; }

  uint64_t value() {
    if (left() < 1) fail(SEPARABLE_ERROR_FORMAT, "the section \"%s\" ends within a value: the file is damaged", name_);
    uint64_t result;
    memcpy(&result, section_.data + at_, sizeof result);
    at_ += sizeof result;
    return result;
  }

  // A number of things that take at least `words` values each in this section.
  uint64_t count(uint64_t words) {
    const uint64_t result = value();
    if (result > left() / words) {
      fail(SEPARABLE_ERROR_FORMAT, "the section \"%s\" announces more than it has: the file is damaged", name_);
    }
    return result;
  }

  // A number in [low, high].
  int64_t number(const char* what, int64_t low, int64_t high) {
    const int64_t result = static_cast<int64_t>(value());
    if (result < low || result > high) {
      fail(SEPARABLE_ERROR_FORMAT, "%s is %lld, outside of %lld to %lld: the file is damaged", what,
           static_cast<long long>(result), static_cast<long long>(low), static_cast<long long>(high));
    }
    return result;
  }

  // The next `words` values, by themselves.
  Cursor part(uint64_t words) {
    if (words > left()) {
      fail(SEPARABLE_ERROR_FORMAT, "the section \"%s\" announces more than it has: the file is damaged", name_);
    }
    const Cursor result(Span{section_.data + at_, words * 8}, name_);
    at_ += words * 8;
    return result;
  }

 private:
  Span section_;
  const char* name_;
  uint64_t at_ = 0;
};

// The texts of a file, which other sections name by number.
class Texts {
 public:
  explicit Texts(Span section);
  const char* at(uint64_t index) const {
    if (index >= texts_.size()) fail(SEPARABLE_ERROR_FORMAT, "a text that the file names is not in it: the file is damaged");
    return texts_[index];
  }

 private:
  const std::vector<char> copy_;  // as the file may change while it is mapped
  std::vector<const char*> texts_;
};

}  // namespace ts::standalone
