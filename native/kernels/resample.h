// Resampling: each output row and column is a blend of two input rows and columns, or one of them, chosen by tables that
// the planner computed. Nearest and bilinear interpolation, padding by reflection, replication or a constant, cropping
// and flipping are all tables.
//
//     output[y, x] = (row_weights[y] · row(y, 0) + row_weights'[y] · row(y, 1)) with row(y, i) blended over x likewise
//
// A table entry is {first index, second index} and {weight of the first, weight of the second}; the index -1 lies
// outside of the image and stands for `fill`.
#pragma once

#include "vector.h"

namespace ts::TS_ISA {

template <class Element>
static void pick_row(const ts_operation& op, const Element* from, Element* to, bool outside) {
  const int64_t bytes = op.out_channels * static_cast<int64_t>(sizeof(Element));
  const Vector fill = broadcast(op.resample.fill);
  for (int64_t x = 0; x < op.out_width; x++, to += op.out_stride) {
    const int64_t column = op.resample.columns[2 * x];
    if (outside || column < 0) {
      for (int64_t c = 0; c < op.out_channels; c += kLanes) store(to + c, fill);
    } else {
      memcpy(to, from + column * op.in_stride, static_cast<size_t>(bytes));
    }
  }
}

template <class Element>
static void blend_row(const ts_operation& op, const Element* upper, const Element* lower, Vector above, Vector below,
                      Element* to) {
  for (int64_t x = 0; x < op.out_width; x++, to += op.out_stride) {
    const int64_t left = op.resample.columns[2 * x] * op.in_stride, right = op.resample.columns[2 * x + 1] * op.in_stride;
    const Vector before = broadcast(op.resample.column_weights[2 * x]);
    const Vector after = broadcast(op.resample.column_weights[2 * x + 1]);
    for (int64_t c = 0; c < op.out_channels; c += kLanes) {
      const Vector top = load(upper + left + c) * before + load(upper + right + c) * after;
      const Vector bottom = load(lower + left + c) * before + load(lower + right + c) * after;
      store(to + c, activate(top * above + bottom * below, op.activation));
    }
  }
}

// A task is an output row.
template <class Element>
static void resample_row(const ts_operation& op, Element* workspace, int64_t task) {
  const int64_t image = task / op.out_height, row = task % op.out_height;
  const Element* from = workspace + op.input + image * op.in_height * op.in_width * op.in_stride;
  Element* to = workspace + op.output + task * op.out_width * op.out_stride;
  const int64_t line = op.in_width * op.in_stride;
  const int64_t first = op.resample.rows[2 * row], second = op.resample.rows[2 * row + 1];
  if (op.resample.blends) {
    blend_row(op, from + first * line, from + second * line, broadcast(op.resample.row_weights[2 * row]),
              broadcast(op.resample.row_weights[2 * row + 1]), to);
  } else {
    pick_row(op, from + (first < 0 ? 0 : first * line), to, first < 0);
  }
  clear_channel_padding(op, to, op.out_width);
}

}  // namespace ts::TS_ISA
