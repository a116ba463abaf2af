// Convolutions as tiles: what some output rows are computed from is put together in a scratch that stays in cache, then
// multiplied with the packed weights. A depthwise separable convolution is the tile whose patches a depthwise stage makes.
#pragma once

#include "depthwise.h"
#include "gemm.h"
#include "scratch.h"
#include "tiles.h"

namespace ts::TS_ISA {

template <class Element>
constexpr int64_t kBytes = static_cast<int64_t>(sizeof(Element));
constexpr int64_t kFloat = kBytes<float>;

// From a pixel of a tile's matrix to the next. A page apart, or a whole part of one, pixels would have their lines in the same
// few sets of L1, each of which holds eight or twelve: a line between them costs less. (Tensors have it as well, see
// `pixel_stride` in schedule.py.)
template <class Element>
static int64_t apart(int64_t depth) {
  constexpr int64_t kCrowded = 1024, kLine = 64;
  return depth + (depth * kBytes<Element> % kCrowded == 0 ? kLine / kBytes<Element> : 0);
}

// Of input lines that are to stay in L1 beside the weights and what is written: half of the usual 32 or 48 KB.
constexpr int64_t kLinesBytes = 24 * 1024;

template <class Element>
static void filter_tile(const ts_operation& op, const Element* image, int64_t first_row, int64_t rows,
                        Factor<Element>* matrix, int64_t stride) {
  const ts_convolution& conv = op.convolution;
  const ts_window& window = conv.window;
  const int64_t taps = window.kernel_height * window.kernel_width, channels = conv.depth / conv.depth_multiplier;
  // So many channels at a time, if they are enough, that the input lines of a row stay in L1 for the next one, which shares
  // most of them. Few channels of each pixel are read slower than many; where a line is read five times, they still pay.
  const int64_t enough = window.kernel_height > 3 ? 32 : 64;
  const int64_t fitting = kLinesBytes / (window.kernel_height * op.in_width * kBytes<Element>) / enough * enough;
  const int64_t some = fitting ? fitting : channels;
  for (int64_t begin = 0; begin < channels; begin += some) {
    const int64_t end = std::min(begin + some, channels);
    for (int64_t row = 0; row < rows; row++) {
      for (int64_t m = 0; m < conv.depth_multiplier; m++) {
        const Filter<Element> filter{image, conv.depthwise_weights + m * taps * channels, conv.depthwise_bias + m * channels, channels, 1,
                                     nullptr, 0, conv.depthwise_activation, &window, begin, end};
        filter_row<Role::kMatrix>(op, filter, first_row + row, matrix + row * op.out_width * stride + m * channels, stride);
      }
    }
  }
}

// The first and the last Bytes of a run that is shorter than two of them; they may overlap.
template <int64_t Bytes>
TS_INLINE void copy_ends(char* to, const char* from, int64_t bytes) {
  memcpy(to, from, Bytes);
  memcpy(to + bytes - Bytes, from + bytes - Bytes, Bytes);
}

// A few values: less than the call of a library would cost.
template <class Element>
TS_INLINE void copy_run(Element* to_values, const Element* from_values, int64_t count) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(Element));
  char* to = reinterpret_cast<char*>(to_values);
  const char* from = reinterpret_cast<const char*>(from_values);
  if (bytes >= 32) {
    for (int64_t i = 0; i + 64 <= bytes; i += 32) memcpy(to + i, from + i, 32);
    return copy_ends<32>(to + (bytes / 32 - 1) * 32, from + (bytes / 32 - 1) * 32, 32 + bytes % 32);
  }
  if (bytes >= 16) return copy_ends<16>(to, from, bytes);
  if (bytes >= 8) return copy_ends<8>(to, from, bytes);
  if (bytes >= 4) return copy_ends<4>(to, from, bytes);
  memcpy(to, from, sizeof(Element));
}

