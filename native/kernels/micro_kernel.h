// The innermost loop of every matrix product: blocks of a few pixels times one panel of packed weights.
//
//     out[i][j] = act(bias[j] + sum_k A[i][k] B[k][j] + residual[i][j])     for Rows pixels i, one panel's channels j
//
//     for each word k of the panel          four bytes a channel: one float32, or two neighbouring bfloat16
//         load the panel's row k            up to two vectors of weights
//         for each of the Rows pixels
//             broadcast A[i][k], and multiply-add it into that pixel's accumulators
//
// All accumulators stay in registers from the bias to the store; tests/runtime/test_registers.py reads the assembly. gemm.h
// calls it, panel by panel. It is instantiated for each pair of activation and output types, for 1 to kRows pixels (kRowsAlone
// where the panel has one vector), and, with AVX-512, for paired tails.
#pragma once

#include "paired_tail.h"
#include "vector.h"

namespace ts::TS_ISA {

// A panel is as many output channels as a micro-kernel computes at once: two vectors. Its kRows x 2 accumulators leave room
// in the register file for two weights and one broadcast pixel: 6 x 2 of 16 registers, 14 x 2 of 32.
constexpr int kVectors = 2;
constexpr int kPanel = kVectors * kLanes;
constexpr int kRows = TS_ROWS;

// The left matrix of a product. It has a row of K values for each output pixel, as `runs` runs of neighbouring values: one
// where the row lies in one piece, a run for each kernel row in a row view (see lay_out_rows in convolution.h).
template <class Value>
struct Matrix {
  const Value* values;
  int64_t stride;                       // from a pixel to the next of its output row
  int64_t pixels;                       // of an output row
  int64_t rows = 1, row_stride = 0;     // output rows
  int64_t runs = 1, run_stride = 0;
  int64_t first_row = 0;                // number of the first output row in the image
};

// One call of a micro-kernel.
template <class Element, class Out>
struct BlockParams {
  int64_t blocks;                 // blocks of Rows pixels, one after the other
  const Operand<Element>* A;      // first run of the first pixel
  int64_t pixel_stride;           // values from a pixel to the next
  int64_t runs, run_stride;       // runs of values, and values from a run to the next
  int64_t run_words;              // words of a run
  const Word* weights;            // the panel's rows that the first run meets
  uintptr_t prefetch_ptr;         // prefetched from here on; an integer, as it may leave the weights at their end
  uintptr_t prefetch_step;        // bytes for each word
  uintptr_t block_prefetch;       // bytes from a block's first prefetch to the next block's
  Out* out;
  int64_t out_stride;
  const float* bias;              // of the panel
  const Element* residual;        // at the first pixel and channel, or null
  int64_t residual_stride;
  ts_act activation;
};

// Multiplies blocks of Rows pixels. A pixel has Vectors vectors of channels; where Paired, it has one, and shares another one
// with its neighbour (see paired_tail.h).
//
// float32 outputs are stored without activations other than clamps; gemm.h applies those afterwards.
template <class Element, class Out, int Rows, int Vectors, bool Paired>
static void multiply_blocks(const BlockParams<Element, Out>& params) {
  constexpr int kOwn = Paired ? 1 : Vectors;
  constexpr int kPairs = Paired ? Rows / 2 : 0;
  // Local copies: a vector store may alias whatever a pointer reaches, so the compiler would read it again after each store.
  const ts_act act = params.activation, clamp = clamp_of(act);
  const Vector low = broadcast(clamp.alpha), high = broadcast(clamp.beta);
  const bool clamped = clamps(clamp);
  const Operand<Element>* A = params.A;
  const Word* const weights = params.weights;
  const float* const bias = params.bias;
  const Element* residual = params.residual;
  Out* out = params.out;
  const int64_t stride = params.pixel_stride, word_stride = stride / kInWord<Operand<Element>>;
  const int64_t runs = params.runs, run_stride = params.run_stride, words = params.run_words;
  const int64_t out_stride = params.out_stride, residual_stride = params.residual_stride;
  const uintptr_t prefetch_step = params.prefetch_step, block_prefetch = params.block_prefetch;
  uintptr_t block_ptr = params.prefetch_ptr;
  for (int64_t blocks = params.blocks; blocks > 0; blocks--, block_ptr += block_prefetch) {
    Vector sum[Rows][kOwn];
    [[maybe_unused]] Vector shared[kPairs + 1];
    TS_UNROLL for (int i = 0; i < Rows; i++) {
      // Stores of a block miss the cache one after the other; prefetched now, their lines are there when the sums are. For
      // bfloat16, which has half of the lines, computing the addresses costs more than the misses.
      if constexpr (!Paired && std::is_same_v<Out, float>) __builtin_prefetch(out + i * out_stride, 1, 3);
      TS_UNROLL for (int j = 0; j < kOwn; j++) sum[i][j] = load(bias + j * kLanes);
    }
    TS_UNROLL for (int i = 0; i < kPairs; i++) shared[i] = load(bias + kLanes);
    const Operand<Element>* run = A;
    const Word* panel = weights;
    uintptr_t prefetch_ptr = block_ptr;
    for (int64_t r = 0; r < runs; r++, run += run_stride, panel += words * kPanel) {
      const Word* pixels = reinterpret_cast<const Word*>(run);
      for (int64_t k = 0; k < words; k++, prefetch_ptr += prefetch_step) {
        __builtin_prefetch(reinterpret_cast<const void*>(prefetch_ptr), 0, 2);
        TS_UNROLL for (int step = 0; step < kSteps<Element>; step++) {
          const Word* value = pixels + k * kSteps<Element> + step;
          Vector weight[kVectors];
          TS_UNROLL for (int j = 0; j < (Paired ? 2 : Vectors); j++) {
            weight[j] = weights_of<Element>(panel + k * kPanel + j * kLanes, step);
          }
          if constexpr (Paired) {
            TS_UNROLL for (int i = 0; i < kPairs; i++) {
              const Vector left = broadcast(value[2 * i * word_stride]);
              const Vector right = broadcast(value[(2 * i + 1) * word_stride]);
              sum[2 * i][0] = accumulate<Element>(sum[2 * i][0], left, weight[0]);
              sum[2 * i + 1][0] = accumulate<Element>(sum[2 * i + 1][0], right, weight[0]);
              shared[i] = accumulate<Element>(shared[i], join_broadcasts(left, right), weight[1]);
            }
          } else {
            TS_UNROLL for (int i = 0; i < Rows; i++) {
              const Vector pixel = broadcast(value[i * word_stride]);
              TS_UNROLL for (int j = 0; j < Vectors; j++) sum[i][j] = accumulate<Element>(sum[i][j], pixel, weight[j]);
            }
          }
        }
      }
    }
    if (residual) {
      TS_UNROLL for (int i = 0; i < Rows; i++) {
        TS_UNROLL for (int j = 0; j < kOwn; j++) sum[i][j] += load(residual + i * residual_stride + j * kLanes);
      }
      TS_UNROLL for (int i = 0; i < kPairs; i++) {
        const Element* left = residual + 2 * i * residual_stride + kLanes;
        shared[i] += join_halves(load(left), load(left + residual_stride));
      }
      residual += Rows * residual_stride;
    }
    if (!kActivatesLater<Element> && act.kind != TS_CLAMP) {
      // Copy the accumulators: dynamic indexing would force the compiler to keep them in memory.
      Vector sums[Rows * kOwn + kPairs];
      TS_UNROLL for (int i = 0; i < Rows; i++) {
        TS_UNROLL for (int j = 0; j < kOwn; j++) sums[i * kOwn + j] = sum[i][j];
      }
      TS_UNROLL for (int i = 0; i < kPairs; i++) sums[Rows * kOwn + i] = shared[i];
      for (Vector& each : sums) each = activated(each, act);
      TS_UNROLL for (int i = 0; i < Rows; i++) {
        TS_UNROLL for (int j = 0; j < kOwn; j++) sum[i][j] = sums[i * kOwn + j];
      }
      TS_UNROLL for (int i = 0; i < kPairs; i++) shared[i] = sums[Rows * kOwn + i];
    } else if (clamped) {
      TS_UNROLL for (int i = 0; i < Rows; i++) {
        TS_UNROLL for (int j = 0; j < kOwn; j++) sum[i][j] = at_most(at_least(sum[i][j], low), high);
      }
      TS_UNROLL for (int i = 0; i < kPairs; i++) shared[i] = at_most(at_least(shared[i], low), high);
    }
    TS_UNROLL for (int i = 0; i < Rows; i++) {
      TS_UNROLL for (int j = 0; j < kOwn; j++) store(out + i * out_stride + j * kLanes, sum[i][j]);
    }
    TS_UNROLL for (int i = 0; i < kPairs; i++) {
      Out* left = out + 2 * i * out_stride + kLanes;
      store(left, half_of<0>(shared[i]));
      store(left + out_stride, half_of<1>(shared[i]));
    }
    A += Rows * stride;
    out += Rows * out_stride;
  }
}

}  // namespace ts::TS_ISA
