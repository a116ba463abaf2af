// Which part of a window lies on the image, and not on padding.
#pragma once

#include <algorithm>

#include "../engine/operation.h"

namespace ts {

// Kernel rows [first, last).
struct KernelRows {
  int64_t first, last;
};

// Kernel rows that lie on the image for a row of the output; there may be none.
static inline KernelRows rows_inside(const ts_window& window, int64_t in_height, int64_t output_row) {
  const int64_t top = output_row * window.stride_height - window.pad_height, dilation = window.dilation_height;
  const int64_t below = in_height - top;  // kernel rows kh with kh * dilation < below
  const int64_t first = top < 0 ? std::min((-top + dilation - 1) / dilation, window.kernel_height) : 0;
  const int64_t last = std::min(window.kernel_height, below <= 0 ? 0 : (below + dilation - 1) / dilation);
  return {first, std::max(first, last)};
}

}  // namespace ts
