// What surrounds convolutions of uint8: quantization and its inverse, sums, products, pooling, means, lookup, copies. A vector
// is kLanes values; channels are padded to whole vectors, and what lies in the padding may be any uint8.
#pragma once

#include <algorithm>

#include "int8_vector.h"

namespace ts::TS_ISA {

// Values of a plane, `step` apart, become uint8: round_half_to_even(clamp(x * reciprocal)) + zero point. NaN becomes 0, as it
// does by PyTorch's conversion to uint8 on this project's processors.
TS_INLINE Integers quantized(Vector x, Vector reciprocal, const Requantization& requantize) {
  const Vector v = x * reciprocal;
  return v == v ? requantize(v) : Integers{};
}

static Requantization requantization_of(const ts_int8_elementwise& of) {
  return Requantization(of.low, of.high, of.out_zero_point);
}

// A task is an input row of the caller's tensor (N, C, H, W), of any strides.
static void quantize_external_row(const ts_operation& op, uint8_t* workspace, const float* external, int64_t task) {
  const ts_int8_elementwise& of = op.int8_elementwise;
  const int64_t image = task / op.in_height, row = task % op.in_height;
  const int64_t* strides = op.int8_elementwise.external.strides;
  const float* from = external + (of.external.first_image + image) * strides[0] + row * strides[2];
  uint8_t* to = workspace + op.output + task * op.in_width * op.out_stride;
  const Requantization requantize = requantization_of(of);
  const Vector reciprocal = broadcast(of.multiplier);
  for (int64_t c = 0; c < op.out_stride; c++) {
    for (int64_t x = 0; x < op.in_width; x += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, op.in_width - x);
      Vector values{};
      const float* at = from + c * strides[1] + x * strides[3];
      if (c >= op.in_channels) {
      } else if (count == kLanes && strides[3] == 1) {
        values = load(at);
      } else {
        for (int64_t i = 0; i < count; i++) values[i] = at[i * strides[3]];
      }
      uint8_t bytes[kLanes];
      store_bytes(bytes, quantized(values, reciprocal, requantize));
      for (int64_t i = 0; i < count; i++) to[(x + i) * op.out_stride + c] = bytes[i];
    }
  }
}

// The other operations' tasks are output rows; values of a pixel lie side by side.
template <class Float>
static void quantize_row(const ts_operation& op, uint8_t* workspace, int64_t task) {
  const ts_int8_elementwise& of = op.int8_elementwise;
  const auto* from = reinterpret_cast<const Float*>(workspace + op.input) + task * op.out_width * op.in_stride;
  uint8_t* to = workspace + op.output + task * op.out_width * op.out_stride;
  const Requantization requantize = requantization_of(of);
  const Vector reciprocal = broadcast(of.multiplier);
  const int64_t channels = op.in_channels;
  for (int64_t x = 0; x < op.out_width; x++, from += op.in_stride, to += op.out_stride) {
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) store_bytes(to + c, quantized(load(from + c), reciprocal, requantize));
    for (; c < channels; c++) to[c] = static_cast<uint8_t>(quantized(broadcast(value_of(from[c])), reciprocal, requantize)[0]);
  }
}

// Channels beyond the input's become zeros, as kernels of floats want them.
template <class Float>
static void dequantize_row(const ts_operation& op, uint8_t* workspace, int64_t task) {
  const ts_int8_elementwise& of = op.int8_elementwise;
  const uint8_t* from = workspace + op.input + task * op.out_width * op.in_stride;
  auto* to = reinterpret_cast<Float*>(workspace + op.output) + task * op.out_width * op.out_stride;
  const Vector scale = broadcast(of.multiplier);
  for (int64_t x = 0; x < op.out_width; x++, from += op.in_stride, to += op.out_stride) {
    int64_t c = 0;
    for (; c + kLanes <= op.in_channels; c += kLanes) store(to + c, to_float(load_bytes(from + c) - of.zero_point) * scale);
    for (; c < op.out_padded; c++) {
      const float value = c < op.in_channels ? static_cast<float>(from[c] - of.zero_point) : 0.0f;
      put(to + c, value * of.multiplier);
    }
  }
}

static void add_row8(const ts_operation& op, uint8_t* workspace, int64_t task) {
  const ts_int8_elementwise& of = op.int8_elementwise;
  const uint8_t* a = workspace + op.input + task * op.out_width * op.in_stride;
  const uint8_t* b = workspace + op.second_input + task * op.out_width * op.second_stride;
  uint8_t* to = workspace + op.output + task * op.out_width * op.out_stride;
  const Requantization requantize = requantization_of(of);
  const Vector first = broadcast(of.multiplier), second = broadcast(of.second_multiplier);
  for (int64_t x = 0; x < op.out_width; x++, a += op.in_stride, b += op.second_stride, to += op.out_stride) {
    for (int64_t c = 0; c < op.out_padded; c += kLanes) {
      const Vector one = to_float(load_bytes(a + c) - of.zero_point) * first;
      store_bytes(to + c, requantize(one + to_float(load_bytes(b + c) - of.second_zero_point) * second));
    }
  }
}

