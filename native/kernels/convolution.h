// Convolutions as tiles. A tile is some output rows of an image (or some pixels, for a pointwise convolution):
//
//     1. make the tile's left matrix in the thread's scratch memory, where it stays in cache (see ts_matrix_source)
//     2. multiply it with panels of packed weights (gemm.h, amx_gemm.h)
//
// In a depthwise separable convolution, step 1 is the depthwise stage, so its result never reaches memory. kernels.cpp calls
// convolve and filter, once for each task.
#pragma once

#include "depthwise.h"
#include "gemm.h"
#include "scratch.h"
#include "amx_gemm.h"

namespace ts::TS_ISA {

template <class Element>
constexpr int64_t kBytes = static_cast<int64_t>(sizeof(Element));
constexpr int64_t kFloat = kBytes<float>;

// Values from a pixel of a tile's matrix to the next, of which the first `depth` are used. L1 has 64 sets of 8 or 12 cache
// lines; pixels a multiple of 1,024 bytes apart use 4 of the sets or fewer, and the 14 that a micro-kernel reads at once evict
// each other. One unused cache line between pixels costs less. pixel_stride in strides.py does the same for tensors.
template <class Element>
static int64_t conflict_free_stride(int64_t depth) {
  constexpr int64_t kConflictBytes = 1024, kCacheLine = 64;
  return depth + (depth * kBytes<Element> % kConflictBytes == 0 ? kCacheLine / kBytes<Element> : 0);
}

// Bytes of input rows that stay in L1 while output rows are computed from them: half of an L1 of 48 KB. The rest is for the
// weights and the output.
constexpr int64_t kRowsBytes = 24 * 1024;

template <class Element>
static void depthwise_tile(const ts_operation& op, const Element* image, int64_t first_row, int64_t rows,
                        Operand<Element>* matrix, int64_t stride) {
  const ts_convolution& conv = op.convolution;
  const ts_window& window = conv.window;
  const int64_t taps = window.kernel_height * window.kernel_width, channels = conv.depth / conv.depth_multiplier;
  // Compute the channels in chunks for which the kernel_height input rows of an output row fit kRowsBytes: the next output row
  // reads most of them again, from L1. Chunks below min_chunk read pieces of a pixel that are too short to be fast; a kernel of
  // five rows rereads a row more often, so smaller chunks still pay. If min_chunk does not fit, one chunk has all channels.
  const int64_t min_chunk = window.kernel_height > 3 ? 32 : 64;
  const int64_t fitting = kRowsBytes / (window.kernel_height * op.in_width * kBytes<Element>) / min_chunk * min_chunk;
  const int64_t chunk = fitting ? fitting : channels;
  for (int64_t begin = 0; begin < channels; begin += chunk) {
    const int64_t end = std::min(begin + chunk, channels);
    for (int64_t row = 0; row < rows; row++) {
      for (int64_t m = 0; m < conv.depth_multiplier; m++) {
        const Filter<Element> filter{image, conv.depthwise_weights + m * taps * channels, conv.depthwise_bias + m * channels, channels, 1,
                                     nullptr, 0, conv.depthwise_activation, &window, begin, end};
        filter_row<Role::kMatrix>(op, filter, first_row + row, matrix + row * op.out_width * stride + m * channels, stride);
      }
    }
  }
}

// Copies a run of Bytes to 2 x Bytes bytes as its first and its last Bytes, which may overlap.
template <int64_t Bytes>
TS_INLINE void copy_ends(char* to, const char* from, int64_t bytes) {
  memcpy(to, from, Bytes);
  memcpy(to + bytes - Bytes, from + bytes - Bytes, Bytes);
}

// Copies a run of a few values inline; calling memcpy would cost more than the copy.
template <class Element>
TS_INLINE void copy_run(Element* to_values, const Element* from_values, int64_t count) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(Element));
  char* to = reinterpret_cast<char*>(to_values);
  const char* from = reinterpret_cast<const char*>(from_values);
  if (bytes >= 32) {
    for (int64_t i = 0; i + 64 <= bytes; i += 32) memcpy(to + i, from + i, 32);
    return copy_ends<32>(to + (bytes / 32 - 1) * 32, from + (bytes / 32 - 1) * 32, 32 + bytes % 32);
  }
  if (bytes >= 16) return copy_ends<16>(to, from, bytes);
  if (bytes >= 8) return copy_ends<8>(to, from, bytes);
  if (bytes >= 4) return copy_ends<4>(to, from, bytes);
  memcpy(to, from, sizeof(Element));
}

