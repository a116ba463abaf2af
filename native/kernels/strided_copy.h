// A copy between two strided layouts of the same elements: pixel shuffle, channel shuffle, concatenation and splitting at
// places that are no whole vectors, flattening of images, windows of attention.
//
// `sizes` count the elements of each dimension, the innermost last; a run of the innermost dimension is contiguous in both
// layouts where both of its strides are 1. Strides and offsets are in values.
#pragma once

#include "vector.h"

namespace ts::TS_ISA {

template <class Element>
static void copy_dimension(const ts_strided_copy& copy, int dimension, const Element* from, Element* to) {
  const int64_t size = copy.sizes[dimension], in = copy.in_strides[dimension], out = copy.out_strides[dimension];
  if (dimension + 1 < kCopyDimensions) {
    for (int64_t i = 0; i < size; i++) copy_dimension(copy, dimension + 1, from + i * in, to + i * out);
  } else if (in == 1 && out == 1) {
    memcpy(to, from, static_cast<size_t>(size) * sizeof(Element));
  } else {
    for (int64_t i = 0; i < size; i++) to[i * out] = from[i * in];
  }
}

// Tasks are the elements of the two outermost dimensions. The zeros that pad the output's channels are shared out among
// them, pixel by pixel.
template <class Element>
static void copy_strided(const ts_operation& op, Element* workspace, int64_t task) {
  const ts_strided_copy& copy = op.strided_copy;
  const int64_t outer = task / copy.sizes[1], inner = task % copy.sizes[1];
  const Element* from = workspace + op.input + outer * copy.in_strides[0] + inner * copy.in_strides[1];
  Element* to = workspace + op.output + outer * copy.out_strides[0] + inner * copy.out_strides[1];
  copy_dimension(copy, 2, from, to);
  if (copy.keeps_padding) return;
  const int64_t tasks = copy.sizes[0] * copy.sizes[1], pixels = op.batch * op.out_height * op.out_width;
  const int64_t begin = pixels * task / tasks, end = pixels * (task + 1) / tasks;
  clear_channel_padding(op, workspace + op.output + begin * op.out_stride, end - begin);
}

}  // namespace ts::TS_ISA
