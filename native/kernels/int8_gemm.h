// The matrix product of uint8 by int8: a tile of pixels (rows of A) times packed weights, as gemm.h does it for floats.
//
// A word of weights holds the operands of neighbouring k for one output channel, so an instruction adds kWordOperands products
// to every sum: out[i][m] = requantize(initial[m] + sum_k A[i][k] W[m][k]). All sums are exact.
#pragma once

#include <algorithm>

#include "micro_kernel.h"
#include "int8_vector.h"

namespace ts::TS_ISA {

constexpr int64_t kPanelBytes = kPanel * 4;  // of a word of each channel of a panel

// What the pixels of a block share: the first panel channel's constants, and the residual of the block's first pixel.
struct Epilogue8 {
  const int32_t* initial;
  const float *multiplier, *offset;
  const uint8_t* residual;  // or null
  int64_t residual_stride;
  float residual_multiplier;
  int32_t residual_zero_point;
  float low, high;
  int32_t zero_point;
};

// `blocks` blocks of Rows pixels, one after the other, by Vectors vectors of channels. Where Out is uint8_t the results are
// written, else the sums as they are. Memory from `ahead` on is prefetched, `pace` bytes with each word, and each block
// begins `ahead_step` bytes further.
template <class Out, int Rows, int Vectors>
static void multiply_blocks8(int64_t blocks, const Operand8* A, const Matrix<Operand8>& matrix, const char* weights,
                             int64_t words, uintptr_t ahead, uintptr_t pace, uintptr_t ahead_step, Out* out,
                             int64_t out_stride, const Epilogue8& end) {
  // In variables of its own: after a store, which may write anywhere, the compiler would read them from memory again.
  const Requantization requantize(end.low, end.high, end.zero_point);
  const Vector residual_multiplier = broadcast(end.residual_multiplier);
  const Integers residual_zero_point = broadcast_word(end.residual_zero_point);
  const uint8_t* residual = end.residual;
  const int64_t residual_stride = end.residual_stride, stride = matrix.stride;
  const int64_t runs = matrix.runs, run_stride = matrix.run_stride;
  const int32_t* initial = end.initial;
  const float *multiplier = end.multiplier, *offset = end.offset;
  for (; blocks > 0; blocks--, ahead += ahead_step) {
    Integers sum[Rows][Vectors];
    TS_UNROLL for (int j = 0; j < Vectors; j++) {
      const Integers start = load_integers(initial + j * kLanes);
      TS_UNROLL for (int i = 0; i < Rows; i++) sum[i][j] = start;
    }
    const Operand8* run = A;
    const char* panel = weights;
    uintptr_t asked = ahead;
    for (int64_t r = 0; r < runs; r++, run += run_stride) {
      const Operand8* pixels = run;
      for (int64_t k = 0; k < words; k++, asked += pace, pixels += kWordOperands, panel += kPanelBytes) {
        __builtin_prefetch(reinterpret_cast<const void*>(asked), 0, 2);
        Integers weight[Vectors];
        TS_UNROLL for (int j = 0; j < Vectors; j++) weight[j] = load_integers(panel + j * kLanes * 4);
        TS_UNROLL for (int i = 0; i < Rows; i++) {
          const Integers pixel = broadcast_word(*reinterpret_cast<const IntegerWord*>(pixels + i * stride));
          TS_UNROLL for (int j = 0; j < Vectors; j++) sum[i][j] = dot(sum[i][j], pixel, weight[j]);
        }
      }
    }
    A += Rows * stride;
    if constexpr (std::is_same_v<Out, int32_t>) {
      TS_UNROLL for (int i = 0; i < Rows; i++) {
        TS_UNROLL for (int j = 0; j < Vectors; j++) store_integers(out + i * out_stride + j * kLanes, sum[i][j]);
      }
    } else if (residual) {
      TS_UNROLL for (int i = 0; i < Rows; i++) {
        Integers result[Vectors];
        TS_UNROLL for (int j = 0; j < Vectors; j++) {
          const Integers branch = load_bytes(residual + i * residual_stride + j * kLanes) - residual_zero_point;
          const Vector v = to_float(sum[i][j]) * load(multiplier + j * kLanes) + load(offset + j * kLanes);
          result[j] = requantize(v + to_float(branch) * residual_multiplier);
        }
        store_bytes(out + i * out_stride, result);
      }
      residual += Rows * residual_stride;
    } else {
      TS_UNROLL for (int i = 0; i < Rows; i++) {
        Integers result[Vectors];
        TS_UNROLL for (int j = 0; j < Vectors; j++) {
          result[j] = requantize(to_float(sum[i][j]) * load(multiplier + j * kLanes) + load(offset + j * kLanes));
        }
        store_bytes(out + i * out_stride, result);
      }
    }
    out += Rows * out_stride;
  }
}

template <class Out>
using MultiplyBlocks8 = void (*)(int64_t, const Operand8*, const Matrix<Operand8>&, const char*, int64_t, uintptr_t, uintptr_t,
                                 uintptr_t, Out*, int64_t, const Epilogue8&);

template <class Out, int Vectors, int... Rows>
static MultiplyBlocks8<Out> choose_kernel8(int64_t rows, std::integer_sequence<int, Rows...>) {
  static constexpr MultiplyBlocks8<Out> kernels[] = {multiply_blocks8<Out, Rows + 1, Vectors>...};
  return kernels[rows - 1];
}

// Channels are padded to 16, so a panel of 8 or 16 is always whole, and one of 32 may have a single vector.
template <class Out>
static MultiplyBlocks8<Out> kernel_for8(int64_t rows, int64_t vectors) {
  if constexpr (std::is_same_v<Out, uint8_t> && kLanes > 8) {
    if (vectors == 1) return choose_kernel8<Out, 1>(rows, std::make_integer_sequence<int, kRows>());
  }
  static_cast<void>(vectors);
  return choose_kernel8<Out, kVectors>(rows, std::make_integer_sequence<int, kRows>());
}

// The first `room` of sums of a pixel become floats.
template <class Out>
static void finish_pixel(const ts_requantization& result, int64_t channel, const int32_t* sums, int64_t room, Out* out) {
  for (int64_t j = 0; j < room; j += kLanes) {
    const Vector scaled = to_float(load_integers(sums + j)) * load(result.multiplier + channel + j);
    const Vector v = scaled + load(result.offset + channel + j);
    store_floats(out + j, at_most(at_least(v, broadcast(result.low)), broadcast(result.high)), room - j);
  }
}

// Panels [first, last) of one tile; `next` is what will be read after them. Out is a uint8_t, float or Bfloat16. Weight
// panels are outermost: each is read once and stays in L1 while the tile's pixels, which stay in L2 or nearer, pass by.
template <class Out>
static void multiply_tile8(const ts_operation& op, const Matrix<Operand8>& matrix, Out* out, const uint8_t* residual,
                           int64_t first, int64_t last, const void* next) {
  const ts_int8_convolution& convolution = op.int8_convolution;
  const ts_requantization& result = convolution.result;
  const int64_t words = convolution.depth / kWordOperands, run_words = words / matrix.runs;
  // Blocks of nearly equal size: a last block of one pixel would run at the latency of its additions.
  const int64_t blocks = std::max<int64_t>((matrix.pixels + kRows - 1) / kRows, 1);
  const int64_t least = matrix.pixels / blocks, larger = matrix.pixels % blocks;  // so many blocks have a pixel more
  const struct {
    int64_t blocks, pixels;
  } sizes[] = {{larger, least + 1}, {least ? blocks - larger : 0, least}};
  for (int64_t panel = first; panel < last; panel++) {
    const char* B = static_cast<const char*>(convolution.weights) + panel * words * kPanelBytes;
    const int64_t channel = panel * kPanel;
    const int64_t vectors = std::min<int64_t>(kVectors, convolution.out_vectors - panel * kVectors);
    // An address and no pointer: it may run beyond what there is to read. All blocks together ask for the next panel.
    uintptr_t ahead = reinterpret_cast<uintptr_t>(panel + 1 < last ? B + words * kPanelBytes : next);
    const uintptr_t all_blocks = static_cast<uintptr_t>(blocks * matrix.rows);
    const uintptr_t pace = (static_cast<uintptr_t>(kPanelBytes) + all_blocks - 1) / all_blocks;
    const uintptr_t ahead_step = static_cast<uintptr_t>(words) * pace;
    for (int64_t row = 0; row < matrix.rows; row++) {
      const Operand8* A = matrix.values + row * matrix.row_stride;
      int64_t begin = row * matrix.pixels;
      for (const auto& size : sizes) {
        if (!size.blocks) continue;
        const Epilogue8 end{result.initial + channel,
                            result.multiplier + channel,
                            result.offset + channel,
                            residual ? residual + begin * op.second_stride + channel : nullptr,
                            op.second_stride,
                            result.residual_multiplier,
                            result.residual_zero_point,
                            result.low,
                            result.high,
                            result.zero_point};
        Out* to = out + begin * op.out_stride + channel;
        if constexpr (std::is_same_v<Out, uint8_t>) {
          kernel_for8<Out>(size.pixels, vectors)(size.blocks, A, matrix, B, run_words, ahead, pace, ahead_step, to,
                                                 op.out_stride, end);
        } else {
          const auto multiply = kernel_for8<int32_t>(size.pixels, vectors);
          const int64_t room = std::min(vectors * kLanes, op.out_padded - channel);
          for (int64_t block = 0; block < size.blocks; block++) {
            alignas(64) int32_t sums[kRows * kPanel];
            const int64_t at = block * size.pixels;
            multiply(1, A + at * matrix.stride, matrix, B, run_words, ahead, pace, ahead_step, sums, kPanel, end);
            for (int64_t p = 0; p < size.pixels; p++) {
              finish_pixel(result, channel, sums + p * kPanel, room, to + (at + p) * op.out_stride);
            }
          }
        }
        ahead += static_cast<uintptr_t>(size.blocks) * ahead_step;
        A += size.blocks * size.pixels * matrix.stride;
        begin += size.blocks * size.pixels;
      }
    }
  }
}

}  // namespace ts::TS_ISA
