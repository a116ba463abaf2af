// The vector type that all kernels are written in: GCC's and Clang's vector extension, as wide as the instruction set that this
// file is compiled for. One source serves SSE2, AVX2, AVX-512 and NEON. Tensors hold float or Bfloat16; a load converts to
// float, all arithmetic is in float, and a store rounds.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__AVX2__) && (!defined(TS_EMULATE) || TS_LANES == 8)
#include <immintrin.h>
#endif

#include "../engine/operation.h"

#ifndef TS_ISA
#error "compile with -DTS_ISA=name -DTS_LANES=floats"
#endif

#define TS_INLINE static inline __attribute__((always_inline))
#define TS_UNROLL _Pragma("GCC unroll 32")

namespace ts::TS_ISA {

constexpr int kLanes = TS_LANES;
typedef float Vector __attribute__((vector_size(TS_LANES * 4)));
typedef int32_t Mask __attribute__((vector_size(TS_LANES * 4)));
// A vector at any address: the caller's tensors and packed weights need not be aligned.
typedef float Unaligned __attribute__((vector_size(TS_LANES * 4), aligned(4), may_alias));

TS_INLINE Vector load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
TS_INLINE void store(float* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }

// The upper half of a float: its sign and exponent, and 7 bits of its fraction.
struct Bfloat16 {
  uint16_t bits;
};
typedef uint32_t Words __attribute__((vector_size(TS_LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(TS_LANES * 2)));
typedef uint16_t UnalignedHalves __attribute__((vector_size(TS_LANES * 2), aligned(2), may_alias));

// Conversion between 16 and 32 bits as one instruction: GCC makes five of __builtin_convertvector. The masked forms of the
// intrinsics, with all lanes on, avoid a warning of GCC 12 about its own header.
TS_INLINE Words longer(Halves h) {
#if defined(__AVX512F__)
  return (Words)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)h);
#elif defined(__AVX2__) && TS_LANES == 8
  return (Words)_mm256_cvtepu16_epi32((__m128i)h);
#else
  return __builtin_convertvector(h, Words);
#endif
}
TS_INLINE Halves shorter(Words w) {
#if defined(__AVX512F__)
  return (Halves)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)w);
#else
  return __builtin_convertvector(w, Halves);
#endif
}

