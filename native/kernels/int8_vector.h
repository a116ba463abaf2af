// Vectors of the int8 kernels: uint8 values times int8 weights into exact int32 sums, and from sums back to uint8.
//
// Everything here gives the same bits on every instruction set. So a float multiply and the add after it must stay two
// operations: the files that include this are compiled with -ffp-contract=off (int8.cpp).
#pragma once

#include "vector.h"

#if defined(__SSE2__) && (!defined(TS_EMULATE) || TS_LANES == 8)
#include <immintrin.h>
#endif
#ifdef __ARM_FEATURE_DOTPROD
#include <arm_neon.h>
#endif

namespace ts::TS_ISA {

typedef Mask Integers;  // kLanes of int32
typedef uint8_t Bytes __attribute__((vector_size(TS_LANES)));
typedef uint8_t UnalignedBytes __attribute__((vector_size(TS_LANES), aligned(1), may_alias));
typedef int16_t Shorts __attribute__((vector_size(TS_LANES * 2)));
typedef int16_t UnalignedShorts __attribute__((vector_size(TS_LANES * 2), aligned(2), may_alias));

// A multiplication takes a word of four bytes of each lane at once, and adds the products to the lane's sum:
// - a quad, four uint8 by four int8 (VNNI; ARM64's sdot, whose left side is signed, so that it takes x - 128);
// - a pair, two uint8 that are widened to int16 by two int16 (vpmaddwd). vpmaddubsw would take four, but it adds pairs in 16
//   bits, where they saturate.
#if defined(TS_VNNI)
using Operand8 = uint8_t;
constexpr int32_t kOperandShift = 0;
#elif defined(__ARM_FEATURE_DOTPROD)
using Operand8 = int8_t;
constexpr int32_t kOperandShift = 128;  // is subtracted from every value, and its products are in the sums' initial values
#else
using Operand8 = int16_t;
constexpr int32_t kOperandShift = 0;
#endif
using Weight8 = std::conditional_t<sizeof(Operand8) == 1, int8_t, int16_t>;
constexpr int64_t kWordOperands = 4 / static_cast<int64_t>(sizeof(Operand8));

// Channels of every uint8 tensor are padded to a multiple of it, whatever the set: a register of 16 bytes.
constexpr int64_t kByteChannels = 16;
constexpr int64_t kByteVectors = kByteChannels / kLanes;

typedef int32_t IntegerWord __attribute__((aligned(1), may_alias));
typedef int32_t UnalignedIntegers __attribute__((vector_size(TS_LANES * 4), aligned(1), may_alias));

TS_INLINE Integers load_integers(const void* p) { return *static_cast<const UnalignedIntegers*>(p); }
TS_INLINE void store_integers(void* p, Integers v) { *static_cast<UnalignedIntegers*>(p) = v; }
TS_INLINE Integers broadcast_word(int32_t x) { return Integers{} + x; }

// The sum of each lane plus the products of the operands in a word of `values` and one of `weights`.
TS_INLINE Integers dot(Integers sum, Integers values, Integers weights) {
#if defined(TS_VNNI)
#if defined(TS_EMULATE)  // what the instruction is documented to do
  for (int lane = 0; lane < kLanes; lane++) {
    for (int i = 0; i < 4; i++) {
      const uint8_t value = static_cast<uint8_t>(static_cast<uint32_t>(values[lane]) >> 8 * i);
      sum[lane] += value * static_cast<int8_t>(static_cast<uint32_t>(weights[lane]) >> 8 * i);
    }
  }
  return sum;
#elif TS_LANES == 16
  return (Integers)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)values, (__m512i)weights);
#else
  return (Integers)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)values, (__m256i)weights);
#endif
#elif defined(__ARM_FEATURE_DOTPROD)
  return (Integers)vdotq_s32((int32x4_t)sum, (int8x16_t)values, (int8x16_t)weights);
#elif defined(__AVX512BW__) && TS_LANES == 16
  return sum + (Integers)_mm512_madd_epi16((__m512i)values, (__m512i)weights);
#elif defined(__AVX2__) && TS_LANES == 8 && !defined(TS_EMULATE)
  return sum + (Integers)_mm256_madd_epi16((__m256i)values, (__m256i)weights);
#elif defined(__SSE2__) && TS_LANES == 4
  return sum + (Integers)_mm_madd_epi16((__m128i)values, (__m128i)weights);
