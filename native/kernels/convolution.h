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

// A few values: less than the call of a library would cost. The last vector may overlap the one before.
TS_INLINE void copy_run(float* to, const float* from, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  if (i == count) return;
  if (count >= kLanes) {
    store(to + count - kLanes, load(from + count - kLanes));
  } else {
    for (; i < count; i++) to[i] = from[i];
  }
}

// The patches of a tile, one kernel row of all pixels of an output row after the other.
static void gather_tile(const ts_operation& op, const float* image, int64_t first_row, int64_t rows, float* matrix) {
  const int64_t channels = op.in_channels, depth = op.depth, in_stride = op.in_stride, in_width = op.in_width;
  const int64_t width = op.kernel_width, step = op.stride_width, dilation = op.dilation_width, pad = op.pad_width;
  const int64_t out_width = op.out_width, run = width * channels;
  // Columns whose kernels see no padding, from the first to the last.
  const int64_t begin = std::min((pad + step - 1) / step, out_width);
  const int64_t room = in_width - 1 - (width - 1) * dilation + pad;
  const int64_t end = std::max(begin, std::min(out_width, room < 0 ? 0 : room / step + 1));
  for (int64_t row = first_row; row < first_row + rows; row++) {
    float* pixels = matrix + (row - first_row) * out_width * depth;
    for (int64_t kh = 0; kh < op.kernel_height; kh++, pixels += run) {
      const int64_t y = row * op.stride_height - op.pad_height + kh * op.dilation_height;
      if (y < 0 || y >= op.in_height) {
        for (int64_t column = 0; column < out_width; column++) std::fill_n(pixels + column * depth, run, 0.0f);
        continue;
      }
      const float* line = image + y * in_width * in_stride;
      auto tap_by_tap = [&](int64_t column) {
        float* to = pixels + column * depth;
        for (int64_t kw = 0; kw < width; kw++, to += channels) {
          const int64_t x = column * step - pad + kw * dilation;
          if (x < 0 || x >= in_width) {
            std::fill_n(to, channels, 0.0f);
          } else {
            copy_run(to, line + x * in_stride, channels);
          }
        }
      };
      // Neighbouring pixels without gaps are one run.
      const bool runs = dilation == 1 && in_stride == channels;
      for (int64_t column = 0; column < (runs ? begin : out_width); column++) tap_by_tap(column);
      if (!runs) continue;
      const float* from = line + (begin * step - pad) * in_stride;
      for (int64_t column = begin; column < end; column++, from += step * in_stride) {
        copy_run(pixels + column * depth, from, run);
      }
      for (int64_t column = end; column < out_width; column++) tap_by_tap(column);
    }
  }
}

// All images' tiles; where the input is the matrix, all pixels of the batch are one image's.
static int64_t convolution_tiles(const ts_operation& op) {
  const int64_t rows = op.patches == TS_DIRECT ? op.batch * op.out_height * op.out_width : op.out_height;
  const int64_t tiles = (rows + op.tile_rows - 1) / op.tile_rows;
  return (op.patches == TS_DIRECT ? 1 : op.batch) * tiles;
}

// Tasks are (split, image, tile): threads get neighbouring tasks, and so each a part of the channels, with its weights.
static int64_t convolution_tasks(const ts_operation& op) { return convolution_tiles(op) * op.splits; }

static void convolve(const ts_operation& op, float* workspace, int64_t task) {
  const int64_t panels = (op.out_vectors + kVectors - 1) / kVectors;
  const int64_t all_tiles = op.splits > 1 ? convolution_tiles(op) : task + 1;
  const int64_t split = task / all_tiles;
  const int64_t first = panels * split / op.splits, last = panels * (split + 1) / op.splits;
  const int64_t tile = task % all_tiles;
  const float* again = op.weights + first * op.depth * kPanel;
  if (op.patches == TS_DIRECT) {
    const int64_t total = op.batch * op.out_height * op.out_width;
    const int64_t begin = tile * op.tile_rows, pixels = std::min(op.tile_rows, total - begin);
    const float* residual = op.residual < 0 ? nullptr : workspace + op.residual + begin * op.residual_stride;
    multiply_tile(op, workspace + op.input + begin * op.in_stride, op.in_stride, pixels,
                  workspace + op.output + begin * op.out_stride, residual, first, last,
                  begin + pixels < total ? again : op.next_weights);
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
                row + rows < op.out_height ? again : op.next_weights);
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
