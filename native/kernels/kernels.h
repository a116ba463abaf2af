// The table of one instruction set's kernels. kernels.cpp defines one for each set, and engine.cpp chooses.
#pragma once

#include "../engine/operation.h"

namespace ts {

struct Kernels {
  const char* name;
  // Sizes that packing and scheduling depend on, for each ts_precision.
  struct Shape {
    int64_t vector;    // values of a vector
    int64_t panel;     // output channels of a panel of packed weights
    int64_t rows;      // pixels of a micro-kernel
    int64_t channels;  // of a tensor are padded to a multiple of this
    int64_t depth;     // K is padded to a multiple of this
    int64_t operand_bytes;    // bytes of a pixel's value when it is multiplied
    int64_t even_odd;  // whether of each two vectors' channels the even ones come first, then the odd ones: in depthwise
                       // filters, and in what they make for a product, so also in the rows of its weights
    int64_t paired_tail; // whether two pixels can share a vector of output channels that is half empty, see paired_tail.h
    int64_t shift;     // is subtracted from every uint8 before it is multiplied
  } shapes[kPrecisions];
  int64_t (*tasks)(const ts_operation& op);
  // Executes tasks [begin, end) of an operation. `external` is the tensor that TS_IMPORT reads.
  void (*run)(const ts_operation& op, void* workspace, const float* external, int64_t begin, int64_t end);
  // The measured peak, see peak.h.
  float (*multiply_add[kPrecisions])(int64_t rounds);
  int64_t round[kPrecisions];  // floating-point operations of a round
  float (*read_through)(const float* from, int64_t floats);
};

}  // namespace ts