// im2col: copies the patch of every pixel of a tile, one kernel row of an output row's pixels after the other. Fills each
// patch with zeros up to K, which may be padded.
template <class Element>
static void im2col_tile(const ts_operation& op, const Element* image, int64_t first_row, int64_t rows, Element* matrix,
                        int64_t stride) {
  const ts_window& window = op.convolution.window;
  const int64_t channels = op.in_channels, depth = op.convolution.depth, in_stride = op.in_stride, in_width = op.in_width;
  const int64_t width = window.kernel_width, step = window.stride_width, dilation = window.dilation_width;
  const int64_t pad = window.pad_width;
  const int64_t out_width = op.out_width, run = width * channels;
  // Columns [begin, end) whose windows lie inside the image.
  const int64_t begin = std::min((pad + step - 1) / step, out_width);
  const int64_t room = in_width - 1 - (width - 1) * dilation + pad;
  const int64_t end = std::max(begin, std::min(out_width, room < 0 ? 0 : room / step + 1));
  for (int64_t row = first_row; row < first_row + rows; row++) {
    Element* pixels = matrix + (row - first_row) * out_width * stride;
    if (const int64_t used = window.kernel_height * run; used < depth) {
      for (int64_t column = 0; column < out_width; column++) {
        std::fill_n(pixels + column * stride + used, depth - used, Element{});
      }
    }
    for (int64_t kh = 0; kh < window.kernel_height; kh++, pixels += run) {
      const int64_t y = row * window.stride_height - window.pad_height + kh * window.dilation_height;
      if (y < 0 || y >= op.in_height) {
        for (int64_t column = 0; column < out_width; column++) std::fill_n(pixels + column * stride, run, Element{});
        continue;
      }
      const Element* line = image + y * in_width * in_stride;
      auto tap_by_tap = [&](int64_t column) {
        Element* to = pixels + column * stride;
        for (int64_t kw = 0; kw < width; kw++, to += channels) {
          const int64_t x = column * step - pad + kw * dilation;
          if (x < 0 || x >= in_width) {
            std::fill_n(to, channels, Element{});
          } else {
            copy_run(to, line + x * in_stride, channels);
          }
        }
      };
      // Without dilation and channel padding, a kernel row of a patch is one run of neighbouring values.
      const bool runs = dilation == 1 && in_stride == channels;
      for (int64_t column = 0; column < (runs ? begin : out_width); column++) tap_by_tap(column);
      if (!runs) continue;
      const Element* from = line + (begin * step - pad) * in_stride;
      for (int64_t column = begin; column < end; column++, from += step * in_stride) {
        copy_run(pixels + column * stride, from, run);
      }
      for (int64_t column = end; column < out_width; column++) tap_by_tap(column);
    }
  }
}

// Row view: copies the input rows that a tile reads, with zeros for the padding at their sides. A kernel row of a pixel's patch
// is then a run of values in them, and neighbouring patches overlap in memory.
template <class Element>
static void lay_out_rows(const ts_operation& op, const Element* image, int64_t first_row, int64_t in_rows, int64_t width,
                          Operand<Element>* to) {
  const ts_window& window = op.convolution.window;
  const int64_t channels = op.in_channels, in_stride = op.in_stride;
  const int64_t left = std::min(window.pad_width, width), inside = std::min(op.in_width, width - left);
  for (int64_t in_row = 0; in_row < in_rows; in_row++, to += width * channels) {
    const int64_t y = first_row * window.stride_height - window.pad_height + in_row;
    if (y < 0 || y >= op.in_height) continue;  // runs_inside leaves it out
    const Element* from = image + y * op.in_width * in_stride;
    Operand<Element>* pixels = to + left * channels;
    std::fill_n(to, left * channels, Operand<Element>{});
    if (in_stride == channels) {
      convert(pixels, from, inside * channels);
    } else {
      for (int64_t x = 0; x < inside; x++) convert(pixels + x * channels, from + x * in_stride, channels);
    }
    std::fill_n(pixels + inside * channels, (width - left - inside) * channels, Operand<Element>{});
  }
}

// Tiles of all images. A pointwise convolution divides the pixels of the whole batch, as if they were one image.
static int64_t convolution_tiles(const ts_operation& op) {
  const int64_t rows = op.convolution.source == TS_FROM_POINTWISE ? op.batch * op.out_height * op.out_width : op.out_height;
  const int64_t tiles = (rows + op.convolution.tile_rows - 1) / op.convolution.tile_rows;
  return (op.convolution.source == TS_FROM_POINTWISE ? 1 : op.batch) * tiles;
}

// Tasks are numbered (channel split, image, tile): a thread gets neighbouring tasks, which share a split and so its weights.
static int64_t convolution_tasks(const ts_operation& op) { return convolution_tiles(op) * op.convolution.channel_splits; }

