// The measured peak of one thread, for rooflines: independent multiply-adds in registers, and reading memory.
#pragma once

#include "amx_gemm.h"

namespace ts::TS_ISA {

// Independent accumulators. Two multiply-adds a cycle with a latency of four or five cycles need ten, dot products of bfloat16
// need more. 16 registers hold 12 beside the operands.
constexpr int kChains = kRows > 8 ? 20 : 12;

// Floating-point operations of a round, two for a multiply-add.
template <class Element>
constexpr int64_t kRound = 2 * kChains * kLanes * kInWord<Operand<Element>>;

// Does `rounds` rounds of multiply-adds in registers. Returns their sum, so that the compiler does not remove them.
template <class Element>
static float multiply_add(int64_t rounds) {
  Vector sum[kChains];
  TS_UNROLL for (int i = 0; i < kChains; i++) sum[i] = broadcast(static_cast<float>(i));
  // volatile: the compiler must not compute the rounds itself. The values keep the sums normal numbers for any number of rounds.
  volatile float nearly_one = 0.9999f, small = 1e-4f;
  const Vector factor = broadcast(nearly_one), term = broadcast(small);
  for (int64_t round = 0; round < rounds; round++) {
    TS_UNROLL for (int i = 0; i < kChains; i++) {
      sum[i] = std::is_same_v<Element, float> ? sum[i] * factor + term : accumulate<Element>(sum[i], factor, term);
    }
  }
  float total = 0;
  for (const Vector& each : sum) {
    for (int lane = 0; lane < kLanes; lane++) total += each[lane];
  }
  return total;
}

#ifdef TS_TILES
template <>
constexpr int64_t kRound<Bfloat16> = 2 * 4 * kTile * kTile * kTileDepth;

// Four tile products a round, one for each tile of accumulators.
template <>
float multiply_add<Bfloat16>(int64_t rounds) {
  alignas(64) float sums[kTile * kTile] = {};
  const TileShapes shapes = shapes_for(kTilePixels);
  written(sums);
  written(&shapes);
  _tile_loadconfig(&shapes);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, sums, 64);
  _tile_loadd(5, sums, 64);
  _tile_loadd(6, sums, 64);
  _tile_loadd(7, sums, 64);
  for (int64_t round = 0; round < rounds; round++) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_release();
  return sums[0];
}
#endif

// Reads `floats` values, a multiple of four vectors, and returns their sum.
static float read_through(const float* from, int64_t floats) {
  Vector sum[4] = {};
  for (int64_t i = 0; i < floats; i += 4 * kLanes) {
    TS_UNROLL for (int j = 0; j < 4; j++) sum[j] += load(from + i + j * kLanes);
  }
  float total = 0;
  for (int lane = 0; lane < kLanes; lane++) total += sum[0][lane] + sum[1][lane] + sum[2][lane] + sum[3][lane];
  return total;
}

}  // namespace ts::TS_ISA
