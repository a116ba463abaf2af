// The operations between convolutions: import, pooling, mean, add, scale, activation, copy, and the repair of grouped
// convolutions. Each function computes one task; kernels.cpp calls it.
#pragma once

#include <algorithm>

#include "vector.h"
#include "window.h"

namespace ts::TS_ISA {

// Channels up to which an import loops over planes outside: an image has 1, 3 or 4.
constexpr int64_t kFewChannels = 4;

// Interleaves a row of planes to pixels. The number of channels is a constant, so that the compiler vectorizes with permutes.
template <int Channels, class Element>
static void interleave(Element* __restrict to, const float* __restrict from, int64_t plane, int64_t width) {
  for (int64_t x = 0; x < width; x++) {
    TS_UNROLL for (int c = 0; c < Channels; c++) put(to + x * Channels + c, from[c * plane + x]);
  }
}

// Words of two vectors alternately, from word `First` of each.
template <int First, int... Lane>
TS_INLINE Words interleave_words(Words a, Words b, std::integer_sequence<int, Lane...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, (First + Lane / 2 + Lane % 2 * kLanes)...);
#else
  return __builtin_shuffle(a, b, Words{static_cast<uint32_t>(First + Lane / 2 + Lane % 2 * kLanes)...});
#endif
}

// Interleaves three planes and a zero channel to bfloat16 pixels of two words.
static void interleave_with_zero(Bfloat16* __restrict to, const float* __restrict from, int64_t plane, int64_t width) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
  int64_t x = 0;
  for (; x + kLanes <= width; x += kLanes, to += 4 * kLanes) {
    const Words first = (round_to_bfloat16(load(from + x)) >> 16) | round_to_bfloat16(load(from + plane + x));
    const Words last = round_to_bfloat16(load(from + 2 * plane + x)) >> 16;
    const Words words[] = {interleave_words<0>(first, last, lanes), interleave_words<kLanes / 2>(first, last, lanes)};
    memcpy(to, words, sizeof words);
  }
  for (; x < width; x++, to += 4) {
    for (int c = 0; c < 3; c++) put(to + c, from[c * plane + x]);
    to[3] = {};
  }
}

// A task is an input row: (N, C, H, W) of any strides becomes pixels of `out_stride` channels.
template <class Element>
static void import_row(const ts_operation& op, Element* workspace, const float* external, int64_t task) {
  const int64_t image = task / op.in_height, row = task % op.in_height;
  const int64_t* strides = op.external.strides;
  const float* from = external + (op.external.first_image + image) * strides[0] + row * strides[2];
  Element* to = workspace + op.output + task * op.in_width * op.out_stride;
  // Many channels are looped over inside, so that writes are contiguous; the few of an image outside, so that reads are.
  const int64_t width = op.in_width, channels = op.in_channels, stride = op.out_stride, step = strides[3];
  if (channels == stride && step == 1 && channels <= kFewChannels) {
    constexpr void (*interleave_planes[])(Element*, const float*, int64_t, int64_t) = {
        interleave<1, Element>, interleave<2, Element>, interleave<3, Element>, interleave<4, Element>};
    return interleave_planes[channels - 1](to, from, strides[1], width);
  }
  if constexpr (std::is_same_v<Element, Bfloat16>) {
    if (channels == 3 && stride == 4 && step == 1) return interleave_with_zero(to, from, strides[1], width);
  }
  if (channels <= kFewChannels) {
    for (int64_t c = 0; c < stride; c++) {
      const float* plane = from + c * strides[1];
      for (int64_t x = 0; x < width; x++) put(to + x * stride + c, c < channels ? plane[x * step] : 0.0f);
    }
    return;
  }
  for (int64_t x = 0; x < width; x++, to += stride) {
    int64_t c = 0;
    for (; c < channels; c++) put(to + c, from[c * strides[1] + x * step]);
    for (; c < stride; c++) to[c] = Element{};
  }
}

