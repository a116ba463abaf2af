// Depthwise convolution of one output row. Each channel is convolved by itself, so a vector holds kLanes neighbouring channels of
// one pixel (NHWC), and no lane ever meets another:
//
//     for each block of 7 pixels                accumulators of the block stay in registers
//         for each one or two vectors of channels
//             for each kernel row on the image
//                 load the row's weights
//                 for each input column that the block sees     loaded once, used by every pixel whose window covers it
//
// Called by convolution.h, for a separable convolution's tile and for a depthwise convolution alone.
#pragma once

#include <algorithm>

#include "vector.h"
#include "window.h"

namespace ts::TS_ISA {

// Output pixels of a block: 7 accumulators, 3 weights and a value fit 16 registers, and the usual widths (112, 56, 28, 14, 7)
// are multiples of 7. Narrower images use blocks of 4, 2 or 1.
constexpr int kPixels = 7;

template <class Element>
struct Filter {
  const Element* input;     // of the image, at the first channel
  const float* weights;     // [summed][kernel_height * kernel_width][channels]
  const float* bias;        // [channels]
  int64_t channels;         // padded
  int64_t summed;           // groups of `channels` input channels that are filtered and summed
  const Element* residual;  // of the output row, or null
  int64_t residual_stride;
  ts_act activation;
  const ts_window* window;
  int64_t begin = 0, end = channels;  // of the channels, those that are computed
};

// What an output row is written to.
enum class Role {
  kMatrix,  // a tile's matrix, which is multiplied next: Operand values, one filter a channel, no residual
  kTensor,  // an output in the workspace
};

// What the pixels of an output row share. It is passed by value: a vector store may alias whatever a pointer reaches, so the
// compiler would read fields behind a reference again after each store. kRole removes the loop over groups where there is one
// group, as its variables would push others out of the registers.
template <class Value, Role Of>
struct Row {
  using Element = Value;
  using Out = std::conditional_t<Of == Role::kMatrix, Operand<Element>, Element>;
  static constexpr Role kRole = Of;
  const Element* input;  // first kernel row on the image, where the first column's kernel begins (perhaps on padding)
  const float* weights;  // of that kernel row
  const float* bias;
  const Element* residual;
  int64_t residual_stride;
  Out* out;
  int64_t out_stride;
  int64_t kernel_rows;   // on the image
  int64_t channels, summed;
  int64_t begin, end;    // of the channels, those that are computed
  int64_t in_stride, in_row;  // values to the next pixel, and to where the next kernel row begins
  int64_t width, step, dilation, pad, taps;
  Vector low, high;
  bool clamped;
  ts_act activation;
};

// Computes `Pixels` neighbouring pixels of `Vectors` vectors of channels. Width and Step are the kernel's width and stride as
// constants, or 0 to use the operation's. Input columns [left, right), counted from the first that the block sees, lie on the
// image; if Inside, all do.
template <int Pixels, int Width, int Step, bool Inside, int Vectors, class Row>
TS_INLINE void filter_block(const Row row, int64_t column, int64_t channel, int64_t left, int64_t right) {
  using Element = typename Row::Element;
  const int64_t width = Width ? Width : row.width, step = Step ? Step : row.step;
  const Element* from = row.input + column * step * row.in_stride + channel;
  const float* weights = row.weights + channel;
  Vector sum[Pixels][Vectors];
  TS_UNROLL for (int p = 0; p < Pixels; p++) {
    TS_UNROLL for (int v = 0; v < Vectors; v++) sum[p][v] = load(row.bias + channel + v * kLanes);
  }
  const int64_t summed = Row::kRole == Role::kMatrix ? 1 : row.summed;
  for (int64_t group = 0; group < summed; group++) {
    const Element* at = from;
    const float* tap = weights;
    for (int64_t kh = 0; kh < row.kernel_rows; kh++) {
      if constexpr (Width > 0) {
        Vector weight[Width][Vectors];
        TS_UNROLL for (int kw = 0; kw < Width; kw++) {
          TS_UNROLL for (int v = 0; v < Vectors; v++) weight[kw][v] = load(tap + kw * row.channels + v * kLanes);
        }
        // Each column is loaded once and serves all pixels that see it.
        TS_UNROLL for (int x = 0; x < (Pixels - 1) * Step + Width; x++) {
          if (!Inside && (x < left || x >= right)) continue;
          Vector value[Vectors];
          load_channels(at + x * row.in_stride, value);
          TS_UNROLL for (int kw = 0; kw < Width; kw++) {
            if (x >= kw && (x - kw) % Step == 0 && (x - kw) / Step < Pixels) {
              TS_UNROLL for (int v = 0; v < Vectors; v++) sum[(x - kw) / Step][v] += value[v] * weight[kw][v];
            }
          }
        }
      } else {
        for (int64_t kw = 0; kw < width; kw++) {
          Vector weight[Vectors];
          TS_UNROLL for (int v = 0; v < Vectors; v++) weight[v] = load(tap + kw * row.channels + v * kLanes);
          TS_UNROLL for (int p = 0; p < Pixels; p++) {
            const int64_t x = p * step + kw * row.dilation;
            if (!Inside && (x < left || x >= right)) continue;
            Vector value[Vectors];
            load_channels(at + x * row.in_stride, value);
            TS_UNROLL for (int v = 0; v < Vectors; v++) sum[p][v] += value[v] * weight[v];
          }
        }
      }
      at += row.in_row;
      tap += width * row.channels;
    }
    from += row.channels;
    weights += row.taps * row.channels;
  }
  if (Row::kRole != Role::kMatrix && row.residual) {
    const Element* residual = row.residual + column * row.residual_stride + channel;
    TS_UNROLL for (int p = 0; p < Pixels; p++) {
      Vector value[Vectors];
      load_channels(residual + p * row.residual_stride, value);
      TS_UNROLL for (int v = 0; v < Vectors; v++) sum[p][v] += value[v];
    }
  }
  typename Row::Out* out = row.out + column * row.out_stride + channel;
  auto keep = [&](int p, const Vector(&values)[Vectors]) {
    if constexpr (Row::kRole == Role::kMatrix) {
      store_operands<Element>(out + p * row.out_stride, values);
    } else {
      store_channels(out + p * row.out_stride, values);
    }
  };
  if (!kActivatesLater<Element> && row.activation.kind != TS_CLAMP) {
    // Copy the accumulators: dynamic indexing would force the compiler to keep them in memory.
    Vector sums[Pixels][Vectors];
    TS_UNROLL for (int p = 0; p < Pixels; p++) {
      TS_UNROLL for (int v = 0; v < Vectors; v++) sums[p][v] = sum[p][v];
    }
    for (int p = 0; p < Pixels; p++) {
      for (int v = 0; v < Vectors; v++) sums[p][v] = activated(sums[p][v], row.activation);
      keep(p, sums[p]);
    }
    return;
  }
  if (row.clamped) {
    TS_UNROLL for (int p = 0; p < Pixels; p++) {
      TS_UNROLL for (int v = 0; v < Vectors; v++) sum[p][v] = at_most(at_least(sum[p][v], row.low), row.high);
    }
  }
  TS_UNROLL for (int p = 0; p < Pixels; p++) keep(p, sum[p]);
}

// Computes a block's channels, two vectors at a time where they are in even/odd order, and the rest one vector at a time.
template <int Pixels, int Width, int Step, bool Inside, class Row>
TS_INLINE void filter_channels(const Row& row, int64_t column, int64_t left, int64_t right) {
  int64_t channel = row.begin;
  if constexpr (kEvenOdd<typename Row::Element>) {
    for (; channel + 2 * kLanes <= row.end; channel += 2 * kLanes) {
      filter_block<Pixels, Width, Step, Inside, 2>(row, column, channel, left, right);
    }
  }
  for (; channel < row.end; channel += kLanes) {
    filter_block<Pixels, Width, Step, Inside, 1>(row, column, channel, left, right);
  }
}

// Computes a row in blocks of equal size. The last block begins early enough to end with the row: recomputing a few pixels costs
// less than computing pixels one by one, at the latency of their multiply-adds.
template <int Pixels, int Width, int Step, class Row>
static void filter_blocks(const ts_operation& op, const Row& shared) {
  const Row row = shared;
  const int64_t in_width = op.in_width, out_width = op.out_width, pad = row.pad;
  const int64_t seen = (Pixels - 1) * row.step + (row.width - 1) * row.dilation + 1;
  // Blocks outermost, channels inside: the input of a block is contiguous over its channels and stays in L1.
  for (int64_t next = 0; next < out_width; next += Pixels) {
    const int64_t column = std::min(next, out_width - Pixels);
    const int64_t left = pad - column * row.step, right = left + in_width;
    if (left <= 0 && right >= seen) {
      filter_channels<Pixels, Width, Step, true>(row, column, left, right);
    } else {
      filter_channels<Pixels, Width, Step, false>(row, column, left, right);
    }
  }
}

template <int Width, int Step, class Row>
static void filter_columns(const ts_operation& op, const Row& row) {
  const int64_t blocks = (op.out_width + kPixels - 1) / kPixels;
  const int64_t pixels = (op.out_width + blocks - 1) / blocks;  // of a block if all blocks had the same size
  auto filter_with = pixels > 4 && op.out_width >= kPixels ? filter_blocks<kPixels, Width, Step, Row>
                     : op.out_width >= 4                   ? filter_blocks<4, Width, Step, Row>
                     : op.out_width >= 2                   ? filter_blocks<2, Width, Step, Row>
                                                           : filter_blocks<1, Width, Step, Row>;
  filter_with(op, row);
}

// Computes one output row: out[column * out_stride + channel].
template <Role Of, class Element>
static void filter_row(const ts_operation& op, const Filter<Element>& filter, int64_t row,
                       typename Row<Element, Of>::Out* out, int64_t out_stride) {
  const ts_act clamp = clamp_of(filter.activation);
  const ts_window& window = *filter.window;
  const auto [first_tap, last_tap] = rows_inside(window, op.in_height, row);
  const int64_t top = row * window.stride_height - window.pad_height, dh = window.dilation_height;
  const Row<Element, Of> shared{filter.input + ((top + first_tap * dh) * op.in_width - window.pad_width) * op.in_stride,
                            filter.weights + first_tap * window.kernel_width * filter.channels,
                            filter.bias,
                            filter.residual,
                            filter.residual_stride,
                            out,
                            out_stride,
                            last_tap - first_tap,
                            filter.channels,
                            filter.summed,
                            filter.begin,
                            filter.end,
                            op.in_stride,
                            dh * op.in_width * op.in_stride,
                            window.kernel_width,
                            window.stride_width,
                            window.dilation_width,
                            window.pad_width,
                            window.kernel_height * window.kernel_width,
                            broadcast(clamp.alpha),
                            broadcast(clamp.beta),
                            clamps(clamp),
                            filter.activation};
  const int64_t shape = window.dilation_width == 1 && window.stride_width <= 2 ? window.kernel_width * 10 + window.stride_width : 0;
  switch (shape) {
#define TS_SHAPE(width, step) \
  case width * 10 + step: filter_columns<width, step>(op, shared); break
    TS_SHAPE(3, 1);
    TS_SHAPE(3, 2);
    TS_SHAPE(5, 1);
    TS_SHAPE(5, 2);
    TS_SHAPE(7, 1);
    TS_SHAPE(7, 2);
#undef TS_SHAPE
    default: filter_columns<0, 0>(op, shared);
  }
  if constexpr (kActivatesLater<Element>) {
    if (filter.activation.kind == TS_CLAMP) return;
    for (int64_t column = 0; column < op.out_width; column++) {
      activate_rest(out + column * out_stride + filter.begin, filter.end - filter.begin, filter.activation);
    }
  }
}

}  // namespace ts::TS_ISA
