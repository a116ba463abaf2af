// Convolutions of uint8 as tiles, as convolution.h makes them of floats: what some output rows are computed from is put
// together in scratch memory, as operands, then multiplied with the packed weights. Padded pixels hold the input's zero point.
#pragma once

#include "int8_depthwise.h"
#include "int8_gemm.h"

namespace ts::TS_ISA {

// From a pixel of a tile's matrix to the next, in operands; see `apart` in convolution.h.
static int64_t apart8(int64_t depth) {
  constexpr int64_t kCrowded = 1024, kLine = 64, kSize = static_cast<int64_t>(sizeof(Operand8));
  return depth + (depth * kSize % kCrowded == 0 ? kLine / kSize : 0);
}

static Operand8 padding_of(const ts_operation& op) {
  return static_cast<Operand8>(op.int8_convolution.input_zero_point - kOperandShift);
}

// The patches of a tile, one kernel row of all pixels of an output row after the other. Channels and depth are multiples
// of 4; beyond the input's channels lie values whose weights are 0.
static void gather_tile8(const ts_operation& op, const uint8_t* image, int64_t first_row, int64_t rows, Operand8* matrix,
                         int64_t stride) {
  const ts_window& window = op.int8_convolution.window;
  const int64_t channels = op.in_channels;
  const Operand8 padding = padding_of(op);
  for (int64_t pixel = 0; pixel < rows * op.out_width; pixel++) {
    const int64_t row = first_row + pixel / op.out_width, column = pixel % op.out_width;
    Operand8* to = matrix + pixel * stride;
    for (int64_t kh = 0; kh < window.kernel_height; kh++) {
      const int64_t y = row * window.stride_height - window.pad_height + kh * window.dilation_height;
      for (int64_t kw = 0; kw < window.kernel_width; kw++, to += channels) {
        const int64_t x = column * window.stride_width - window.pad_width + kw * window.dilation_width;
        if (y < 0 || y >= op.in_height || x < 0 || x >= op.in_width) {
          std::fill_n(to, channels, padding);
        } else {
          convert8(to, image + (y * op.in_width + x) * op.in_stride, channels);
        }
      }
    }
  }
}

// The input lines that a tile reads, with their padding: one kernel row of a pixel's patch is a run of values in them.
static void lay_out_lines8(const ts_operation& op, const uint8_t* image, int64_t first_row, int64_t lines, int64_t width,
                           Operand8* to) {
  const ts_window& window = op.int8_convolution.window;
  const int64_t channels = op.in_channels;
  const int64_t left = std::min(window.pad_width, width), inside = std::min(op.in_width, width - left);
  const Operand8 padding = padding_of(op);
  for (int64_t line = 0; line < lines; line++, to += width * channels) {
    const int64_t y = first_row * window.stride_height - window.pad_height + line;
    if (y < 0 || y >= op.in_height) {
      std::fill_n(to, width * channels, padding);
      continue;
    }
    const uint8_t* from = image + y * op.in_width * op.in_stride;
    Operand8* pixels = to + left * channels;
    std::fill_n(to, left * channels, padding);
    if (op.in_stride == channels) {
      convert8(pixels, from, inside * channels);
    } else {
      for (int64_t x = 0; x < inside; x++) convert8(pixels + x * channels, from + x * op.in_stride, channels);
    }
    std::fill_n(pixels + inside * channels, (width - left - inside) * channels, padding);
  }
}

// What the depthwise stage makes of a tile, in the order of the weights' rows: multiplier outermost.
static void filter_tile8(const ts_operation& op, const uint8_t* image, int64_t first_row, int64_t rows, Operand8* matrix,
                         int64_t stride, char* columns) {
  const ts_int8_convolution& convolution = op.int8_convolution;
  const int64_t channels = convolution.depth / convolution.depth_multiplier;
  const int64_t filters = channels / kByteChannels * convolution.window.kernel_width *
                          column_words(convolution.window) * kColumnWord;
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t m = 0; m < convolution.depth_multiplier; m++) {
      ts_requantization result = convolution.depthwise;
      result.initial += m * channels;
      result.multiplier += m * channels;
      result.offset += m * channels;
      filter_row8(op, convolution.window, convolution.input_zero_point,
                  static_cast<const char*>(convolution.depthwise_weights) + m * filters, result, channels, 1, image,
                  first_row + row, columns, nullptr, matrix + row * op.out_width * stride + m * channels, stride, channels);
    }
  }
}

// All images' tiles; where the input is the matrix, all pixels of the batch are one image's.
static int64_t convolution_tiles8(const ts_operation& op) {
  const ts_int8_convolution& convolution = op.int8_convolution;
  const bool pointwise = convolution.source == TS_FROM_POINTWISE;
  const int64_t rows = pointwise ? op.batch * op.out_height * op.out_width : op.out_height;
  return (pointwise ? 1 : op.batch) * ((rows + convolution.tile_rows - 1) / convolution.tile_rows);
}