TS_INLINE Vector load(const Bfloat16* p) {
  return (Vector)(longer(*reinterpret_cast<const UnalignedHalves*>(p)) << 16);
}
// Rounds to the nearest, ties to even; NaN stays NaN.
TS_INLINE void put(Bfloat16* p, float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  p->bits = static_cast<uint16_t>(x == x ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : 0x7fc0);
}
TS_INLINE void put(float* p, float x) { *p = x; }
TS_INLINE float value_of(float x) { return x; }
TS_INLINE float value_of(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounds to Bfloat16 in the upper half of each word, ties to even; NaN stays NaN.
TS_INLINE Words round_to_bfloat16(Vector v) {
  const Words bits = (Words)v;
  const Words nearest = bits + 0x7fff + ((bits >> 16) & 1);
  const Words nan = Words{} + 0x7fc00000;
  return (v == v ? nearest : nan) & 0xffff0000u;
}

TS_INLINE void store(Bfloat16* p, Vector v) {
#ifdef TS_DOT
  const auto rounded = _mm512_cvtneps_pbh((__m512)v);
  memcpy(p, &rounded, sizeof rounded);
#else
  *reinterpret_cast<UnalignedHalves*>(p) = shorter(round_to_bfloat16(v) >> 16);
#endif
}

// Even/odd order: operations on single channels load 2 x kLanes Bfloat16 channels as two vectors, the even channels and the odd
// ones. They are the lower and the upper halves of words, and one shift or mask converts each to float.
template <class Element>
constexpr bool kEvenOdd = std::is_same_v<Element, Bfloat16> && kLanes == 16;  // 16 registers have no space for both

template <int Vectors, class Element>
TS_INLINE void load_channels(const Element* p, Vector (&to)[Vectors]) {
  if constexpr (Vectors == 2) {
    Words both;
    memcpy(&both, p, sizeof both);
    to[0] = (Vector)(both << 16);
    to[1] = (Vector)(both & 0xffff0000u);
  } else {
    to[0] = load(p);
  }
}

// Stores channels that load_channels loaded, in their original order.
template <int Vectors, class Element>
TS_INLINE void store_channels(Element* p, const Vector (&from)[Vectors]) {
  if constexpr (Vectors == 2) {
#ifdef TS_DOT
    const auto apart = _mm512_cvtne2ps_pbh((__m512)from[1], (__m512)from[0]);
    const __m512i places = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                            23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i both = _mm512_maskz_permutexvar_epi16(0xffffffff, places, (__m512i)apart);
#else
    const Words both = (round_to_bfloat16(from[0]) >> 16) | round_to_bfloat16(from[1]);
#endif
    memcpy(p, &both, sizeof both);
  } else {
    store(p, from[0]);
  }
}

// Stores channels that will be multiplied: as Operand values, rounded to Element. Two vectors stay in even/odd order; the rows
// of the weights are packed in the same order.
template <class Element, int Vectors, class Value>
TS_INLINE void store_operands(Value* p, const Vector (&from)[Vectors]) {
#ifdef TS_DOT
  if constexpr (Vectors == 2) {
    const auto both = _mm512_cvtne2ps_pbh((__m512)from[1], (__m512)from[0]);
    memcpy(p, &both, sizeof both);
    return;
  }
#endif
  TS_UNROLL for (int v = 0; v < Vectors; v++) {
    if constexpr (std::is_same_v<Element, Value>) {
      store(p + v * kLanes, from[v]);
    } else {
      store(p + v * kLanes, (Vector)round_to_bfloat16(from[v]));
    }
  }
}

template <int... Lane>
TS_INLINE Vector splat(float x, std::integer_sequence<int, Lane...>) {
  return Vector{(static_cast<void>(Lane), x)...};  // `Vector{} + x` would be an addition: it turns -0 to 0
}
TS_INLINE Vector broadcast(float x) { return splat(x, std::make_integer_sequence<int, kLanes>()); }

// Packed weights are read in words of four bytes: one float, or two neighbouring Bfloat16.
template <class Element>
constexpr int64_t kInWord = static_cast<int64_t>(sizeof(float) / sizeof(Element));
typedef float Word __attribute__((aligned(2), may_alias));
typedef float UnalignedWords __attribute__((vector_size(TS_LANES * 4), aligned(2), may_alias));
TS_INLINE Vector load_words(const Word* p) { return *reinterpret_cast<const UnalignedWords*>(p); }

// Type of the pixels' values in a matrix product. With AVX512-BF16 or AMX, Bfloat16 is multiplied directly, two values of a word
// at once. Elsewhere a tile's values are converted to float once, and a word of weights is multiplied in two steps.
#if defined(TS_DOT) || defined(TS_TILES)
template <class Element>
using Operand = Element;
#else
template <class Element>
using Operand = float;
#endif

// Steps in which a word of weights is multiplied: two where each of its values is converted to float.
template <class Element>
constexpr int64_t kSteps = kInWord<Element> / kInWord<Operand<Element>>;

// The weights of one step: floats, or words of two Bfloat16.
template <class Element>
TS_INLINE Vector weights_of(const Word* p, int64_t step) {
  if constexpr (kSteps<Element> == 1) return load_words(p);
  const Words both = (Words)load_words(p);
  return (Vector)(step == 0 ? both << 16 : both & 0xffff0000u);
}

template <class Element>
TS_INLINE Vector accumulate(Vector sum, Vector pixel, Vector weight) {
#ifdef TS_DOT
  if constexpr (std::is_same_v<Element, Bfloat16>) {
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pixel, (__m512bh)weight);
  }
#endif
  return sum + pixel * weight;
}

// Comparisons with NaN are false, so NaN passes through both, as through torch.clamp.
TS_INLINE Vector at_least(Vector x, Vector low) { return low > x ? low : x; }
TS_INLINE Vector at_most(Vector x, Vector high) { return high < x ? high : x; }

// Whether a lane is NaN. Callers sum vectors times zero: the sum is NaN where any value was not finite.
TS_INLINE bool has_nan(Vector x) {
  float lanes[kLanes];
  memcpy(lanes, &x, sizeof lanes);
  bool found = false;
  for (float lane : lanes) found |= lane != lane;
  return found;
}

// exp by range reduction to [-ln2/2, ln2/2] and a polynomial of degree 6 (relative error below 1e-7), scaled by the
// exponent's bits. Arguments are clamped to where the result is a normal number.
TS_INLINE Vector exponential(Vector x) {
  Vector clamped = at_most(at_least(x, broadcast(-87.0f)), broadcast(88.0f));
  Vector n = clamped * 1.44269504f;
  // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number.
  n = (n + 12582912.0f) - 12582912.0f;
  Vector r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vector p = broadcast(1.0f / 720);
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  Mask bits = (__builtin_convertvector(n, Mask) + 127) << 23;
  Vector power;
  memcpy(&power, &bits, sizeof power);
  Vector result = p * power;
  // Overflow gives infinity, so that a sigmoid's tail is exactly zero; NaN stays NaN.
  result = x > 88.7f ? broadcast(std::numeric_limits<float>::infinity()) : result;
  return x == x ? result : x;
}