// A task is an output row.
template <bool Max, class Element>
static void pool_row(const ts_operation& op, Element* workspace, int64_t task) {
  const ts_window& window = op.pool.window;
  const int64_t image = task / op.out_height, row = task % op.out_height;
  const Element* from = workspace + op.input + image * op.in_height * op.in_width * op.in_stride;
  Element* to = workspace + op.output + task * op.out_width * op.out_stride;
  const int64_t top = row * window.stride_height - window.pad_height;
  for (int64_t column = 0; column < op.out_width; column++, to += op.out_stride) {
    const int64_t left = column * window.stride_width - window.pad_width;
    // In ceil mode a window may reach beyond the padding; PyTorch does not count that part, with or without count_padding.
    const int64_t bottom = std::min(top + window.kernel_height, op.in_height + window.pad_height);
    const int64_t right = std::min(left + window.kernel_width, op.in_width + window.pad_width);
    const int64_t dh = Max ? window.dilation_height : 1, dw = Max ? window.dilation_width : 1;
    int64_t seen = 0;
    for (int64_t kh = 0; kh < window.kernel_height; kh++) {
      for (int64_t kw = 0; kw < window.kernel_width; kw++) {
        const int64_t y = top + kh * dh, x = left + kw * dw;
        seen += y >= 0 && y < op.in_height && x >= 0 && x < op.in_width;
      }
    }
    const float share = 1.0f / static_cast<float>(op.pool.count_padding ? (bottom - top) * (right - left) : seen);
    for (int64_t c = 0; c < op.out_padded; c += kLanes) {
      Vector result = broadcast(Max ? -std::numeric_limits<float>::infinity() : 0.0f);
      for (int64_t kh = 0; kh < window.kernel_height; kh++) {
        for (int64_t kw = 0; kw < window.kernel_width; kw++) {
          const int64_t y = top + kh * dh, x = left + kw * dw;
          if (y < 0 || y >= op.in_height || x < 0 || x >= op.in_width) continue;
          const Vector value = load(from + (y * op.in_width + x) * op.in_stride + c);
          if (Max) {
            result = value > result || value != value ? value : result;
          } else {
            result += value;
          }
        }
      }
      store(to + c, activate(Max ? result : result * share, op.activation));
    }
    // The maximum of a window that lies in padding alone (a dilated one over a small image) is -infinity. Clear it in padding
    // channels: the next product multiplies them by zero weights, and 0 × ∞ is NaN.
    if (Max && seen == 0) std::fill(to + op.out_channels, to + op.out_padded, Element{});
  }
}

// A task is an image.
template <class Element>
static void mean_image(const ts_operation& op, Element* workspace, int64_t task) {
  const int64_t pixels = op.in_height * op.in_width;
  const Element* from = workspace + op.input + task * pixels * op.in_stride;
  Element* to = workspace + op.output + task * op.out_stride;
  for (int64_t c = 0; c < op.out_padded; c += kLanes) {
    // Four partial sums: independent additions hide their latency, and rounding errors grow slower.
    Vector sum[4] = {Vector{}, Vector{}, Vector{}, Vector{}};
    for (int64_t p = 0; p < pixels; p++) sum[p % 4] += load(from + p * op.in_stride + c);
    const Vector mean = ((sum[0] + sum[1]) + (sum[2] + sum[3])) * (1.0f / static_cast<float>(pixels));
    store(to + c, activate(mean, op.activation));
  }
}

// A task of the following kinds is an output row. Pixels of concatenated values are further apart than their channels.
template <class Element>
static void add_row(const ts_operation& op, Element* workspace, int64_t task) {
  const int64_t first = task * op.out_width;
  const Element *a = workspace + op.input + first * op.in_stride, *b = workspace + op.second_input + first * op.second_stride;
  Element* to = workspace + op.output + first * op.out_stride;
  if (op.in_stride == op.out_padded && op.second_stride == op.out_padded && op.out_stride == op.out_padded) {
    const int64_t count = op.out_width * op.out_padded;
    for (int64_t i = 0; i < count; i += kLanes) store(to + i, activate(load(a + i) + load(b + i), op.activation));
    return;
  }
  for (int64_t x = 0; x < op.out_width; x++, a += op.in_stride, b += op.second_stride, to += op.out_stride) {
    for (int64_t c = 0; c < op.out_padded; c += kLanes) store(to + c, activate(load(a + c) + load(b + c), op.activation));
  }
}