// Tasks are (split, image, tile), as in convolution.h.
static int64_t convolution_tasks8(const ts_operation& op) {
  return convolution_tiles8(op) * op.int8_convolution.channel_splits;
}

template <class Out>
static void convolve8_to(const ts_operation& op, uint8_t* workspace, Out* output, int64_t task) {
  const ts_int8_convolution& convolution = op.int8_convolution;
  const ts_window& window = convolution.window;
  constexpr int64_t kSize = static_cast<int64_t>(sizeof(Operand8));
  const int64_t panels = (convolution.out_vectors + kVectors - 1) / kVectors;
  const int64_t all_tiles = convolution_tiles8(op), splits = convolution.channel_splits;
  const int64_t split = task / all_tiles, tile = task % all_tiles;
  const int64_t first = panels * split / splits, last = panels * (split + 1) / splits;
  const int64_t depth = convolution.depth;
  const void* again = static_cast<const char*>(convolution.weights) + first * (depth / kWordOperands) * kPanelBytes;
  auto multiply = [&](const Matrix<Operand8>& matrix, int64_t begin, bool last_tile) {
    const uint8_t* residual = op.second_input < 0 ? nullptr : workspace + op.second_input + begin * op.second_stride;
    multiply_tile8(op, matrix, output + begin * op.out_stride, residual, first, last,
                   last_tile ? convolution.next_weights : again);
  };
  if (convolution.source == TS_FROM_POINTWISE) {
    const int64_t total = op.batch * op.out_height * op.out_width;
    const int64_t begin = tile * convolution.tile_rows, pixels = std::min(convolution.tile_rows, total - begin);
    const uint8_t* from = workspace + op.input + begin * op.in_stride;
    Matrix<Operand8> matrix{nullptr, op.in_stride, pixels};
    if constexpr (std::is_same_v<Operand8, uint8_t>) {
      matrix.values = reinterpret_cast<const Operand8*>(from);  // the branch is checked for other operands, too
    } else {
      const int64_t stride = apart8(depth);
      auto* room = static_cast<Operand8*>(scratch(pixels * stride * kSize));
      for (int64_t p = 0; p < pixels; p++) convert8(room + p * stride, from + p * op.in_stride, depth);
      matrix = {room, stride, pixels};
    }
    return multiply(matrix, begin, begin + pixels == total);
  }
  const int64_t tiles = (op.out_height + convolution.tile_rows - 1) / convolution.tile_rows;
  const int64_t image = tile / tiles, row = tile % tiles * convolution.tile_rows;
  const int64_t rows = std::min(convolution.tile_rows, op.out_height - row), pixels = rows * op.out_width;
  const uint8_t* from = workspace + op.input + image * op.in_height * op.in_width * op.in_stride;
  Matrix<Operand8> matrix{};
  if (convolution.source == TS_FROM_ROW_VIEW) {
    const int64_t lines = (rows - 1) * window.stride_height + (window.kernel_height - 1) * window.dilation_height + 1;
    const int64_t width = (op.out_width - 1) * window.stride_width + window.kernel_width, line = width * op.in_channels;
    auto* room = static_cast<Operand8*>(scratch(lines * line * kSize));
    lay_out_lines8(op, from, row, lines, width, room);
    matrix = {room, window.stride_width * op.in_channels, op.out_width, rows, window.stride_height * line,
              window.kernel_height, window.dilation_height * line};
  } else {
    const int64_t stride = apart8(depth), bytes = (pixels * stride * kSize + 63) / 64 * 64;
    const bool filtered = convolution.source == TS_FROM_DEPTHWISE;
    char* room = static_cast<char*>(scratch(bytes + (filtered ? columns_bytes(window, op.out_width, 1) : 0)));
    auto* operands = reinterpret_cast<Operand8*>(room);
    if (filtered) {
      filter_tile8(op, from, row, rows, operands, stride, room + bytes);
    } else {
      gather_tile8(op, from, row, rows, operands, stride);
    }
    matrix = {operands, stride, pixels};
  }
  multiply(matrix, (image * op.out_height + row) * op.out_width, row + rows == op.out_height);
}

static void convolve8(const ts_operation& op, uint8_t* workspace, int64_t task) {
  uint8_t* output = workspace + op.output;
  switch (op.int8_convolution.result.output) {
    case TS_FLOAT32: return convolve8_to(op, workspace, reinterpret_cast<float*>(output), task);
    case TS_BFLOAT16: return convolve8_to(op, workspace, reinterpret_cast<Bfloat16*>(output), task);
    default: convolve8_to(op, workspace, output, task);
  }
}

}  // namespace ts::TS_ISA
