// The matrix product that all convolutions but the depthwise end in: a tile of pixels (rows of A) times packed weights.
// tiles.h has the one for AMX.
#pragma once

#include <algorithm>

#include "halves.h"
#include "micro_kernel.h"
#include "window.h"

namespace ts::TS_ISA {

// Of a row of the matrix, the lines that are on the image: the others would multiply weights by zeros.
template <class Value>
static KernelRows lines_inside(const ts_operation& op, const Matrix<Value>& matrix, int64_t row) {
  return op.convolution.source == TS_FROM_ROW_VIEW
             ? rows_inside(op.convolution.window, op.in_height, matrix.first_row + row)
             : KernelRows{0, matrix.lines};
}

template <class Element, class Out>
using MultiplyBlocks = void (*)(int64_t, const Factor<Element>*, const Matrix<Factor<Element>>&, const Word*, int64_t,
                                int64_t, uintptr_t, uintptr_t, uintptr_t, Out*, int64_t, const Epilogue<Element>&);

template <class Element, class Out, int... Pairs>
static MultiplyBlocks<Element, Out> choose_pairs(int pairs, std::integer_sequence<int, Pairs...>) {
  static constexpr MultiplyBlocks<Element, Out> kernels[] = {multiply_pairs<Element, Out, Pairs + 1>...};
  return kernels[pairs - 1];
}

template <class Element, class Out, int Vectors, int... Rows>
static MultiplyBlocks<Element, Out> choose_kernel(int rows, std::integer_sequence<int, Rows...>) {
  static constexpr MultiplyBlocks<Element, Out> kernels[] = {multiply_blocks<Element, Out, Rows + 1, Vectors>...};
  return kernels[rows - 1];
}

// With AVX-512, pixels that have as many sums as multiply-adds need to never wait for one another: 12, or 20 of dot products.
template <class Element>
constexpr int kFewRows = kLanes == 16 ? (std::is_same_v<Factor<Element>, float> ? 6 : 10) : kRows;
constexpr int64_t kFewValues = 64;

// Of a panel's last vector alone: there is a load for each product, and more sums would not change that.
constexpr int kRowsAlone = kLanes == 16 ? 16 : kRows * kVectors;

// Pixels of a block, at most. Sums of few products are stored soon: of small blocks, while the next one is multiplied, where
// the stores of a large one come all at once.
template <class Element>
static int64_t rows_for(const ts_operation& op, int64_t vectors) {
  return vectors < kVectors ? kRowsAlone : op.convolution.depth <= kFewValues ? kFewRows<Element> : kRows;
}

// For a panel of so many vectors, or whose second one is shared by two pixels, blocks of so many pixels.
template <class Element, class Out>
static MultiplyBlocks<Element, Out> kernel_for(int64_t pixels, int64_t vectors, bool halves) {
  const int rows = static_cast<int>(pixels);
  if constexpr (kHalves<Element>) {
    if (halves) return choose_pairs<Element, Out>(rows / 2, std::make_integer_sequence<int, kRows / 2>());
  }
  return vectors == kVectors
             ? choose_kernel<Element, Out, kVectors>(rows, std::make_integer_sequence<int, kRows>())
             : choose_kernel<Element, Out, 1>(rows, std::make_integer_sequence<int, kRowsAlone>());
}

// Vectors of output channels before a panel. All panels are of two, or else the last of one; where a half is left it has a
// whole one beside it, and then the panel before it may be of one.
static int64_t vectors_before(const ts_operation& op, int64_t panel) {
  const int64_t panels = (op.convolution.out_vectors + kVectors - 1) / kVectors;
  if (panel == panels) return op.convolution.out_vectors;
  return op.convolution.paired_tail && panel == panels - 1 ? op.convolution.out_vectors - kVectors : panel * kVectors;
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
  const int64_t words = op.convolution.depth / kInWord<Element>, line_words = words / matrix.lines;
  for (int64_t panel = first; panel < last; panel++) {
    const Word* B = static_cast<const Word*>(op.convolution.weights) + panel * words * kPanel;
    const int64_t channel = vectors_before(op, panel) * kLanes;
    const int64_t vectors = vectors_before(op, panel + 1) - vectors_before(op, panel);
    const bool halves = op.convolution.paired_tail && channel + kPanel == op.convolution.out_vectors * kLanes;
    // Blocks of nearly equal size: a last block of one pixel would run at the latency of its additions.
    const int64_t unit = halves ? 2 : 1, units = matrix.pixels / unit, most = rows_for<Element>(op, vectors) / unit;
    const int64_t blocks = std::max<int64_t>((units + most - 1) / most, 1);
    const int64_t least = units / blocks, larger = units % blocks;  // so many blocks have a unit more
    const struct {
      int64_t blocks, pixels;
    } sizes[] = {{larger, (least + 1) * unit}, {least ? blocks - larger : 0, least * unit}};
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
      const int64_t lines = last_line - first_line;
      // `count` blocks of `pixels` from pixel `at` of the row on; from one pixel to the next are `step` pixels.
      auto multiply = [&](int64_t count, int64_t pixels, int64_t at, int64_t step) {
        const int64_t begin = row * matrix.pixels + at;
        const Epilogue<Element> epilogue{op.convolution.bias + panel * kPanel,
                                         residual ? residual + begin * op.second_stride + channel : nullptr,
                                         step * op.second_stride, op.activation};
        Matrix<Factor<Element>> from = matrix;
        from.stride *= step;
        Out* to = out + begin * op.out_stride + channel;
        kernel_for<Element, Out>(pixels, vectors, halves)(count, A + at * matrix.stride, from, weights, lines, line_words,
                                                          ahead, pace, ahead_step, to, step * op.out_stride, epilogue);
        ahead += static_cast<uintptr_t>(count) * ahead_step;
        if constexpr (kActivatesLater<Element>) {
          if (op.activation.kind == TS_CLAMP) return;
          const int64_t written = step ? count * pixels : 1;
          for (int64_t p = 0; p < written; p++) activate_rest(to + p * op.out_stride, vectors * kLanes, op.activation);
        }
      };
      int64_t at = 0;
      for (const auto& size : sizes) {
        if (size.blocks) multiply(size.blocks, size.pixels, at, 1);
        at += size.blocks * size.pixels;
      }
      // A last pixel that has no other goes with the one before it, once more, or with itself.
      if (at < matrix.pixels) multiply(1, unit, std::max<int64_t>(at - 1, 0), at > 0);
    }
  }
}

}  // namespace ts::TS_ISA
