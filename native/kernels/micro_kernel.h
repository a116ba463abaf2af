// The innermost loop of the matrix product: a few pixels times one panel of packed weights.
#pragma once

#include "vector.h"

namespace ts::TS_ISA {

// A panel is as many output channels as a micro-kernel computes at once: two vectors. Its accumulators, kRows x 2, leave
// room in the register file for two weights and one broadcast pixel: 6 x 2 of 16 registers, 14 x 2 of 32.
constexpr int kVectors = 2;
constexpr int kPanel = kVectors * kLanes;
constexpr int kRows = TS_ROWS;

// The left side of a product, a row of it for each output pixel: `lines` runs of neighbouring values, one after the other
// or further apart.
template <class Value>
struct Matrix {
  const Value* values;
  int64_t stride;                       // from a pixel to the next of its output row
  int64_t pixels;                       // of an output row
  int64_t rows = 1, row_stride = 0;     // output rows
  int64_t lines = 1, line_stride = 0;
  int64_t first_row = 0;                // the first output row
};

template <class Element>
struct Epilogue {
  const float* bias;        // of the panel
  const Element* residual;  // at the first pixel and channel, or null
  int64_t residual_stride;
  ts_act activation;
};

// out[i][j] = act(bias[j] + sum_k A[i][k] B[k][j] + residual[i][j]) for Rows pixels from `A` on and Vectors vectors of
// channels, where k counts the words of `lines` lines, `words` in each, and the activation is a clamp wherever others are
// applied later. Memory from `ahead` on is asked for on the way, `pace` bytes with each word.
template <class Element, class Out, int Rows, int Vectors>
TS_INLINE void micro_kernel(const Factor<Element>* A, int64_t pixel_stride, int64_t line_stride, const Word* weights,
                            int64_t lines, int64_t words, uintptr_t ahead, uintptr_t pace, Out* out, int64_t out_stride,
                            const Element* residual, const Epilogue<Element>& end, Vector low, Vector high,
                            bool clamped) {
  const int64_t residual_stride = end.residual_stride;
  Vector sum[Rows][Vectors];
  TS_UNROLL for (int i = 0; i < Rows; i++) {
    // Stores wait for their lines one after the other; asked for now, the lines are there when the sums are. (Of half as
    // many bytes, the addresses cost more than the wait.)
    if constexpr (std::is_same_v<Out, float>) __builtin_prefetch(out + i * out_stride, 1, 3);
    TS_UNROLL for (int j = 0; j < Vectors; j++) sum[i][j] = load(end.bias + j * kLanes);
  }
  for (; lines > 0; lines--, A += line_stride, weights += words * kPanel) {
    const Word* pixels = reinterpret_cast<const Word*>(A);
    for (int64_t k = 0; k < words; k++, ahead += pace) {
      __builtin_prefetch(reinterpret_cast<const void*>(ahead), 0, 2);
      TS_UNROLL for (int step = 0; step < kSteps<Element>; step++) {
        Vector weight[Vectors];
        TS_UNROLL for (int j = 0; j < Vectors; j++) {
          weight[j] = weights_of<Element>(weights + k * kPanel + j * kLanes, step);
        }
        TS_UNROLL for (int i = 0; i < Rows; i++) {
          const Vector pixel = broadcast(pixels[i * pixel_stride + k * kSteps<Element> + step]);
          TS_UNROLL for (int j = 0; j < Vectors; j++) sum[i][j] = accumulate<Element>(sum[i][j], pixel, weight[j]);
        }
      }
    }
  }
  if (residual) {
    TS_UNROLL for (int i = 0; i < Rows; i++) {
      TS_UNROLL for (int j = 0; j < Vectors; j++) sum[i][j] += load(residual + i * residual_stride + j * kLanes);
    }
  }
  if (!kActivatesLater<Element> && end.activation.kind != TS_CLAMP) {
    // A copy: sums that are named by a number in a loop would have to be in memory from the beginning.
    Vector sums[Rows][Vectors];
    TS_UNROLL for (int i = 0; i < Rows; i++) {
      TS_UNROLL for (int j = 0; j < Vectors; j++) sums[i][j] = sum[i][j];
    }
    for (int i = 0; i < Rows; i++) {
      for (int j = 0; j < Vectors; j++) store(out + i * out_stride + j * kLanes, activated(sums[i][j], end.activation));
    }
    return;
  }
  if (clamped) {
    TS_UNROLL for (int i = 0; i < Rows; i++) {
      TS_UNROLL for (int j = 0; j < Vectors; j++) sum[i][j] = at_most(at_least(sum[i][j], low), high);
    }
  }
  TS_UNROLL for (int i = 0; i < Rows; i++) {
    TS_UNROLL for (int j = 0; j < Vectors; j++) store(out + i * out_stride + j * kLanes, sum[i][j]);
  }
}

// So many blocks of Rows pixels, one after the other; each asks for `ahead_step` bytes.
template <class Element, class Out, int Rows, int Vectors>
static void multiply_blocks(int64_t blocks, const Factor<Element>* A, const Matrix<Factor<Element>>& matrix,
                            const Word* weights, int64_t lines, int64_t words, uintptr_t ahead, uintptr_t pace,
                            uintptr_t ahead_step, Out* out, int64_t out_stride, const Epilogue<Element>& end) {
  // In variables of its own: after a store, which may write anywhere, the compiler would read them from memory again.
  const ts_act clamp = clamp_of(end.activation);
  const Vector low = broadcast(clamp.alpha), high = broadcast(clamp.beta);
  const bool clamped = clamps(clamp);
  const Element* residual = end.residual;
  const int64_t residual_step = residual ? Rows * end.residual_stride : 0;
  const int64_t stride = matrix.stride, line_stride = matrix.line_stride;
  for (; blocks > 0; blocks--) {
    micro_kernel<Element, Out, Rows, Vectors>(A, stride / kInWord<Factor<Element>>, line_stride, weights, lines, words,
                                              ahead, pace, out, out_stride, residual, end, low, high, clamped);
    A += Rows * stride;
    out += Rows * out_stride;
    residual += residual_step;
    ahead += ahead_step;
  }
}

}  // namespace ts::TS_ISA
