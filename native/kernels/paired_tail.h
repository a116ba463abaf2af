// A paired tail: the last vector of output channels where at most half of its lanes hold channels, as with 24 channels and 16
// lanes. Two neighbouring pixels p and q share that vector:
//
//     vector 0 of p    c0  c1 .. c15
//     vector 0 of q    c0  c1 .. c15
//     shared vector    c16 .. c23 of p | c16 .. c23 of q
//
// The packed weights hold the tail's channels twice, once for each half (pack_matrix in runtime/planning/packing.py). The
// multiplier is p's value in the lower half of the lanes and q's in the upper half. Two pixels take three multiply-adds for
// each of their values instead of four.
#pragma once

#include "vector.h"

namespace ts::TS_ISA {

// 16 registers leave no room beside the accumulators. AMX multiplies bfloat16 by tiles instead.
template <class Element>
#ifdef TS_TILES
constexpr bool kPairedTail = kLanes == 16 && std::is_same_v<Element, float>;
#else
constexpr bool kPairedTail = kLanes == 16;
#endif

template <int... Lane>
TS_INLINE Mask upper_lanes(std::integer_sequence<int, Lane...>) {
  return Mask{(Lane < kLanes / 2 ? 0 : -1)...};
}

// Of two broadcast values, the first in the lower half of the lanes and the second in the upper.
TS_INLINE Vector join_broadcasts(Vector first, Vector second) {
  return upper_lanes(std::make_integer_sequence<int, kLanes>()) ? second : first;
}

// The lower halves of two vectors, the second above the first. With AVX-512 by a shuffle: through memory, the load would wait
// for both stores, as a load that spans two stores cannot be forwarded.
TS_INLINE Vector join_halves(Vector first, Vector second) {
#if defined(__AVX512F__)
  return (Vector)_mm512_maskz_shuffle_f32x4(0xffff, (__m512)first, (__m512)second, 0b01'00'01'00);
#else
  memcpy(reinterpret_cast<char*>(&first) + sizeof(Vector) / 2, &second, sizeof(Vector) / 2);
  return first;
#endif
}

// The lower (0) or the upper (1) half of a vector, with zeros above it.
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

}  // namespace ts::TS_ISA
