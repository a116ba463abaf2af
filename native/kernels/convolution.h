// Convolutions as tiles: the patches of some output rows are put together in a scratch that stays in cache, then
// multiplied with the packed weights. A depthwise separable convolution is the tile whose patches a depthwise stage makes.
#pragma once

#include "depthwise.h"
#include "gemm.h"
#include "scratch.h"

namespace ts::TS_ISA {

static void filter_tile(const ts_operation& op, const float* image, int64_t first_row, int64_t rows, float* matrix) {
  const int64_t taps = op.kernel_height * op.kernel_width;
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t m = 0; m < op.multiplier; m++) {
      const Filter filter{image, op.filters + m * taps * op.in_stride, op.filter_bias + m * op.in_stride,
                          op.in_stride, 1, nullptr, 0, op.between};
      filter_row(op, filter, first_row + row, matrix + row * op.out_width * op.depth + m * op.in_stride, op.depth);
    }
  }
}

static void gather_tile(const ts_operation& op, const float* image, int64_t first_row, int64_t rows, float* matrix) {
  const int64_t channels = op.in_channels;
  float* to = matrix;
  for (int64_t row = first_row; row < first_row + rows; row++) {
    for (int64_t column = 0; column < op.out_width; column++) {
      const int64_t left = column * op.stride_width - op.pad_width;
      const bool inside = left >= 0 && left + (op.kernel_width - 1) * op.dilation_width < op.in_width;
      for (int64_t kh = 0; kh < op.kernel_height; kh++) {
        const int64_t y = row * op.stride_height - op.pad_height + kh * op.dilation_height;
        const size_t bytes = sizeof(float) * static_cast<size_t>(channels);
        if (y < 0 || y >= op.in_height) {
          memset(to, 0, bytes * static_cast<size_t>(op.kernel_width));
          to += op.kernel_width * channels;
          continue;
        }
        const float* from = image + (y * op.in_width + left) * op.in_stride;
        if (inside && op.dilation_width == 1 && op.in_stride == channels) {
          memcpy(to, from, bytes * static_cast<size_t>(op.kernel_width));  // neighbouring pixels are one run
          to += op.kernel_width * channels;
          continue;
        }
        for (int64_t kw = 0; kw < op.kernel_width; kw++, to += channels) {
          const int64_t x = left + kw * op.dilation_width;
          if (x < 0 || x >= op.in_width) {
            memset(to, 0, bytes);
          } else {
            memcpy(to, from + kw * op.dilation_width * op.in_stride, bytes);
          }
        }
      }
    }
  }
}

// Tasks are (image, tile, split); where the input is the matrix, all pixels of the batch are one image's.
static int64_t convolution_tasks(const ts_operation& op) {
  const int64_t rows = op.patches == TS_DIRECT ? op.batch * op.out_height * op.out_width : op.out_height;
  const int64_t tiles = (rows + op.tile_rows - 1) / op.tile_rows;
  return (op.patches == TS_DIRECT ? 1 : op.batch) * tiles * op.splits;
}

static void convolve(const ts_operation& op, float* workspace, int64_t task) {
  const int64_t panels = (op.out_vectors + kVectors - 1) / kVectors;
  const int64_t split = task % op.splits;
  const int64_t first = panels * split / op.splits, last = panels * (split + 1) / op.splits;
  const int64_t tile = task / op.splits;
  if (op.patches == TS_DIRECT) {
    const int64_t total = op.batch * op.out_height * op.out_width;
    const int64_t begin = tile * op.tile_rows, pixels = std::min(op.tile_rows, total - begin);
    const float* residual = op.residual < 0 ? nullptr : workspace + op.residual + begin * op.residual_stride;
    multiply_tile(op, workspace + op.input + begin * op.in_stride, op.in_stride, pixels,
                  workspace + op.output + begin * op.out_stride, residual, first, last,
                  begin + pixels < total ? op.weights : op.next_weights);
    return;
  }
  const int64_t tiles = (op.out_height + op.tile_rows - 1) / op.tile_rows;
  const int64_t image = tile / tiles, row = tile % tiles * op.tile_rows;
  const int64_t rows = std::min(op.tile_rows, op.out_height - row), pixels = rows * op.out_width;
  const float* from = workspace + op.input + image * op.in_height * op.in_width * op.in_stride;
  float* matrix = scratch(pixels * op.depth);
  if (op.patches == TS_FILTERED) {
    filter_tile(op, from, row, rows, matrix);
  } else {
    gather_tile(op, from, row, rows, matrix);
  }
  const int64_t begin = (image * op.out_height + row) * op.out_width;
  const float* residual = op.residual < 0 ? nullptr : workspace + op.residual + begin * op.residual_stride;
  multiply_tile(op, matrix, op.depth, pixels, workspace + op.output + begin * op.out_stride, residual, first, last,
                row + rows < op.out_height ? op.weights : op.next_weights);
}

// A depthwise convolution by itself: a task is an output row.
static void filter(const ts_operation& op, float* workspace, int64_t task) {
  const int64_t image = task / op.out_height, row = task % op.out_height;
  const int64_t begin = task * op.out_width;
  const float* residual = op.residual < 0 ? nullptr : workspace + op.residual + begin * op.residual_stride;
  const Filter filter{workspace + op.input + image * op.in_height * op.in_width * op.in_stride,
                      op.filters, op.filter_bias, op.out_stride, op.multiplier, residual, op.residual_stride,
                      op.activation};
  filter_row(op, filter, row, workspace + op.output + begin * op.out_stride, op.out_stride);
}

}  // namespace ts::TS_ISA