template <class Element, class Out>
static void convolve_to(const ts_operation& op, Element* workspace, Out* output, int64_t task) {
  const ts_convolution& conv = op.convolution;
  const ts_window& window = conv.window;
  const int64_t panels = (conv.out_vectors + kVectors - 1) / kVectors;
  const int64_t all_tiles = conv.channel_splits > 1 ? convolution_tiles(op) : task + 1;
  const int64_t split = task / all_tiles;
  const int64_t first = panels * split / conv.channel_splits, last = panels * (split + 1) / conv.channel_splits;
  const int64_t tile = task % all_tiles;
  const void* first_panel = static_cast<const Element*>(conv.weights) + first * conv.depth * kPanel;
  if (conv.source == TS_FROM_POINTWISE) {
    const int64_t total = op.batch * op.out_height * op.out_width;
    const int64_t begin = tile * conv.tile_rows, pixels = std::min(conv.tile_rows, total - begin);
    const Element* residual = op.second_input < 0 ? nullptr : workspace + op.second_input + begin * op.second_stride;
    const Element* from = workspace + op.input + begin * op.in_stride;
    Matrix<Operand<Element>> matrix{nullptr, op.in_stride, pixels};
    constexpr int64_t kPage = 4096;  // pixels so far apart map to one set of L1: 64 sets of 64 bytes
    if (kWidened<Element> || (kRows > 8 && op.in_stride * kBytes<Element> % kPage == 0)) {
      const int64_t stride = conflict_free_stride<Operand<Element>>(conv.depth);
      auto* room = static_cast<Operand<Element>*>(scratch(pixels * stride * kBytes<Operand<Element>>));
      for (int64_t p = 0; p < pixels; p++) convert(room + p * stride, from + p * op.in_stride, conv.depth);
      matrix = {room, stride, pixels};
    } else if constexpr (!kWidened<Element>) {
      matrix.values = from;
    }
    return multiply(op, matrix, output + begin * op.out_stride, residual, first, last,
                    begin + pixels < total ? first_panel : conv.next_weights);
  }
  const int64_t tiles = (op.out_height + conv.tile_rows - 1) / conv.tile_rows;
  const int64_t image = tile / tiles, row = tile % tiles * conv.tile_rows;
  const int64_t rows = std::min(conv.tile_rows, op.out_height - row), pixels = rows * op.out_width;
  const Element* from = workspace + op.input + image * op.in_height * op.in_width * op.in_stride;
  const int64_t begin = (image * op.out_height + row) * op.out_width;
  const Element* residual = op.second_input < 0 ? nullptr : workspace + op.second_input + begin * op.second_stride;
  Matrix<Operand<Element>> matrix{};
  if (conv.source == TS_FROM_ROW_VIEW) {
    const int64_t in_rows = (rows - 1) * window.stride_height + (window.kernel_height - 1) * window.dilation_height + 1;
    const int64_t width = (op.out_width - 1) * window.stride_width + window.kernel_width, in_row = width * op.in_channels;
    auto* room = static_cast<Operand<Element>*>(scratch(in_rows * in_row * kBytes<Operand<Element>>));
    lay_out_rows(op, from, row, in_rows, width, room);
    matrix = {room, window.stride_width * op.in_channels, op.out_width, rows, window.stride_height * in_row,
              window.kernel_height, window.dilation_height * in_row, row};
  } else {
    const int64_t stride = conflict_free_stride<Operand<Element>>(conv.depth);
    const int64_t values = pixels * stride;
    // im2col patches of bfloat16 that will be converted to float32 lie behind the memory for the float32 values.
    const bool widened = kWidened<Element> && conv.source == TS_FROM_IM2COL;
    char* room = static_cast<char*>(scratch(values * (kBytes<Operand<Element>> + (widened ? kBytes<Element> : 0))));
    auto* factors = reinterpret_cast<Operand<Element>*>(room);
    if (conv.source == TS_FROM_DEPTHWISE) {
      depthwise_tile(op, from, row, rows, factors, stride);
    } else {
      auto* patches = reinterpret_cast<Element*>(room + (widened ? values * kBytes<Operand<Element>> : 0));
      im2col_tile(op, from, row, rows, patches, stride);
      if constexpr (kWidened<Element>) convert(factors, patches, values);
    }
    matrix = {factors, stride, pixels};
  }
  multiply(op, matrix, output + begin * op.out_stride, residual, first, last,
           row + rows < op.out_height ? first_panel : conv.next_weights);
}

template <class Element>
static void convolve(const ts_operation& op, Element* workspace, int64_t task) {
  Element* output = workspace + op.output;
  if constexpr (std::is_same_v<Element, Bfloat16>) {
    if (op.convolution.float_output) return convolve_to(op, workspace, reinterpret_cast<float*>(output), task);
  }
  convolve_to(op, workspace, output, task);
}

// A depthwise convolution that is not fused; a task is an output row. With a depth multiplier there is an operation for each of
// its blocks of output channels.
template <class Element>
static void filter(const ts_operation& op, Element* workspace, int64_t task) {
  const int64_t image = task / op.out_height, row = task % op.out_height;
  const int64_t begin = task * op.out_width;
  const Element* residual = op.second_input < 0 ? nullptr : workspace + op.second_input + begin * op.second_stride;
  const Filter<Element> filter{workspace + op.input + image * op.in_height * op.in_width * op.in_stride,
                               op.depthwise.weights, op.depthwise.bias, op.depthwise.channels,
                               op.depthwise.summed_groups,
                               residual, op.second_stride, op.activation,
                               &op.depthwise.window};
  filter_row<Role::kTensor>(op, filter, row, workspace + op.output + begin * op.out_stride, op.out_stride);
}

}  // namespace ts::TS_ISA
