// What the machine can do at best, measured: multiply-adds that never wait for each other or for memory, and a plain read.
#pragma once

#include "vector.h"

namespace ts::TS_ISA {

// Sums that are independent of each other: two multiply-adds a cycle that take four or five cycles each need ten of them.
constexpr int kChains = 12;

// Does `rounds` x kChains x kLanes multiply-adds in registers; the result keeps the compiler from leaving them out.
static float multiply_add(int64_t rounds) {
  Vector sum[kChains];
  TS_UNROLL for (int i = 0; i < kChains; i++) sum[i] = broadcast(static_cast<float>(i));
  // Values that the compiler cannot know, and that stay ordinary numbers however many rounds there are.
  volatile float nearly_one = 0.9999f, small = 1e-4f;
  const Vector factor = broadcast(nearly_one), term = broadcast(small);
  for (int64_t round = 0; round < rounds; round++) {
    TS_UNROLL for (int i = 0; i < kChains; i++) sum[i] = sum[i] * factor + term;
  }
  float total = 0;
  for (const Vector& each : sum) {
    for (int lane = 0; lane < kLanes; lane++) total += each[lane];
  }
  return total;
}

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
