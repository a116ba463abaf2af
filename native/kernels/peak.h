// What the machine can do at best, measured: multiply-adds that never wait for each other or for memory, and a plain read.
#pragma once

#include "tiles.h"

namespace ts::TS_ISA {

// Sums that are independent of each other: two multiply-adds a cycle that take four or five cycles each need ten of them, and
// dot products of bfloat16 more. A set of 16 registers has no room for as many.
constexpr int kChains = kRows > 8 ? 20 : 12;

// Floating-point operations of a round, two for a multiply-add.
template <class Element>
constexpr int64_t kRound = 2 * kChains * kLanes * kInWord<Factor<Element>>;

// Does `rounds` rounds of multiply-adds in registers; the result keeps the compiler from leaving them out.
template <class Element>
static float multiply_add(int64_t rounds) {
  Vector sum[kChains];
  TS_UNROLL for (int i = 0; i < kChains; i++) sum[i] = broadcast(static_cast<float>(i));
  // Values that the compiler cannot know, and that stay ordinary numbers however many rounds there are.
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

// Four products of tiles a round, as many as a micro-kernel has sums.
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

// Reads `floats` values, a multiple of four vectors, once.
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
