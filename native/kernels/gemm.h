// The matrix product that every convolution but the depthwise one ends in: the pixels of a tile times packed weights.
//
//     for each panel of weights             read once; stays in L1 while the tile passes by
//         for each output row of the tile   the tile's matrix stays in L2 or nearer
//             for each block of pixels      a micro-kernel's accumulators stay in registers
//
// convolution.h calls multiply (amx_gemm.h), which calls multiply_panels here wherever AMX does not do the work.
#pragma once

#include <algorithm>

#include "micro_kernel.h"
#include "window.h"

namespace ts::TS_ISA {

// The runs of an output row's pixels that lie on the image: multiplying the others would add zeros. Only a row view has a run
// for each kernel row.
template <class Value>
static KernelRows runs_inside(const ts_operation& op, const Matrix<Value>& matrix, int64_t row) {
  return op.convolution.source == TS_FROM_ROW_VIEW
             ? rows_inside(op.convolution.window, op.in_height, matrix.first_row + row)
             : KernelRows{0, matrix.runs};
}

template <class Element, class Out>
using MicroKernel = void (*)(const BlockParams<Element, Out>&);

template <class Element, class Out, int... Pairs>
static MicroKernel<Element, Out> choose_paired(int pairs, std::integer_sequence<int, Pairs...>) {
  static constexpr MicroKernel<Element, Out> kernels[] = {multiply_blocks<Element, Out, 2 * (Pairs + 1), 2, true>...};
  return kernels[pairs - 1];
}

template <class Element, class Out, int Vectors, int... Rows>
static MicroKernel<Element, Out> choose_unpaired(int rows, std::integer_sequence<int, Rows...>) {
  static constexpr MicroKernel<Element, Out> kernels[] = {multiply_blocks<Element, Out, Rows + 1, Vectors, false>...};
  return kernels[rows - 1];
}

// Most pixels of a block where K is small: as few as still hide the latency of a multiply-add. Two a cycle of latency 4 need 8
// independent accumulators, and 6 x 2 are 12; dot products of bfloat16 take longer, so 10 x 2.
template <class Element>
constexpr int kSmallBlockRows = kLanes == 16 ? (std::is_same_v<Operand<Element>, float> ? 6 : 10) : kRows;

// K up to which blocks are small. All stores of a block come at its end; those of a small block overlap with the multiply-adds
// of the next one. Chosen by measurement: `make bench-kernels` times shapes on both sides of it.
constexpr int64_t kSmallDepth = 64;

// Most pixels of a block where a panel has one vector: each product loads a weight anyway, and 16 accumulators fill half of
// the registers.
constexpr int kRowsAlone = kLanes == 16 ? 16 : kRows * kVectors;

template <class Element>
static int64_t most_rows(const ts_operation& op, int64_t vectors) {
  return vectors < kVectors ? kRowsAlone : op.convolution.depth <= kSmallDepth ? kSmallBlockRows<Element> : kRows;
}

template <class Element, class Out>
static MicroKernel<Element, Out> kernel_for(int64_t pixels, int64_t vectors, bool paired) {
  const int rows = static_cast<int>(pixels);
  if constexpr (kPairedTail<Element>) {
    if (paired) return choose_paired<Element, Out>(rows / 2, std::make_integer_sequence<int, kRows / 2>());
  }
  return vectors == kVectors
             ? choose_unpaired<Element, Out, kVectors>(rows, std::make_integer_sequence<int, kRows>())
             : choose_unpaired<Element, Out, 1>(rows, std::make_integer_sequence<int, kRowsAlone>());
}

// Vectors of output channels before a panel. A panel has two vectors, the last one perhaps one. A paired tail always has a
// whole vector beside it, so then the panel before the last may have one.
static int64_t vectors_before(const ts_operation& op, int64_t panel) {
  const ts_convolution& conv = op.convolution;
  const int64_t panels = (conv.out_vectors + kVectors - 1) / kVectors;
  if (panel == panels) return conv.out_vectors;
  return conv.paired_tail && panel == panels - 1 ? conv.out_vectors - kVectors : panel * kVectors;
}

// Converts values to the type in which they are multiplied.
template <class Element>
static void convert(Operand<Element>* to, const Element* from, int64_t count) {
  if constexpr (std::is_same_v<Element, Operand<Element>>) {
    memcpy(to, from, static_cast<size_t>(count) * sizeof(Element));
  } else {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
    for (; i < count; i++) to[i] = value_of(from[i]);
  }
}

// Multiplies a tile's matrix with panels [first, last). `next` is the address of the weights that are read after them.
template <class Element, class Out>
static void multiply_panels(const ts_operation& op, const Matrix<Operand<Element>>& matrix, Out* out,
                            const Element* residual, int64_t first, int64_t last, const void* next) {
  const ts_convolution& conv = op.convolution;
  const int64_t words = conv.depth / kInWord<Element>, run_words = words / matrix.runs;
  for (int64_t panel = first; panel < last; panel++) {
    const Word* B = static_cast<const Word*>(conv.weights) + panel * words * kPanel;
    const int64_t channel = vectors_before(op, panel) * kLanes;
    const int64_t vectors = vectors_before(op, panel + 1) - vectors_before(op, panel);
    const bool paired = conv.paired_tail && channel + kPanel == conv.out_vectors * kLanes;
    // Blocks of nearly equal size: a last block of one pixel would run at the latency of its multiply-adds. Pixels of a paired
    // tail come in units of two.
    const int64_t unit = paired ? 2 : 1, units = matrix.pixels / unit, most = most_rows<Element>(op, vectors) / unit;
    const int64_t blocks = std::max<int64_t>((units + most - 1) / most, 1);
    const int64_t least = units / blocks, larger = units % blocks;  // `larger` blocks have one unit more
    const struct {
      int64_t blocks, pixels;
    } sizes[] = {{larger, (least + 1) * unit}, {least ? blocks - larger : 0, least * unit}};
    // The blocks of this panel together prefetch the next one, a few bytes for each word, so that its cache lines arrive one
    // by one.
    uintptr_t prefetch_ptr = reinterpret_cast<uintptr_t>(panel + 1 < last ? B + words * kPanel : next);
    const uintptr_t all_blocks = static_cast<uintptr_t>(blocks * matrix.rows);
    const uintptr_t prefetch_step = (kPanel * sizeof(Word) + all_blocks - 1) / all_blocks;
    const uintptr_t block_prefetch = static_cast<uintptr_t>(words) * prefetch_step;
    for (int64_t row = 0; row < matrix.rows; row++) {
      const KernelRows inside = runs_inside(op, matrix, row);
      const Operand<Element>* A = matrix.values + row * matrix.row_stride + inside.first * matrix.run_stride;
      // Multiplies `count` blocks of `pixels` from the row's pixel `at` on. With `step` 0, all pixels of a block are the same.
      auto multiply = [&](int64_t count, int64_t pixels, int64_t at, int64_t step) {
        const int64_t begin = row * matrix.pixels + at;
        const BlockParams<Element, Out> params{
            count,
            A + at * matrix.stride,
            step * matrix.stride,
            inside.last - inside.first,
            matrix.run_stride,
            run_words,
            B + inside.first * run_words * kPanel,
            prefetch_ptr,
            prefetch_step,
            block_prefetch,
            out + begin * op.out_stride + channel,
            step * op.out_stride,
            conv.bias + panel * kPanel,
            residual ? residual + begin * op.second_stride + channel : nullptr,
            step * op.second_stride,
            op.activation};
        kernel_for<Element, Out>(pixels, vectors, paired)(params);
        prefetch_ptr += static_cast<uintptr_t>(count) * block_prefetch;
        if constexpr (kActivatesLater<Element>) {
          if (op.activation.kind == TS_CLAMP) return;
          const int64_t written = step ? count * pixels : 1;
          for (int64_t p = 0; p < written; p++) {
            activate_rest(params.out + p * op.out_stride, vectors * kLanes, op.activation);
          }
        }
      };
      int64_t at = 0;
      for (const auto& size : sizes) {
        if (size.blocks) multiply(size.blocks, size.pixels, at, 1);
        at += size.blocks * size.pixels;
      }
      // An odd last pixel of a paired tail is paired with the one before it, which is computed a second time. A single pixel
      // is paired with itself.
      if (at < matrix.pixels) multiply(1, unit, std::max<int64_t>(at - 1, 0), at > 0);
    }
  }
}

}  // namespace ts::TS_ISA