#else
  const Integers low = (Integers)((Words)weights << 16) >> 16;
  return sum + (values & 0xffff) * low + (values >> 16) * (weights >> 16);  // values are not negative
#endif
}

TS_INLINE Integers load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return (Integers)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__) && TS_LANES == 8 && !defined(TS_EMULATE)
  return (Integers)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  return __builtin_convertvector(*reinterpret_cast<const UnalignedBytes*>(p), Integers);
#endif
}

// Values of 0 to 255, as uint8.
TS_INLINE void store_bytes(uint8_t* p, Integers v) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v));
#elif defined(__AVX2__) && TS_LANES == 8 && !defined(TS_EMULATE)
  const __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(shorts, shorts));
#elif defined(__SSE2__) && TS_LANES == 4
  const __m128i shorts = _mm_packs_epi32((__m128i)v, (__m128i)v), bytes = _mm_packus_epi16(shorts, shorts);
  const int32_t word = _mm_cvtsi128_si32(bytes);
  memcpy(p, &word, sizeof word);
#else
  *reinterpret_cast<UnalignedBytes*>(p) = __builtin_convertvector(v, Bytes);
#endif
}
template <int Vectors>
TS_INLINE void store_bytes(uint8_t* p, const Integers (&v)[Vectors]) {
#if defined(__AVX2__) && TS_LANES == 8 && !defined(TS_EMULATE)
  if constexpr (Vectors == 2) {  // packs work within halves of a register: its middle words change places
    const __m256i shorts = _mm256_packs_epi32((__m256i)v[0], (__m256i)v[1]);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_shuffle_epi32(bytes, 0b11'01'10'00));
    return;
  }
#endif
  TS_UNROLL for (int j = 0; j < Vectors; j++) store_bytes(p + j * kLanes, v[j]);
}

// The same as operands of the next product.
TS_INLINE void store_operands8(int16_t* p, Integers v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)v));
#elif defined(__AVX2__) && TS_LANES == 8 && !defined(TS_EMULATE)
  const __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), shorts);
#else
  *reinterpret_cast<UnalignedShorts*>(p) = __builtin_convertvector(v, Shorts);
#endif
}
TS_INLINE void store_operands8(uint8_t* p, Integers v) { store_bytes(p, v); }
TS_INLINE void store_operands8(int8_t* p, Integers v) { store_bytes(reinterpret_cast<uint8_t*>(p), v ^ 128); }

// Factors of `count` values, as they are multiplied.
static void convert8(Operand8* to, const uint8_t* from, int64_t count) {
  if constexpr (std::is_same_v<Operand8, uint8_t>) {
    memcpy(to, from, static_cast<size_t>(count));
  } else {
    int64_t i = 0;
#if defined(__AVX2__) && !defined(TS_EMULATE) && !defined(TS_VNNI)
    for (; i + 16 <= count; i += 16) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm256_cvtepu8_epi16(bytes));
    }
#endif
    for (; i < count; i++) to[i] = static_cast<Operand8>(from[i] - kOperandShift);
  }
}

// Adding 1.5 * 2^23 rounds a float of up to 2^22 to the nearest whole number, ties to even, which are then its lowest bits.
constexpr float kRounding = 12582912.0f;
constexpr int32_t kRoundingBits = 0x4b400000;

// What follows a sum, in float32: a multiply, an add, a clamp, a rounding, and the zero point, with no fused multiply-add.
struct Requantization {
  Vector low, high;
  Integers zero_point;  // less kRoundingBits

  explicit Requantization(float lowest, float highest, int32_t zero)
      : low(broadcast(lowest)), high(broadcast(highest)), zero_point(broadcast_word(zero - kRoundingBits)) {}

  __attribute__((always_inline)) Integers operator()(Vector v) const {
    return (Integers)(at_most(at_least(v, low), high) + kRounding) + zero_point;
  }
};

TS_INLINE Vector to_float(Integers v) { return __builtin_convertvector(v, Vector); }

// The first `room` floats of a vector, where there is no more: tensors of floats are padded less than those of uint8.
template <class Float>
TS_INLINE void store_floats(Float* p, Vector v, int64_t room) {
  if (room >= kLanes) return store(p, v);
  for (int64_t i = 0; i < room; i++) put(p + i, v[i]);
}

}  // namespace ts::TS_ISA
