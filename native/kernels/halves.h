// A panel whose second vector would be half padding, as with 24 output channels of 16 lanes: two pixels share that vector. The
// first vector's weights are multiplied with each pixel's value; the second's, which are there twice, with a vector that is one
// pixel's value in its lower half and the other's in its upper. So two pixels take three multiply-adds for each of their
// values, where they would take four.
#pragma once

#include "micro_kernel.h"

namespace ts::TS_ISA {

// With 16 registers there is no room beside the sums, and AMX has a product of its own.
template <class Element>
#ifdef TS_TILES
constexpr bool kHalves = kLanes == 16 && std::is_same_v<Element, float>;
#else
constexpr bool kHalves = kLanes == 16;
#endif

template <int... Lane>
TS_INLINE Mask upper_lanes(std::integer_sequence<int, Lane...>) {
  return Mask{(Lane < kLanes / 2 ? 0 : -1)...};
}

// The lower half of the first and, above it, that of the second. (Copied by memcpy, they would meet in memory, where what has
// been written in two parts cannot be read at once for a while.)
TS_INLINE Vector joined(Vector first, Vector second) {
#if defined(__AVX512F__)
  return (Vector)_mm512_maskz_shuffle_f32x4(0xffff, (__m512)first, (__m512)second, 0b01'00'01'00);
#else
  memcpy(reinterpret_cast<char*>(&first) + sizeof(Vector) / 2, &second, sizeof(Vector) / 2);
  return first;
#endif
}

// One of the halves, with zeros above it.
template <int Which>
TS_INLINE Vector half_of(Vector both) {
#if defined(__AVX512F__)
  return (Vector)_mm512_maskz_shuffle_f32x4(0x00ff, (__m512)both, (__m512)both, Which ? 0b11'10'11'10 : 0b11'10'01'00);
#else
  Vector half{};
  memcpy(&half, reinterpret_cast<const char*>(&both) + Which * sizeof(Vector) / 2, sizeof(Vector) / 2);
  return half;
#endif
}

// As `multiply_blocks`, for 2 x Pairs pixels.
template <class Element, class Out, int Pairs>
static void multiply_pairs(int64_t blocks, const Factor<Element>* A, const Matrix<Factor<Element>>& matrix,
                           const Word* weights, int64_t lines, int64_t words, uintptr_t ahead, uintptr_t pace,
                           uintptr_t ahead_step, Out* out, int64_t out_stride, const Epilogue<Element>& end) {
  constexpr int kPixelsOf = 2 * Pairs;
  const ts_act act = end.activation, clamp = clamp_of(act);
  const Vector low = broadcast(clamp.alpha), high = broadcast(clamp.beta);
  const Mask upper = upper_lanes(std::make_integer_sequence<int, kLanes>());
  const Element* residual = end.residual;
  const int64_t residual_stride = end.residual_stride, line_stride = matrix.line_stride, stride = matrix.stride;
  const int64_t pixel_stride = stride / kInWord<Factor<Element>>;
  for (; blocks > 0; blocks--, ahead += ahead_step) {
    Vector first[kPixelsOf], second[Pairs];
    TS_UNROLL for (int i = 0; i < kPixelsOf; i++) first[i] = load(end.bias);
    TS_UNROLL for (int i = 0; i < Pairs; i++) second[i] = load(end.bias + kLanes);
    const Factor<Element>* line = A;
    const Word* panel = weights;
    uintptr_t asked = ahead;
    for (int64_t l = 0; l < lines; l++, line += line_stride, panel += words * kPanel) {
      const Word* pixels = reinterpret_cast<const Word*>(line);
      for (int64_t k = 0; k < words; k++, asked += pace) {
        __builtin_prefetch(reinterpret_cast<const void*>(asked), 0, 2);
        TS_UNROLL for (int step = 0; step < kSteps<Element>; step++) {
          const Vector one = weights_of<Element>(panel + k * kPanel, step);
          const Vector other = weights_of<Element>(panel + k * kPanel + kLanes, step);
          const Word* value = pixels + k * kSteps<Element> + step;
          TS_UNROLL for (int i = 0; i < Pairs; i++) {
            const Vector left = broadcast(value[2 * i * pixel_stride]), right = broadcast(value[(2 * i + 1) * pixel_stride]);
            first[2 * i] = accumulate<Element>(first[2 * i], left, one);
            first[2 * i + 1] = accumulate<Element>(first[2 * i + 1], right, one);
            second[i] = accumulate<Element>(second[i], upper ? right : left, other);
          }
        }
      }
    }
    if (residual) {
      TS_UNROLL for (int i = 0; i < Pairs; i++) {
        const Element *left = residual + 2 * i * residual_stride, *right = left + residual_stride;
        first[2 * i] += load(left);
        first[2 * i + 1] += load(right);
        second[i] += joined(load(left + kLanes), load(right + kLanes));
      }
      residual += kPixelsOf * residual_stride;
    }
    if (kActivatesLater<Element> || act.kind == TS_CLAMP) {
      TS_UNROLL for (int i = 0; i < kPixelsOf; i++) first[i] = at_most(at_least(first[i], low), high);
      TS_UNROLL for (int i = 0; i < Pairs; i++) second[i] = at_most(at_least(second[i], low), high);
    } else {
      // Copies: sums that are named by a number in a loop would have to be in memory from the beginning.
      Vector sums[kPixelsOf + Pairs];
      TS_UNROLL for (int i = 0; i < kPixelsOf; i++) sums[i] = first[i];
      TS_UNROLL for (int i = 0; i < Pairs; i++) sums[kPixelsOf + i] = second[i];
      for (Vector& sum : sums) sum = activated(sum, act);
      TS_UNROLL for (int i = 0; i < kPixelsOf; i++) first[i] = sums[i];
      TS_UNROLL for (int i = 0; i < Pairs; i++) second[i] = sums[kPixelsOf + i];
    }
    TS_UNROLL for (int i = 0; i < Pairs; i++) {
      Out *left = out + 2 * i * out_stride, *right = left + out_stride;
      store(left, first[2 * i]);
      store(right, first[2 * i + 1]);
      store(left + kLanes, half_of<0>(second[i]));
      store(right + kLanes, half_of<1>(second[i]));
    }
    A += kPixelsOf * stride;
    out += kPixelsOf * out_stride;
  }
}

}  // namespace ts::TS_ISA