template <class Element>
static void scale_row(const ts_operation& op, Element* workspace, int64_t task) {
  const int64_t first = task * op.out_width;
  const Element* from = workspace + op.input + first * op.in_stride;
  const Element* factors = workspace + op.second_input + task / op.out_height * op.second_stride;
  Element* to = workspace + op.output + first * op.out_stride;
  for (int64_t x = 0; x < op.out_width; x++, from += op.in_stride, to += op.out_stride) {
    for (int64_t c = 0; c < op.out_padded; c += kLanes) {
      store(to + c, activate(load(from + c) * load(factors + c), op.activation));
    }
  }
}

template <class Element>
static void activate_row(const ts_operation& op, Element* workspace, int64_t task) {
  const int64_t first = task * op.out_width;
  const Element* from = workspace + op.input + first * op.in_stride;
  Element* to = workspace + op.output + first * op.out_stride;
  for (int64_t x = 0; x < op.out_width; x++, from += op.in_stride, to += op.out_stride) {
    for (int64_t c = 0; c < op.out_padded; c += kLanes) store(to + c, activate(load(from + c), op.activation));
  }
}

// Copies every stride-th pixel. The channels before `channel_offset`, and those after the copied ones, become zero.
template <class Element>
static void copy_row(const ts_operation& op, Element* workspace, int64_t task) {
  const int64_t image = task / op.out_height, row = task % op.out_height;
  const Element* from =
      workspace + op.input + (image * op.in_height + row * op.copy.stride_height) * op.in_width * op.in_stride;
  Element* to = workspace + op.output + task * op.out_width * op.out_stride;
  for (int64_t x = 0; x < op.out_width; x++, to += op.out_stride) {
    memset(to, 0, sizeof(Element) * static_cast<size_t>(op.out_padded));
    memcpy(to + op.copy.channel_offset, from + x * op.copy.stride_width * op.in_stride,
           sizeof(Element) * static_cast<size_t>(op.in_channels));
  }
}

// One output of a grouped convolution, computed from its own group's channels alone.
template <class Element>
static float output_of(const ts_operation& op, const Element* image, float sum, int64_t row, int64_t column,
                       int64_t channel) {
  const ts_window& window = op.repair.window;
  const int64_t channels = op.repair.group_in_channels, first = channel / op.repair.group_out_channels * channels;
  const float* weights = op.repair.weights + channel * window.kernel_height * window.kernel_width * channels;
  const auto [begin, end] = rows_inside(window, op.in_height, row);
  for (int64_t kh = begin; kh < end; kh++) {
    const int64_t y = row * window.stride_height - window.pad_height + kh * window.dilation_height;
    for (int64_t kw = 0; kw < window.kernel_width; kw++) {
      const int64_t x = column * window.stride_width - window.pad_width + kw * window.dilation_width;
      if (x < 0 || x >= op.in_width) continue;
      const Element* values = image + (y * op.in_width + x) * op.in_stride + first;
      const float* factors = weights + (kh * window.kernel_width + kw) * channels;
      for (int64_t c = 0; c < channels; c++) sum += value_of(values[c]) * factors[c];
    }
  }
  return sum;
}

// Neighbouring groups are multiplied as one matrix with zero weights between them. 0 × ∞ is NaN, so an infinite input of one
// group spoils the others' outputs. Recompute the outputs that are NaN, one by one: they are rare. A task is an output row.
template <class Element>
static void repair_row(const ts_operation& op, Element* workspace, int64_t task) {
  const int64_t image = task / op.out_height, row = task % op.out_height;
  const Element* from = workspace + op.input + image * op.in_height * op.in_width * op.in_stride;
  Element* to = workspace + op.output + task * op.out_width * op.out_stride;
  Vector sum{};
  for (int64_t x = 0; x < op.out_width; x++) {
    for (int64_t c = 0; c < op.out_padded; c += kLanes) sum += load(to + x * op.out_stride + c) * 0.0f;
  }
  if (!has_nan(sum)) return;
  for (int64_t column = 0; column < op.out_width; column++, to += op.out_stride) {
    const int64_t pixel = task * op.out_width + column;
    const Element* residual = op.second_input < 0 ? nullptr : workspace + op.second_input + pixel * op.second_stride;
    for (int64_t c = 0; c < op.out_channels; c++) {
      const float value = value_of(to[c]);
      if (value == value) continue;
      const float start = op.repair.bias[c] + (residual ? value_of(residual[c]) : 0.0f);
      put(to + c, activated(broadcast(output_of(op, from, start, row, column, c)), op.activation)[0]);
    }
  }
}

}  // namespace ts::TS_ISA
