// Depthwise convolution of one output row: every channel by itself, so a vector holds kLanes neighbouring channels of one
// pixel (NHWC).
#pragma once

#include <algorithm>

#include "vector.h"

namespace ts::TS_ISA {

// Output pixels that are computed together: their sums, three weights and a pixel fit the registers of every set, and the
// usual widths (112, 56, 28, 14, 7) are multiples of it.
constexpr int kPixels = 7;

struct Filter {
  const float* input;       // of the image, at the first channel
  const float* weights;     // [summed][kernel_height * kernel_width][channels]
  const float* bias;        // [channels]
  int64_t channels;         // padded
  int64_t summed;           // groups of `channels` input channels that are filtered and summed
  const float* residual;    // of the output row, or null
  int64_t residual_stride;
  ts_act activation;
};

// `Pixels` neighbouring pixels that see no padding to their sides, one vector of channels. Width and Step are the
// kernel's width and stride, or 0 for the operation's own.
template <int Pixels, int Width, int Step>
TS_INLINE void filter_block(const ts_operation& op, const Filter& filter, int64_t row, int64_t column, int64_t channel,
                            int64_t first_tap, int64_t last_tap, float* out, int64_t out_stride, Vector low,
                            Vector high) {
  const int64_t width = Width ? Width : op.kernel_width, step = Step ? Step : op.stride_width;
  const int64_t dilation = Width ? 1 : op.dilation_width;
  const int64_t taps = op.kernel_height * width;
  Vector sum[Pixels];
  TS_UNROLL for (int p = 0; p < Pixels; p++) sum[p] = load(filter.bias + channel);
  for (int64_t group = 0; group < filter.summed; group++) {
    const float* weights = filter.weights + group * taps * filter.channels + channel;
    const float* input = filter.input + group * filter.channels + channel;
    for (int64_t kh = first_tap; kh < last_tap; kh++) {
      const int64_t y = row * op.stride_height - op.pad_height + kh * op.dilation_height;
      const float* at = input + (y * op.in_width + column * step - op.pad_width) * op.in_stride;
      const float* tap = weights + kh * width * filter.channels;
      if constexpr (Width > 0) {
        Vector weight[Width];
        TS_UNROLL for (int kw = 0; kw < Width; kw++) weight[kw] = load(tap + kw * filter.channels);
        // Each column is loaded once and serves all pixels that see it.
        TS_UNROLL for (int x = 0; x < (Pixels - 1) * Step + Width; x++) {
          Vector value = load(at + x * op.in_stride);
          TS_UNROLL for (int kw = 0; kw < Width; kw++) {
            if (x >= kw && (x - kw) % Step == 0 && (x - kw) / Step < Pixels) {
              sum[(x - kw) / Step] += value * weight[kw];
            }
          }
        }
      } else {
        for (int64_t kw = 0; kw < width; kw++) {
          Vector weight = load(tap + kw * filter.channels);
          TS_UNROLL for (int p = 0; p < Pixels; p++) {
            sum[p] += load(at + (p * step + kw * dilation) * op.in_stride) * weight;
          }
        }
      }
    }
  }
  TS_UNROLL for (int p = 0; p < Pixels; p++) {
    Vector v = sum[p];
    if (filter.residual) v += load(filter.residual + (column + p) * filter.residual_stride + channel);
    store(out + (column + p) * out_stride + channel, at_most(at_least(v, low), high));
  }
}

// A pixel at the left or right border, where taps fall on padding.
static void filter_border(const ts_operation& op, const Filter& filter, int64_t row, int64_t column, int64_t first_tap,
                          int64_t last_tap, float* out, int64_t out_stride, Vector low, Vector high) {
  const int64_t taps = op.kernel_height * op.kernel_width;
  for (int64_t channel = 0; channel < filter.channels; channel += kLanes) {
    Vector sum = load(filter.bias + channel);
    for (int64_t group = 0; group < filter.summed; group++) {
      const float* weights = filter.weights + group * taps * filter.channels + channel;
      const float* input = filter.input + group * filter.channels + channel;
      for (int64_t kh = first_tap; kh < last_tap; kh++) {
        const int64_t y = row * op.stride_height - op.pad_height + kh * op.dilation_height;
        for (int64_t kw = 0; kw < op.kernel_width; kw++) {
          const int64_t x = column * op.stride_width - op.pad_width + kw * op.dilation_width;
          if (x < 0 || x >= op.in_width) continue;
          sum += load(input + (y * op.in_width + x) * op.in_stride) *
                 load(weights + (kh * op.kernel_width + kw) * filter.channels);
        }
      }
    }
    if (filter.residual) sum += load(filter.residual + column * filter.residual_stride + channel);
    store(out + column * out_stride + channel, at_most(at_least(sum, low), high));
  }
}

template <int Width, int Step>
static void filter_inside(const ts_operation& op, const Filter& filter, int64_t row, int64_t begin, int64_t end,
                          int64_t first_tap, int64_t last_tap, float* out, int64_t out_stride, Vector low,
                          Vector high) {
  // Pixels outermost, channels inside: the rows of a block of pixels stay in L1 for all of their channels.
  int64_t column = begin;
  for (; column + kPixels <= end; column += kPixels) {
    for (int64_t channel = 0; channel < filter.channels; channel += kLanes) {
      filter_block<kPixels, Width, Step>(op, filter, row, column, channel, first_tap, last_tap, out, out_stride, low,
                                         high);
    }
  }
  for (; column < end; column++) {
    for (int64_t channel = 0; channel < filter.channels; channel += kLanes) {
      filter_block<1, Width, Step>(op, filter, row, column, channel, first_tap, last_tap, out, out_stride, low, high);
    }
  }
}

// One output row, all channels: out[column * out_stride + channel].
static void filter_row(const ts_operation& op, const Filter& filter, int64_t row, float* out, int64_t out_stride) {
  const ts_act clamp = clamp_of(filter.activation);
  const Vector low = broadcast(clamp.alpha), high = broadcast(clamp.beta);
  // Kernel rows that fall on the image, and columns whose kernel columns all do.
  const int64_t top = row * op.stride_height - op.pad_height;
  const int64_t dh = op.dilation_height, dw = op.dilation_width, step = op.stride_width;
  const int64_t first_tap = top < 0 ? std::min((-top + dh - 1) / dh, op.kernel_height) : 0;
  const int64_t below = op.in_height - top;  // kernel rows kh with kh * dh < below
  const int64_t last_tap = std::max(first_tap, std::min(op.kernel_height, below <= 0 ? 0 : (below + dh - 1) / dh));
  const int64_t span = (op.kernel_width - 1) * dw;
  const int64_t begin = std::min((op.pad_width + step - 1) / step, op.out_width);
  const int64_t room = op.in_width - 1 - span + op.pad_width;
  const int64_t end = std::max(begin, std::min(op.out_width, room < 0 ? 0 : room / step + 1));
  for (int64_t column = 0; column < begin; column++) {
    filter_border(op, filter, row, column, first_tap, last_tap, out, out_stride, low, high);
  }
  for (int64_t column = end; column < op.out_width; column++) {
    filter_border(op, filter, row, column, first_tap, last_tap, out, out_stride, low, high);
  }
  const int64_t shape = dw == 1 && step <= 2 ? op.kernel_width * 10 + step : 0;
  switch (shape) {
#define TS_SHAPE(width, step) \
  case width * 10 + step:     \
    filter_inside<width, step>(op, filter, row, begin, end, first_tap, last_tap, out, out_stride, low, high); \
    break
    TS_SHAPE(3, 1);
    TS_SHAPE(3, 2);
    TS_SHAPE(5, 1);
    TS_SHAPE(5, 2);
    TS_SHAPE(7, 1);
    TS_SHAPE(7, 2);
#undef TS_SHAPE
    default: filter_inside<0, 0>(op, filter, row, begin, end, first_tap, last_tap, out, out_stride, low, high);
  }
  if (filter.activation.kind != TS_CLAMP) {
    for (int64_t column = 0; column < op.out_width; column++) {
      activate_rest(out + column * out_stride, filter.channels, filter.activation);
    }
  }
}

}  // namespace ts::TS_ISA
