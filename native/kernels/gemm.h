// The matrix product that all convolutions but the depthwise end in: a tile of pixels (rows of A) times packed weights.
// tiles.h has the one for AMX.
#pragma once

#include <algorithm>

#include "vector.h"
#include "window.h"

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

// Of a row of the matrix, the lines that are on the image: the others would multiply weights by zeros.
template <class Value>
static KernelRows lines_inside(const ts_operation& op, const Matrix<Value>& matrix, int64_t row) {
  return op.patches == TS_LINES ? rows_inside(op, matrix.first_row + row) : KernelRows{0, matrix.lines};
}

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

template <class Element, class Out>
using MultiplyBlocks = void (*)(int64_t, const Factor<Element>*, const Matrix<Factor<Element>>&, const Word*, int64_t,
                                int64_t, uintptr_t, uintptr_t, uintptr_t, Out*, int64_t, const Epilogue<Element>&);

template <class Element, class Out, int Vectors, int... Rows>
static MultiplyBlocks<Element, Out> choose_kernel(int rows, std::integer_sequence<int, Rows...>) {
  static constexpr MultiplyBlocks<Element, Out> kernels[] = {multiply_blocks<Element, Out, Rows + 1, Vectors>...};
  return kernels[rows - 1];
}

// Pixels that have as many sums as multiply-adds need to never wait for one another: 12, or 20 of dot products.
template <class Element>
constexpr int kFewRows = kRows > 8 ? (std::is_same_v<Factor<Element>, float> ? 6 : 10) : kRows;
constexpr int64_t kFewValues = 64;

// Of a panel's last vector alone: there is a load for each product, and more sums would not change that.
constexpr int kRowsAlone = kRows > 8 ? 16 : kRows * kVectors;

// Pixels of a block, at most. Sums of few products are stored soon: of small blocks, while the next one is multiplied, where
// the stores of a large one come all at once.
template <class Element>
static int64_t rows_for(const ts_operation& op, int vectors) {
  return vectors < kVectors ? kRowsAlone : op.depth <= kFewValues ? kFewRows<Element> : kRows;
}

template <class Element, class Out>
static MultiplyBlocks<Element, Out> kernel_for(int rows, int vectors) {
  return vectors == kVectors
             ? choose_kernel<Element, Out, kVectors>(rows, std::make_integer_sequence<int, kRows>())
             : choose_kernel<Element, Out, 1>(rows, std::make_integer_sequence<int, kRowsAlone>());
}

// Values as they are multiplied.
template <class Element>
static void convert(Factor<Element>* to, const Element* from, int64_t count) {
  if constexpr (std::is_same_v<Element, Factor<Element>>) {
    memcpy(to, from, static_cast<size_t>(count) * sizeof(Element));
  } else {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
    for (; i < count; i++) to[i] = value_of(from[i]);
  }
}

// Panels [first, last) of one tile; `next` is what will be read after them. Weight panels are outermost: each is read
// once and stays in L1 while the tile's pixels, which stay in L2 or nearer, pass by.
template <class Element, class Out>
static void multiply_tile(const ts_operation& op, const Matrix<Factor<Element>>& matrix, Out* out,
                          const Element* residual, int64_t first, int64_t last, const void* next) {
  const int64_t vectors = op.out_vectors, words = op.depth / kInWord<Element>, line_words = words / matrix.lines;
  for (int64_t panel = first; panel < last; panel++) {
    const Word* B = static_cast<const Word*>(op.weights) + panel * words * kPanel;
    const int width = static_cast<int>(vectors - panel * kVectors < kVectors ? vectors - panel * kVectors : kVectors);
    // Blocks of nearly equal size: a last block of one pixel would run at the latency of its additions.
    const int64_t rows = rows_for<Element>(op, width), blocks = (matrix.pixels + rows - 1) / rows;
    const int64_t least = matrix.pixels / blocks, larger = matrix.pixels % blocks;  // so many blocks have a pixel more
    const struct {
      int64_t blocks, pixels;
      MultiplyBlocks<Element, Out> multiply;
    } sizes[] = {
        {larger, least + 1, larger ? kernel_for<Element, Out>(static_cast<int>(least) + 1, width) : nullptr},
        {blocks - larger, least, kernel_for<Element, Out>(static_cast<int>(least), width)},
    };
    // An address and no pointer: it may run beyond what there is to read. All blocks together ask for the next panel, so
    // that its lines arrive one by one while this one is multiplied.
    uintptr_t ahead = reinterpret_cast<uintptr_t>(panel + 1 < last ? B + words * kPanel : next);
    const uintptr_t all_blocks = static_cast<uintptr_t>(blocks * matrix.rows);
    const uintptr_t pace = (kPanel * sizeof(Word) + all_blocks - 1) / all_blocks;
    const uintptr_t ahead_step = static_cast<uintptr_t>(words) * pace;
    for (int64_t row = 0; row < matrix.rows; row++) {
      const auto [first_line, last_line] = lines_inside(op, matrix, row);
      const Factor<Element>* A = matrix.values + row * matrix.row_stride + first_line * matrix.line_stride;
      const Word* weights = B + first_line * line_words * kPanel;
      int64_t begin = row * matrix.pixels;
      for (const auto& [of_size, pixels, multiply] : sizes) {
        if (!of_size) continue;
        const int64_t count = of_size * pixels;
        const Epilogue<Element> epilogue{op.bias + panel * kPanel,
                                         residual ? residual + begin * op.residual_stride + panel * kPanel : nullptr,
                                         op.residual_stride, op.activation};
        Out* to = out + begin * op.out_stride + panel * kPanel;
        multiply(of_size, A, matrix, weights, last_line - first_line, line_words, ahead, pace, ahead_step, to,
                 op.out_stride, epilogue);
        ahead += static_cast<uintptr_t>(of_size) * ahead_step;
        if constexpr (kActivatesLater<Element>) {
          if (op.activation.kind != TS_CLAMP) {
            for (int64_t p = 0; p < count; p++) activate_rest(to + p * op.out_stride, width * kLanes, op.activation);
          }
        }
        A += count * matrix.stride;
        begin += count;
      }
    }
  }
}

}  // namespace ts::TS_ISA