// The patches of a tile, one kernel row of all pixels of an output row after the other; zeros up to the depth that the
// product takes at a time.
template <class Element>
static void gather_tile(const ts_operation& op, const Element* image, int64_t first_row, int64_t rows, Element* matrix,
                        int64_t stride) {
  const ts_window& window = op.convolution.window;
  const int64_t channels = op.in_channels, depth = op.convolution.depth, in_stride = op.in_stride, in_width = op.in_width;
  const int64_t width = window.kernel_width, step = window.stride_width, dilation = window.dilation_width;
  const int64_t pad = window.pad_width;
  const int64_t out_width = op.out_width, run = width * channels;
  // Columns whose kernels see no padding, from the first to the last.
  const int64_t begin = std::min((pad + step - 1) / step, out_width);
  const int64_t room = in_width - 1 - (width - 1) * dilation + pad;
  const int64_t end = std::max(begin, std::min(out_width, room < 0 ? 0 : room / step + 1));
  for (int64_t row = first_row; row < first_row + rows; row++) {
    Element* pixels = matrix + (row - first_row) * out_width * stride;
    if (const int64_t used = window.kernel_height * run; used < depth) {
      for (int64_t column = 0; column < out_width; column++) {
        std::fill_n(pixels + column * stride + used, depth - used, Element{});
      }
    }
    for (int64_t kh = 0; kh < window.kernel_height; kh++, pixels += run) {
      const int64_t y = row * window.stride_height - window.pad_height + kh * window.dilation_height;
      if (y < 0 || y >= op.in_height) {
        for (int64_t column = 0; column < out_width; column++) std::fill_n(pixels + column * stride, run, Element{});
        continue;
      }
      const Element* line = image + y * in_width * in_stride;
      auto tap_by_tap = [&](int64_t column) {
        Element* to = pixels + column * stride;
        for (int64_t kw = 0; kw < width; kw++, to += channels) {
          const int64_t x = column * step - pad + kw * dilation;
          if (x < 0 || x >= in_width) {
            std::fill_n(to, channels, Element{});
          } else {
            copy_run(to, line + x * in_stride, channels);
          }
        }
      };
      // Neighbouring pixels without gaps are one run.
      const bool runs = dilation == 1 && in_stride == channels;
      for (int64_t column = 0; column < (runs ? begin : out_width); column++) tap_by_tap(column);
      if (!runs) continue;
      const Element* from = line + (begin * step - pad) * in_stride;
      for (int64_t column = begin; column < end; column++, from += step * in_stride) {
        copy_run(pixels + column * stride, from, run);
      }
      for (int64_t column = end; column < out_width; column++) tap_by_tap(column);
    }
  }
}

// The input lines that a tile reads, with their padding: one kernel row of a pixel's patch is a run of values in them, and
// neighbouring patches share what they overlap in.
template <class Element>
static void lay_out_lines(const ts_operation& op, const Element* image, int64_t first_row, int64_t lines, int64_t width,
                          Factor<Element>* to) {
  const ts_window& window = op.convolution.window;
  const int64_t channels = op.in_channels, in_stride = op.in_stride;
  const int64_t left = std::min(window.pad_width, width), inside = std::min(op.in_width, width - left);
  for (int64_t line = 0; line < lines; line++, to += width * channels) {
    const int64_t y = first_row * window.stride_height - window.pad_height + line;
    if (y < 0 || y >= op.in_height) continue;  // nothing reads it
    const Element* from = image + y * op.in_width * in_stride;
    Factor<Element>* pixels = to + left * channels;
    std::fill_n(to, left * channels, Factor<Element>{});
    if (in_stride == channels) {
      convert(pixels, from, inside * channels);
    } else {
      for (int64_t x = 0; x < inside; x++) convert(pixels + x * channels, from + x * in_stride, channels);
    }
    std::fill_n(pixels + inside * channels, (width - left - inside) * channels, Factor<Element>{});
  }
}

// All images' tiles; where the input is the matrix, all pixels of the batch are one image's.
static int64_t convolution_tiles(const ts_operation& op) {
  const int64_t rows = op.convolution.source == TS_FROM_POINTWISE ? op.batch * op.out_height * op.out_width : op.out_height;
  const int64_t tiles = (rows + op.convolution.tile_rows - 1) / op.convolution.tile_rows;
  return (op.convolution.source == TS_FROM_POINTWISE ? 1 : op.batch) * tiles;
}

// Tasks are (split, image, tile): threads get neighbouring tasks, and so each a part of the channels, with its weights.
static int64_t convolution_tasks(const ts_operation& op) { return convolution_tiles(op) * op.convolution.channel_splits; }

