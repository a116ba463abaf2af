// The kernels on uint8 activations. Compiled once for each instruction set, without contraction to fused multiply-adds, so
// that every set and every compiler gives the same bits.
#include "int8_kernels.h"

#include "int8_convolution.h"
#include "int8_simple.h"

namespace ts::TS_ISA {

int64_t int8_tasks(const ts_operation& op) {
  switch (op.kind) {
    case TS_CONVOLUTION: return convolution_tasks8(op);
    case TS_IMPORT: return op.batch * op.in_height;
    case TS_MEAN: return op.batch;
    default: return op.batch * op.out_height;
  }
}

static void run_task(const ts_operation& op, uint8_t* workspace, const float* external, int64_t task) {
  const bool bfloat16 = op.int8_elementwise.other_precision == TS_BFLOAT16;
  switch (op.kind) {
    case TS_IMPORT: return quantize_external_row(op, workspace, external, task);
    case TS_CONVOLUTION: return convolve8(op, workspace, task);
    case TS_DEPTHWISE: return filter8(op, workspace, task);
    case TS_POOL_MAX: return pool_row8<true>(op, workspace, task);
    case TS_POOL_AVERAGE: return pool_row8<false>(op, workspace, task);
    case TS_MEAN: return mean_image8(op, workspace, task);
    case TS_ADD: return add_row8(op, workspace, task);
    case TS_SCALE: return scale_row8(op, workspace, task);
    case TS_COPY: return copy_row8(op, workspace, task);
    case TS_QUANTIZE:
      return bfloat16 ? quantize_row<Bfloat16>(op, workspace, task) : quantize_row<float>(op, workspace, task);
    case TS_DEQUANTIZE:
      return bfloat16 ? dequantize_row<Bfloat16>(op, workspace, task) : dequantize_row<float>(op, workspace, task);
    case TS_LOOK_UP: return look_up_row(op, workspace, task);
  }
}

void run_int8(const ts_operation& op, void* workspace, const float* external, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; task++) run_task(op, static_cast<uint8_t*>(workspace), external, task);
}

// As if the words changed: or the compiler would multiply once, and add that product every time.
TS_INLINE void changes(Integers& words) {
#if defined(__AVX512F__)
  __asm__ volatile("" : "+v"(words));
#elif defined(__SSE2__) && !defined(TS_EMULATE) && TS_LANES <= 8
  __asm__ volatile("" : "+x"(words));
#else
  __asm__ volatile("" : "+m"(words));
#endif
}

float multiply_add_int8(int64_t rounds) {
  Integers sum[kInt8Chains];
  TS_UNROLL for (int i = 0; i < kInt8Chains; i++) sum[i] = broadcast_word(i);
  Integers values = broadcast_word(1), weights = broadcast_word(1);
  changes(weights);
  for (int64_t round = 0; round < rounds; round++) {
    TS_UNROLL for (int i = 0; i < kInt8Chains; i++) {
      changes(values);
      sum[i] = dot(sum[i], values, weights);
    }
  }
  Integers total{};
  TS_UNROLL for (int i = 0; i < kInt8Chains; i++) total += sum[i];
  int32_t all = 0;
  for (int lane = 0; lane < kLanes; lane++) all ^= total[lane];
  return static_cast<float>(all);
}

}  // namespace ts::TS_ISA
