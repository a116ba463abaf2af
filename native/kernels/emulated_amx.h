// AMX in plain C++, to test amx_gemm.h on processors without it. Each function does what Intel documents for the instruction and
// aborts on any misuse. The macros at the end have the names of the compiler's intrinsics.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace ts::emulated {

struct Tile {
  int rows, bytes;
  uint8_t data[16][64];
};
struct Tiles {
  bool configured;
  Tile tile[8];
};
inline thread_local Tiles tiles{};

inline void require(bool holds) {
  if (!holds) std::abort();
}

inline Tile& at(int number) {
  require(tiles.configured && number >= 0 && number < 8 && tiles.tile[number].rows > 0);
  return tiles.tile[number];
}

inline void load_config(const void* memory) {
  const uint8_t* bytes = static_cast<const uint8_t*>(memory);
  require(bytes[0] == 1 && bytes[1] == 0);
  tiles = Tiles{};
  tiles.configured = true;
  for (int i = 0; i < 8; i++) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * i, sizeof row_bytes);
    tiles.tile[i].bytes = row_bytes;
    tiles.tile[i].rows = bytes[48 + i];
    require(row_bytes <= 64 && bytes[48 + i] <= 16 && (row_bytes > 0) == (bytes[48 + i] > 0));
  }
}

inline void zero(int number) { std::memset(at(number).data, 0, sizeof tiles.tile[number].data); }

inline void load(int number, const void* base, int64_t stride) {
  Tile& tile = at(number);
  std::memset(tile.data, 0, sizeof tile.data);
  for (int row = 0; row < tile.rows; row++) {
    std::memcpy(tile.data[row], static_cast<const uint8_t*>(base) + row * stride, static_cast<size_t>(tile.bytes));
  }
}

inline void store(int number, void* base, int64_t stride) {
  const Tile& tile = at(number);
  for (int row = 0; row < tile.rows; row++) {
    std::memcpy(static_cast<uint8_t*>(base) + row * stride, tile.data[row], static_cast<size_t>(tile.bytes));
  }
}

inline float value(const uint8_t* bytes, int half) {
  uint16_t bits;
  std::memcpy(&bits, bytes + 2 * half, sizeof bits);
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float result;
  std::memcpy(&result, &word, sizeof result);
  return result;
}

inline void multiply(int sums, int left, int right) {
  Tile &c = at(sums), &a = at(left), &b = at(right);
  require(c.rows == a.rows && c.bytes == b.bytes && a.bytes == 4 * b.rows);
  for (int row = 0; row < c.rows; row++) {
    for (int k = 0; k < b.rows; k++) {
      for (int column = 0; column < c.bytes / 4; column++) {
        float sum;
        std::memcpy(&sum, c.data[row] + 4 * column, sizeof sum);
        for (int half = 0; half < 2; half++) {
          sum += value(a.data[row] + 4 * k, half) * value(b.data[k] + 4 * column, half);
        }
        std::memcpy(c.data[row] + 4 * column, &sum, sizeof sum);
      }
    }
  }
}

}  // namespace ts::emulated

#define _tile_loadconfig(memory) ts::emulated::load_config(memory)
#define _tile_release() (ts::emulated::tiles = ts::emulated::Tiles{})
#define _tile_zero(tile) ts::emulated::zero(tile)
#define _tile_loadd(tile, base, stride) ts::emulated::load(tile, base, stride)
#define _tile_stored(tile, base, stride) ts::emulated::store(tile, base, stride)
#define _tile_dpbf16ps(sums, left, right) ts::emulated::multiply(sums, left, right)