template <class Element, class Out>
static void convolve_to(const ts_operation& op, Element* workspace, Out* output, int64_t task) {
  const ts_convolution& conv = op.convolution;
  const ts_window& window = conv.window;
  const int64_t panels = (conv.out_vectors + kVectors - 1) / kVectors;
  const int64_t all_tiles = conv.channel_splits > 1 ? convolution_tiles(op) : task + 1;
  const int64_t split = task / all_tiles;
  const int64_t first = panels * split / conv.channel_splits, last = panels * (split + 1) / conv.channel_splits;
  const int64_t tile = task % all_tiles;
  const void* again = static_cast<const Element*>(conv.weights) + first * conv.depth * kPanel;
  if (conv.source == TS_FROM_POINTWISE) {
    const int64_t total = op.batch * op.out_height * op.out_width;
    const int64_t begin = tile * conv.tile_rows, pixels = std::min(conv.tile_rows, total - begin);
    const Element* residual = op.second_input < 0 ? nullptr : workspace + op.second_input + begin * op.second_stride;
    const Element* from = workspace + op.input + begin * op.in_stride;
    Matrix<Factor<Element>> matrix{nullptr, op.in_stride, pixels};
    constexpr int64_t kPage = 4096;  // apart, pixels have their lines in one set of L1
    if (kWidened<Element> || (kRows > 8 && op.in_stride * kBytes<Element> % kPage == 0)) {
      const int64_t stride = apart<Factor<Element>>(conv.depth);
      auto* room = static_cast<Factor<Element>*>(scratch(pixels * stride * kBytes<Factor<Element>>));
      for (int64_t p = 0; p < pixels; p++) convert(room + p * stride, from + p * op.in_stride, conv.depth);
      matrix = {room, stride, pixels};
    } else if constexpr (!kWidened<Element>) {
      matrix.values = from;
    }
    return multiply(op, matrix, output + begin * op.out_stride, residual, first, last,
                    begin + pixels < total ? again : conv.next_weights);
  }
  const int64_t tiles = (op.out_height + conv.tile_rows - 1) / conv.tile_rows;
  const int64_t image = tile / tiles, row = tile % tiles * conv.tile_rows;
  const int64_t rows = std::min(conv.tile_rows, op.out_height - row), pixels = rows * op.out_width;
  const Element* from = workspace + op.input + image * op.in_height * op.in_width * op.in_stride;
  const int64_t begin = (image * op.out_height + row) * op.out_width;
  const Element* residual = op.second_input < 0 ? nullptr : workspace + op.second_input + begin * op.second_stride;
  Matrix<Factor<Element>> matrix{};
  if (conv.source == TS_FROM_ROW_VIEW) {
    const int64_t lines = (rows - 1) * window.stride_height + (window.kernel_height - 1) * window.dilation_height + 1;
    const int64_t width = (op.out_width - 1) * window.stride_width + window.kernel_width, line = width * op.in_channels;
    auto* room = static_cast<Factor<Element>*>(scratch(lines * line * kBytes<Factor<Element>>));
    lay_out_lines(op, from, row, lines, width, room);
    matrix = {room, window.stride_width * op.in_channels, op.out_width, rows, window.stride_height * line,
              window.kernel_height, window.dilation_height * line, row};
  } else {
    const int64_t stride = apart<Factor<Element>>(conv.depth);
    const int64_t values = pixels * stride;
    // Gathered pixels that are to be widened lie behind the room for floats.
    const bool widened = kWidened<Element> && conv.source == TS_FROM_IM2COL;
    char* room = static_cast<char*>(scratch(values * (kBytes<Factor<Element>> + (widened ? kBytes<Element> : 0))));
    auto* factors = reinterpret_cast<Factor<Element>*>(room);
    if (conv.source == TS_FROM_DEPTHWISE) {
      filter_tile(op, from, row, rows, factors, stride);
    } else {
      auto* patches = reinterpret_cast<Element*>(room + (widened ? values * kBytes<Factor<Element>> : 0));
      gather_tile(op, from, row, rows, patches, stride);
      if constexpr (kWidened<Element>) convert(factors, patches, values);
    }
    matrix = {factors, stride, pixels};
  }
  multiply(op, matrix, output + begin * op.out_stride, residual, first, last,
           row + rows < op.out_height ? again : conv.next_weights);
}

template <class Element>
static void convolve(const ts_operation& op, Element* workspace, int64_t task) {
  Element* output = workspace + op.output;
  if constexpr (std::is_same_v<Element, Bfloat16>) {
    if (op.convolution.float_output) return convolve_to(op, workspace, reinterpret_cast<float*>(output), task);
  }
  convolve_to(op, workspace, output, task);
}

// A depthwise convolution by itself: a task is an output row. Where it makes several blocks of channels there is an operation
// for each.
template <class Element>
static void filter(const ts_operation& op, Element* workspace, int64_t task) {
  const int64_t image = task / op.out_height, row = task % op.out_height;
  const int64_t begin = task * op.out_width;
  const Element* residual = op.second_input < 0 ? nullptr : workspace + op.second_input + begin * op.second_stride;
  const Filter<Element> filter{workspace + op.input + image * op.in_height * op.in_width * op.in_stride,
                               op.depthwise.weights, op.depthwise.bias, op.depthwise.channels,
                               op.depthwise.summed_groups,
                               residual, op.second_stride, op.activation,
                               &op.depthwise.window};
  filter_row<Role::kTensor>(op, filter, row, workspace + op.output + begin * op.out_stride, op.out_stride);
}

}  // namespace ts::TS_ISA