// The second input is one pixel for each image.
static void scale_row8(const ts_operation& op, uint8_t* workspace, int64_t task) {
  const ts_int8_elementwise& of = op.int8_elementwise;
  const uint8_t* from = workspace + op.input + task * op.out_width * op.in_stride;
  const uint8_t* factors = workspace + op.second_input + task / op.out_height * op.second_stride;
  uint8_t* to = workspace + op.output + task * op.out_width * op.out_stride;
  const Requantization requantize = requantization_of(of);
  const Vector multiplier = broadcast(of.multiplier);
  for (int64_t x = 0; x < op.out_width; x++, from += op.in_stride, to += op.out_stride) {
    for (int64_t c = 0; c < op.out_padded; c += kLanes) {
      const Integers value = load_bytes(from + c) - of.zero_point;
      const Vector product = to_float(value * (load_bytes(factors + c) - of.second_zero_point));
      store_bytes(to + c, requantize(product * multiplier));
    }
  }
}

static void look_up_row(const ts_operation& op, uint8_t* workspace, int64_t task) {
  const uint8_t* table = op.int8_elementwise.table;
  const uint8_t* from = workspace + op.input + task * op.out_width * op.in_stride;
  uint8_t* to = workspace + op.output + task * op.out_width * op.out_stride;
  for (int64_t x = 0; x < op.out_width; x++, from += op.in_stride, to += op.out_stride) {
    for (int64_t c = 0; c < op.out_padded; c++) to[c] = table[from[c]];
  }
}

// The sum of the values that lie on the image, less the zero point of each, or their maximum.
template <bool Max>
static void pool_row8(const ts_operation& op, uint8_t* workspace, int64_t task) {
  const ts_int8_elementwise& of = op.int8_elementwise;
  const ts_window& window = of.window;
  const int64_t image = task / op.out_height, row = task % op.out_height;
  const uint8_t* from = workspace + op.input + image * op.in_height * op.in_width * op.in_stride;
  uint8_t* to = workspace + op.output + task * op.out_width * op.out_stride;
  const Requantization requantize = requantization_of(of);
  const int64_t dh = Max ? window.dilation_height : 1, dw = Max ? window.dilation_width : 1;
  const int64_t top = row * window.stride_height - window.pad_height;
  for (int64_t column = 0; column < op.out_width; column++, to += op.out_stride) {
    const int64_t left = column * window.stride_width - window.pad_width;
    // Ceil mode may reach beyond the padding; that part counts for nothing in either convention.
    const int64_t bottom = std::min(top + window.kernel_height, op.in_height + window.pad_height);
    const int64_t right = std::min(left + window.kernel_width, op.in_width + window.pad_width);
    int64_t seen = 0;
    for (int64_t c = 0; c < op.out_padded; c += kLanes) {
      Integers result{};
      seen = 0;
      for (int64_t kh = 0; kh < window.kernel_height; kh++) {
        for (int64_t kw = 0; kw < window.kernel_width; kw++) {
          const int64_t y = top + kh * dh, x = left + kw * dw;
          if (y < 0 || y >= op.in_height || x < 0 || x >= op.in_width) continue;
          seen++;
          const Integers value = load_bytes(from + (y * op.in_width + x) * op.in_stride + c);
          result = Max ? (value > result ? value : result) : result + (value - of.zero_point);
        }
      }
      if (!Max) {
        const int64_t count = of.count_padding ? (bottom - top) * (right - left) : seen;
        const auto share = static_cast<float>(of.in_scale / (of.out_scale * static_cast<double>(count)));
        result = requantize(to_float(result) * share);
      }
      store_bytes(to + c, result);
    }
  }
}

// A task is an image.
static void mean_image8(const ts_operation& op, uint8_t* workspace, int64_t task) {
  const ts_int8_elementwise& of = op.int8_elementwise;
  const int64_t pixels = op.in_height * op.in_width;
  const uint8_t* from = workspace + op.input + task * pixels * op.in_stride;
  uint8_t* to = workspace + op.output + task * op.out_stride;
  const Requantization requantize = requantization_of(of);
  const auto share = static_cast<float>(of.in_scale / (of.out_scale * static_cast<double>(pixels)));
  for (int64_t c = 0; c < op.out_padded; c += kLanes) {
    Integers sum{};
    for (int64_t p = 0; p < pixels; p++) sum += load_bytes(from + p * op.in_stride + c) - of.zero_point;
    store_bytes(to + c, requantize(to_float(sum) * share));
  }
}

// Every stride-th pixel to a place among the channels. The channels that no copy fills are filled here, by the first copy.
static void copy_row8(const ts_operation& op, uint8_t* workspace, int64_t task) {
  const ts_int8_elementwise& of = op.int8_elementwise;
  const int64_t image = task / op.out_height, row = task % op.out_height;
  const uint8_t* from =
      workspace + op.input + (image * op.in_height + row * of.window.stride_height) * op.in_width * op.in_stride;
  uint8_t* to = workspace + op.output + task * op.out_width * op.out_stride;
  for (int64_t x = 0; x < op.out_width; x++, to += op.out_stride) {
    if (of.fills) memset(to, of.out_zero_point, static_cast<size_t>(op.out_padded));
    memcpy(to + of.channel_offset, from + x * of.window.stride_width * op.in_stride, static_cast<size_t>(op.in_channels));
  }
}

}  // namespace ts::TS_ISA
