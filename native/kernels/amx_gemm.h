// The matrix product of bfloat16 by AMX. An AMX tile register holds 16 pixels x 16 channels of float32 accumulators; one
// instruction adds the product of 16 x 32 values and 32 x 16 weights to it. Everything else goes to multiply_panels in gemm.h.
//
// "AMX tile" is a register here; the tile of convolution.h is some output rows of an image.
#pragma once

#include "gemm.h"

#ifdef TS_TILES
#ifdef TS_EMULATE
#include "emulated_amx.h"
#else
#include <immintrin.h>
#endif
#endif

namespace ts::TS_ISA {

#ifdef TS_TILES

// A block: AMX tiles 0 to 3 accumulate, two by two; 4 and 5 hold pixels, 6 and 7 weights. Each product needs one load.
constexpr int64_t kTile = 16;                  // pixels of an AMX tile, and channels
constexpr int64_t kTileDepth = 32;             // values of K in one product
constexpr int64_t kTilePixels = 2 * kTile;     // of a block
constexpr int64_t kStep = kTileDepth / kInWord<Bfloat16>;  // words
constexpr uintptr_t kLine = 64;                // bytes of a cache line
static_assert(kPanel == 2 * kTile, "a panel is two tiles wide");

// Palette 1 of Intel's "Intel Architecture Instruction Set Extensions", chapter on AMX: rows and bytes of a row.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// A compiler barrier. The compiler does not know how much memory the AMX intrinsics read (of the shapes it assumes eight bytes),
// so all pending writes must reach memory before them.
TS_INLINE void written(const void* memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

// Shapes of the AMX tiles for a block of `pixels`. The upper tiles have the larger half.
static TileShapes shapes_for(int64_t pixels) {
  TileShapes shapes;
  const uint8_t first = static_cast<uint8_t>((pixels + 1) / 2), second = static_cast<uint8_t>(pixels / 2);
  const uint8_t rows[8] = {first, first, second, second, first, second, kTile, kTile};
  for (int i = 0; i < 8; i++) {
    if (!rows[i]) continue;  // a block of one pixel has no lower tiles
    shapes.rows[i] = rows[i];
    shapes.bytes[i] = 64;
  }
  return shapes;
}

// sums[i][j] = sum_k A[i][k] B[k][j] for the pixels of a block and the channels of a panel, where k counts the `words` of each
// of `runs` runs.
static void tile_kernel(const Bfloat16* A, const Matrix<Bfloat16>& matrix, int64_t pixels, const Word* weights,
                        int64_t runs, int64_t words, uintptr_t prefetch_ptr, uintptr_t prefetch_lines, float* sums) {
  constexpr int64_t weight_stride = kPanel * static_cast<int64_t>(sizeof(float));
  const int64_t lower_offset = (pixels + 1) / 2 * matrix.stride;
  const int64_t stride = matrix.stride * static_cast<int64_t>(sizeof(Bfloat16));
  const bool two = pixels > 1;
  written(A);
  _tile_zero(0);
  _tile_zero(1);
  if (two) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t run = 0; run < runs; run++, A += matrix.run_stride) {
    for (int64_t word = 0; word < words; word += kStep, weights += kStep * kPanel) {
      for (uintptr_t line = 0; line < prefetch_lines; line++, prefetch_ptr += kLine) {
        __builtin_prefetch(reinterpret_cast<const void*>(prefetch_ptr), 0, 2);
      }
      _tile_loadd(6, weights, weight_stride);
      _tile_loadd(7, weights + kTile, weight_stride);
      _tile_loadd(4, A + word * kInWord<Bfloat16>, stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (!two) continue;
      _tile_loadd(5, A + lower_offset + word * kInWord<Bfloat16>, stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  float* below = sums + (pixels + 1) / 2 * kPanel;
  _tile_stored(0, sums, weight_stride);
  _tile_stored(1, sums + kTile, weight_stride);
  if (two) {
    _tile_stored(2, below, weight_stride);
    _tile_stored(3, below + kTile, weight_stride);
  }
}

// As `multiply_panels`.
template <class Out>
static void multiply_panels_by_amx(const ts_operation& op, const Matrix<Bfloat16>& matrix, Out* out,
                              const Bfloat16* residual, int64_t first, int64_t last, const void* next) {
  const int64_t words = op.convolution.depth / kInWord<Bfloat16>, pixels = matrix.pixels;
  const int64_t run_words = words / matrix.runs;
  const int64_t blocks = (pixels + kTilePixels - 1) / kTilePixels;
  const int64_t least = pixels / blocks, larger = pixels % blocks;  // the first `larger` blocks have a pixel more
  const TileShapes shapes = shapes_for(least), larger_shapes = shapes_for(least + 1);
  // The blocks of a panel together prefetch the next one.
  const uintptr_t panel_lines = static_cast<uintptr_t>(kStep * kPanel) * sizeof(float) / kLine;
  const uintptr_t all_blocks = static_cast<uintptr_t>(blocks * matrix.rows);
  const uintptr_t prefetch_lines = (panel_lines + all_blocks - 1) / all_blocks;
  const ts_act act = op.activation, clamp = clamp_of(act);
  const Vector low = broadcast(clamp.alpha), high = broadcast(clamp.beta);
  alignas(64) float sums[kTilePixels * kPanel];
  written(&shapes);
  written(&larger_shapes);
  for (int64_t panel = first; panel < last; panel++) {
    const Word* B = static_cast<const Word*>(op.convolution.weights) + panel * words * kPanel;
    uintptr_t prefetch_ptr = reinterpret_cast<uintptr_t>(panel + 1 < last ? B + words * kPanel : next);
    const int64_t vectors = std::min<int64_t>(kVectors, op.convolution.out_vectors - panel * kVectors);
    const float* bias = op.convolution.bias + panel * kPanel;
    for (int64_t row = 0; row < matrix.rows; row++) {
      const auto [first_run, last_run] = runs_inside(op, matrix, row);
      const Bfloat16* A = matrix.values + row * matrix.row_stride + first_run * matrix.run_stride;
      const Word* weights = B + first_run * run_words * kPanel;
      int64_t begin = row * pixels;
      for (int64_t block = 0; block < blocks; block++) {
        const int64_t count = least + (block < larger);
        if (block == 0 || block == larger) _tile_loadconfig(block < larger ? &larger_shapes : &shapes);
        tile_kernel(A, matrix, count, weights, last_run - first_run, run_words, prefetch_ptr, prefetch_lines, sums);
        prefetch_ptr += static_cast<uintptr_t>(words / kStep) * prefetch_lines * kLine;
        for (int64_t p = 0; p < count; p++) {
          Out* to = out + (begin + p) * op.out_stride + panel * kPanel;
          const Bfloat16* branch = residual ? residual + (begin + p) * op.second_stride + panel * kPanel : nullptr;
          for (int64_t j = 0; j < vectors; j++) {
            Vector sum = load(sums + p * kPanel + j * kLanes) + load(bias + j * kLanes);
            if (branch) sum += load(branch + j * kLanes);
            store(to + j * kLanes, act.kind == TS_CLAMP ? at_most(at_least(sum, low), high) : activated(sum, act));
          }
        }
        A += count * matrix.stride;
        begin += count;
      }
    }
  }
  _tile_release();
}

#endif

// Whether a tile's values are converted to float before they are multiplied.
template <class Element>
constexpr bool kWidened = !std::is_same_v<Element, Operand<Element>>;

// Clears padding channels that became NaN, among output channels [begin, end): their weights are zero, and 0 × ∞ is NaN. The
// next product would spread it, as it reads whole vectors.
template <class Out>
static void clear_padding(const ts_operation& op, Out* out, int64_t pixels, int64_t begin, int64_t end) {
  const ts_convolution& conv = op.convolution;
  const int64_t channels = op.out_channels / conv.channel_blocks, stride = op.out_stride;
  const int64_t block = conv.out_vectors * kLanes / conv.channel_blocks;  // AMX pads to 32 channels, two vectors
  if (channels == block) return;
  for (int64_t b = 0; b < conv.channel_blocks; b++) {
    for (int64_t c = channels / kLanes * kLanes; c < block; c += kLanes) {
      Out* vector = out + b * block + c;
      if (b * block + c < begin || b * block + c >= end) continue;
      Vector sum{};
      for (int64_t p = 0; p < pixels; p++) sum += load(vector + p * stride) * 0.0f;
      if (!has_nan(sum)) continue;
      for (int64_t p = 0; p < pixels; p++) {
        for (int64_t i = std::max<int64_t>(channels - c, 0); i < kLanes; i++) vector[p * stride + i] = Out{};
      }
    }
  }
}

// Multiplies a tile's matrix with panels [first, last) of the weights, and clears the padding.
template <class Element, class Out>
static void multiply(const ts_operation& op, const Matrix<Operand<Element>>& matrix, Out* out, const Element* residual,
                     int64_t first, int64_t last, const void* next) {
#ifdef TS_TILES
  if constexpr (std::is_same_v<Element, Bfloat16>) {
    multiply_panels_by_amx(op, matrix, out, residual, first, last, next);
  } else
#endif
  multiply_panels<Element>(op, matrix, out, residual, first, last, next);
  clear_padding(op, out, matrix.rows * matrix.pixels, first * kPanel, last * kPanel);
}

}  // namespace ts::TS_ISA
