// Products of two activations, as in attention (Vaswani et al., arXiv 1706.03762):
//
//     output[b][m][n] = scale · sum over k of first[b][m][k] · second[b][k][n]
//
// A matrix is one row of a tensor's pixels: b counts the rows of all images, m and k (or n, where `transposed`) are pixels,
// and the columns are channels. A task is kMatrixRows rows of an output matrix. A register block is kRows rows times
// kVectors vectors, as in gemm.h; nothing is packed except a second operand that is stored transposed.
#pragma once

#include <algorithm>

#include "micro_kernel.h"
#include "scratch.h"
#include "vector.h"

namespace ts::TS_ISA {

// A task copies a transposed operand with K · N moves, for kMatrixRows · K · N / kLanes multiply-adds: one move for eight of
// them with 8 lanes. More rows would leave threads idle: a map of 14x14 pixels is 4 tasks a head.
constexpr int64_t kMatrixRows = 64;

static int64_t matrix_product_tasks(const ts_operation& op) {
  return op.batch * op.out_height * ((op.out_width + kMatrixRows - 1) / kMatrixRows);
}

template <int Rows, int Vectors, class Element, class Second>
TS_INLINE void multiply_matrix_block(const ts_operation& op, const Element* first, const Second* second, int64_t stride,
                                     Element* to) {
  Vector sums[Rows][Vectors] = {};
  for (int64_t k = 0; k < op.in_channels; k++, second += stride) {
    Vector columns[Vectors];
    for (int v = 0; v < Vectors; v++) columns[v] = load(second + v * kLanes);
    for (int m = 0; m < Rows; m++) {
      const Vector value = broadcast(value_of(first[m * op.in_stride + k]));
      for (int v = 0; v < Vectors; v++) sums[m][v] += value * columns[v];
    }
  }
  for (int m = 0; m < Rows; m++) {
    for (int v = 0; v < Vectors; v++) store(to + m * op.out_stride + v * kLanes, sums[m][v] * op.matrix_product.scale);
  }
}

template <int Vectors, class Element, class Second>
static void multiply_matrix_columns(const ts_operation& op, const Element* first, const Second* second, int64_t stride,
                                    Element* to, int64_t rows) {
  int64_t m = 0;
  for (; m + kRows <= rows; m += kRows) {
    multiply_matrix_block<kRows, Vectors>(op, first + m * op.in_stride, second, stride, to + m * op.out_stride);
  }
  for (; m < rows; m++) {
    multiply_matrix_block<1, Vectors>(op, first + m * op.in_stride, second, stride, to + m * op.out_stride);
  }
}

template <class Element, class Second>
static void multiply_matrix(const ts_operation& op, const Element* first, const Second* second, int64_t stride,
                            Element* to, int64_t rows) {
  const int64_t vectors = (op.out_channels + kLanes - 1) / kLanes;
  int64_t v = 0;
  for (; v + kVectors <= vectors; v += kVectors) {
    multiply_matrix_columns<kVectors>(op, first, second + v * kLanes, stride, to + v * kLanes, rows);
  }
  for (; v < vectors; v++) {
    multiply_matrix_columns<1>(op, first, second + v * kLanes, stride, to + v * kLanes, rows);
  }
}

template <class Element>
static void matrix_product(const ts_operation& op, Element* workspace, int64_t task) {
  const int64_t parts = (op.out_width + kMatrixRows - 1) / kMatrixRows;
  const int64_t matrix = task / parts, begin = task % parts * kMatrixRows;
  const int64_t rows = std::min(kMatrixRows, op.out_width - begin);
  const int64_t depth = op.in_channels, columns = op.out_channels;
  const Element* first = workspace + op.input + (matrix * op.in_width + begin) * op.in_stride;
  Element* to = workspace + op.output + (matrix * op.out_width + begin) * op.out_stride;
  if (op.matrix_product.transposed) {
    const Element* second = workspace + op.second_input + matrix * columns * op.second_stride;
    const int64_t stride = (columns + kLanes - 1) / kLanes * kLanes;
    float* packed = static_cast<float*>(scratch(depth * stride * static_cast<int64_t>(sizeof(float))));
    for (int64_t k = 0; k < depth; k++) std::fill(packed + k * stride + columns, packed + (k + 1) * stride, 0.0f);
    for (int64_t n = 0; n < columns; n++) {
      for (int64_t k = 0; k < depth; k++) packed[k * stride + n] = value_of(second[n * op.second_stride + k]);
    }
    multiply_matrix(op, first, packed, stride, to, rows);
  } else {
    const Element* second = workspace + op.second_input + matrix * depth * op.second_stride;
    multiply_matrix(op, first, second, op.second_stride, to, rows);
  }
  // 0 · infinity is NaN, so the padding channels are zeroed.
  clear_channel_padding(op, to, rows);
}

}  // namespace ts::TS_ISA
