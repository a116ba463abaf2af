// Compiled once for each instruction set, with -DTS_ISA=name. A set that adds nothing to float32 runs float32 operations by the
// set that -DTS_FLOAT_SET names, and one that adds nothing to bfloat16 runs those by the set that -DTS_BFLOAT16_SET names.
#include "kernels.h"

#include <utility>

#include "convolution.h"
#include "elementwise.h"
#include "matrix_product.h"
#include "normalize.h"
#include "int8_kernels.h"
#include "peak.h"
#include "resample.h"
#include "simple.h"
#include "strided_copy.h"

#define TS_TEXT_(x) #x
#define TS_TEXT(x) TS_TEXT_(x)

#ifdef TS_FLOAT_SET
namespace ts::TS_FLOAT_SET {
extern const Kernels kernels;
}
#endif
#ifdef TS_BFLOAT16_SET
namespace ts::TS_BFLOAT16_SET {
extern const Kernels kernels;
}
#endif

namespace ts::TS_ISA {

static int64_t tasks(const ts_operation& op) {
  if (op.precision == TS_UINT8) return int8_tasks(op);
  switch (op.kind) {
    case TS_CONVOLUTION: return convolution_tasks(op);
    case TS_IMPORT: return op.batch * op.in_height;
    case TS_MEAN: return op.batch;
    case TS_MATRIX_PRODUCT: return matrix_product_tasks(op);
    case TS_STRIDED_COPY: return op.strided_copy.sizes[0] * op.strided_copy.sizes[1];
    case TS_NORMALIZE:
      if (!op.normalize.group_channels) return op.batch * op.out_height;
      return op.batch * ((op.out_channels + op.normalize.chunk - 1) / op.normalize.chunk);
    default: return op.batch * op.out_height;
  }
}

template <class Element>
static void run_tasks(const ts_operation& op, Element* workspace, const float* external, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; task++) {
    switch (op.kind) {
      case TS_IMPORT: import_row(op, workspace, external, task); break;
      case TS_CONVOLUTION: convolve(op, workspace, task); break;
      case TS_DEPTHWISE: filter(op, workspace, task); break;
      case TS_POOL_MAX: pool_row<true>(op, workspace, task); break;
      case TS_POOL_AVERAGE: pool_row<false>(op, workspace, task); break;
      case TS_MEAN: mean_image(op, workspace, task); break;
      case TS_ADD: add_row(op, workspace, task); break;
      case TS_SCALE: scale_row(op, workspace, task); break;
      case TS_ACTIVATE: activate_row(op, workspace, task); break;
      case TS_COPY: copy_row(op, workspace, task); break;
      case TS_REPAIR_NONFINITE: repair_row(op, workspace, task); break;
      case TS_ELEMENTWISE: combine_task(op, workspace, task); break;
      case TS_RESAMPLE: resample_row(op, workspace, task); break;
      case TS_STRIDED_COPY: copy_strided(op, workspace, task); break;
      case TS_NORMALIZE: normalize(op, workspace, task); break;
      case TS_SOFTMAX: softmax_row(op, workspace, task); break;
      case TS_MATRIX_PRODUCT: matrix_product(op, workspace, task); break;
    }
  }
}

static void run(const ts_operation& op, void* workspace, const float* external, int64_t begin, int64_t end) {
  if (op.precision == TS_UINT8) return run_int8(op, workspace, external, begin, end);
#ifdef TS_BFLOAT16_SET
  return TS_BFLOAT16_SET::kernels.run(op, workspace, external, begin, end);
#else
  if (op.precision == TS_BFLOAT16) return run_tasks(op, static_cast<Bfloat16*>(workspace), external, begin, end);
#ifdef TS_FLOAT_SET
  TS_FLOAT_SET::kernels.run(op, workspace, external, begin, end);
#else
  run_tasks(op, static_cast<float*>(workspace), external, begin, end);
#endif
#endif
}

#ifdef TS_TILES
constexpr Kernels::Shape kNarrow{kLanes, kPanel, kTilePixels, kTileDepth, kTileDepth, kBytes<Operand<Bfloat16>>,
                                 kEvenOdd<Bfloat16>, kPairedTail<Bfloat16>, 0};
#else
constexpr Kernels::Shape kNarrow{kLanes, kPanel, kRows, kLanes, kInWord<Bfloat16>, kBytes<Operand<Bfloat16>>,
                                 kEvenOdd<Bfloat16>, kPairedTail<Bfloat16>, 0};
#endif

constexpr Kernels::Shape kInt8Shape{kLanes, kPanel, kRows, kByteChannels, 4, static_cast<int64_t>(sizeof(Operand8)),
                                    0, 0, kOperandShift};

extern const Kernels kernels;
const Kernels kernels{TS_TEXT(TS_ISA),
                      {{kLanes, kPanel, kRows, kLanes, 1, kFloat, kEvenOdd<float>, kPairedTail<float>, 0}, kNarrow, kInt8Shape},
                      tasks,
                      run,
                      {multiply_add<float>, multiply_add<Bfloat16>, multiply_add_int8},
                      {kRound<float>, kRound<Bfloat16>, kInt8Round},
                      read_through};

}  // namespace ts::TS_ISA
