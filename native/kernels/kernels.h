// The door to the kernels of one instruction set.
#pragma once

#include "../engine/operation.h"

namespace ts {

struct Kernels {
  const char* name;
  int64_t lanes;  // floats of a vector: channels are padded to multiples of it
  int64_t panel;  // output channels of a panel of packed weights
  int64_t rows;   // pixels of a micro-kernel
  int64_t (*tasks)(const ts_operation& op);
  // Executes tasks [begin, end) of an operation. `external` is the tensor that TS_IMPORT reads.
  void (*run)(const ts_operation& op, float* workspace, const float* external, int64_t begin, int64_t end);
  // The measure of the machine: see peak.h.
  float (*multiply_add)(int64_t rounds);
  float (*read_through)(const float* from, int64_t floats);
  int64_t chains;
};

}  // namespace ts