TS_INLINE Vector sigmoid(Vector x) { return 1.0f / (1.0f + exponential(-x)); }
TS_INLINE Vector tangent(Vector x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

// erf by Abramowitz and Stegun 7.1.26: absolute error below 1.5e-7.
TS_INLINE Vector error_function(Vector x) {
  Vector a = x < 0.0f ? -x : x;
  Vector t = 1.0f / (1.0f + 0.3275911f * a);
  Vector p = broadcast(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  Vector y = 1.0f - p * t * exponential(-(a * a));
  return x < 0.0f ? -y : y;
}

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|). The logarithm is an inverse hyperbolic tangent, log(1 + y) =
// 2 artanh(y / (2 + y)), whose series converges fast for 0 <= y <= 1.
TS_INLINE Vector softplus(Vector x) {
  const Vector y = exponential(x < 0.0f ? x : -x), s = y / (2.0f + y), square = s * s;
  Vector p = broadcast(1.0f / 13);
  p = p * square + 1.0f / 11;
  p = p * square + 1.0f / 9;
  p = p * square + 1.0f / 7;
  p = p * square + 1.0f / 5;
  p = p * square + 1.0f / 3;
  p = p * square + 1.0f;
  return (x > 0.0f ? x : (x == x ? Vector{} : x)) + 2.0f * s * p;
}

TS_INLINE Vector square_root(Vector x) {
  float lanes[kLanes];
  memcpy(lanes, &x, sizeof lanes);
  for (float& lane : lanes) lane = std::sqrt(lane);
  memcpy(&x, lanes, sizeof lanes);
  return x;
}

TS_INLINE Vector activate(Vector x, const ts_act& act) {
  switch (act.kind) {
    case TS_LEAKY_RELU: return x < 0.0f ? x * act.alpha : x;
    case TS_SILU: return x * sigmoid(x);
    case TS_HARDSWISH: return x * (at_most(at_least(x + 3.0f, broadcast(0)), broadcast(6.0f)) * (1.0f / 6));
    case TS_GELU: return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
    case TS_GELU_TANH: return 0.5f * x * (1.0f + tangent(0.79788456f * (x + 0.044715f * x * x * x)));
    case TS_SIGMOID: return sigmoid(x);
    case TS_TANH: return tangent(x);
    case TS_ELU: return x > 0.0f ? x : act.alpha * (exponential(x) - 1.0f);
    case TS_SOFTPLUS: return softplus(x);
    case TS_MISH: return x * tangent(softplus(x));
    case TS_EXP: return exponential(x);
    case TS_ABSOLUTE: return x < 0.0f ? -x : x;
    case TS_SQUARE_ROOT: return square_root(x);
    case TS_HARDSIGMOID: return at_most(at_least(x + 3.0f, broadcast(0)), broadcast(6.0f)) * (1.0f / 6);
    default: return at_most(at_least(x, broadcast(act.alpha)), broadcast(act.beta));
  }
}

// Micro-kernels clamp in registers. Other activations cost far more than reading the stored values again from cache, so float
// outputs get them in a second pass (activate_rest). Stored bfloat16 values are rounded already, so there the micro-kernel calls
// `activated` for each vector.
TS_INLINE ts_act clamp_of(const ts_act& act) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return act.kind == TS_CLAMP ? act : ts_act{TS_CLAMP, -kInfinity, kInfinity, 0};
}

// Whether a clamp has a finite bound.
TS_INLINE bool clamps(const ts_act& clamp) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return clamp.alpha > -kInfinity || clamp.beta < kInfinity;
}

template <class Element>
constexpr bool kActivatesLater = std::is_same_v<Element, float>;

__attribute__((noinline)) static Vector activated(Vector x, const ts_act& act) { return activate(x, act); }

static inline void activate_rest(float* values, int64_t count, const ts_act& act) {
  if (act.kind == TS_CLAMP) return;
  for (int64_t i = 0; i < count; i += kLanes) store(values + i, activate(load(values + i), act));
}

// Zeros in what pads the channels of some pixels to whole vectors: kernels multiply it by zero, so it must be finite.
template <class Element>
TS_INLINE void clear_channel_padding(const ts_operation& op, Element* to, int64_t pixels) {
  const int64_t first = op.out_channels, count = op.out_padded - first;
  if (count <= 0) return;
  for (int64_t p = 0; p < pixels; p++) {
    memset(to + p * op.out_stride + first, 0, sizeof(Element) * static_cast<size_t>(count));
  }
}

}  // namespace ts::TS_ISA
