// Normalization by statistics of the activations themselves (layer, group and instance norm), and softmax.
//
//     output = (input - mean) / sqrt(variance + epsilon) · weight[c] + bias[c]
//
// Layer norm (Ba et al., arXiv 1607.06450) takes mean and variance over the channels of a pixel. Group norm (Wu and He,
// arXiv 1803.08494) takes them over all pixels of an image and the channels of a group; with a group for each channel it
// is instance norm (Ulyanov et al., arXiv 1607.08022). The variance is that of the population, from a second pass over
// centred values.
#pragma once

#include <algorithm>

#include "scratch.h"
#include "vector.h"

namespace ts::TS_ISA {

// Sum of the lanes; neighbours are added first, so that the rounding error grows with the logarithm of their number.
TS_INLINE float sum_of_lanes(Vector v) {
  float lanes[kLanes];
  memcpy(lanes, &v, sizeof lanes);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// The last vector of a pixel with zeros instead of the lanes that are no channels.
TS_INLINE Vector valid_lanes(Vector v, int64_t channels) {
  float lanes[kLanes];
  memcpy(lanes, &v, sizeof lanes);
  for (int64_t i = std::max<int64_t>(channels, 0); i < kLanes; i++) lanes[i] = 0.0f;
  memcpy(&v, lanes, sizeof lanes);
  return v;
}

// A task is an output row; each pixel is normalized over its channels.
template <class Element>
static void normalize_pixels(const ts_operation& op, Element* workspace, int64_t task) {
  const Element* from = workspace + op.input + task * op.in_width * op.in_stride;
  Element* to = workspace + op.output + task * op.out_width * op.out_stride;
  const int64_t channels = op.out_channels, whole = channels / kLanes * kLanes;
  const float count = static_cast<float>(channels);
  for (int64_t x = 0; x < op.out_width; x++, from += op.in_stride, to += op.out_stride) {
    Vector sum{};
    for (int64_t c = 0; c < whole; c += kLanes) sum += load(from + c);
    if (whole < channels) sum += valid_lanes(load(from + whole), channels - whole);
    const float mean = sum_of_lanes(sum) / count;
    Vector squares{};
    for (int64_t c = 0; c < whole; c += kLanes) {
      const Vector centred = load(from + c) - mean;
      squares += centred * centred;
    }
    if (whole < channels) {
      const Vector centred = valid_lanes(load(from + whole) - mean, channels - whole);
      squares += centred * centred;
    }
    const float factor = 1.0f / std::sqrt(sum_of_lanes(squares) / count + op.normalize.epsilon);
    for (int64_t c = 0; c < channels; c += kLanes) {
      const Vector value = (load(from + c) - mean) * factor * load(op.normalize.weight + c) + load(op.normalize.bias + c);
      store(to + c, activate(value, op.activation));
    }
  }
  clear_channel_padding(op, workspace + op.output + task * op.out_width * op.out_stride, op.out_width);
}

// A task is `normalize.chunk` channels of an image: whole groups, in whole vectors. Sums are kept for each channel and
// row by row, so that a large image loses no digits.
template <class Element>
static void normalize_groups(const ts_operation& op, Element* workspace, int64_t task) {
  const ts_normalize& norm = op.normalize;
  const int64_t chunks = (op.out_channels + norm.chunk - 1) / norm.chunk;
  const int64_t image = task / chunks, first = task % chunks * norm.chunk;
  const int64_t channels = std::min(norm.chunk, op.out_channels - first);
  const int64_t vectors = (channels + kLanes - 1) / kLanes, padded = vectors * kLanes;
  const int64_t pixels = op.in_height * op.in_width;
  const Element* from = workspace + op.input + image * pixels * op.in_stride + first;
  Element* to = workspace + op.output + image * pixels * op.out_stride + first;
  float* mean = static_cast<float*>(scratch(2 * padded * static_cast<int64_t>(sizeof(float))));
  float* factor = mean + padded;
  const float count = static_cast<float>(pixels * norm.group_channels);
  const auto over_groups = [&](float* values, auto finish) {
    for (int64_t c = 0; c < channels; c += norm.group_channels) {
      float sum = 0;
      for (int64_t i = c; i < c + norm.group_channels; i++) sum += values[i];
      std::fill(values + c, values + c + norm.group_channels, finish(sum));
    }
    std::fill(values + channels, values + padded, 0.0f);
  };
  const auto sum_pixels = [&](float* sums, auto term) {
    for (int64_t c = 0; c < padded; c += kLanes) {
      Vector sum{};
      for (int64_t row = 0; row < op.in_height; row++) {
        const Element* line = from + row * op.in_width * op.in_stride + c;
        Vector of_row{};
        for (int64_t x = 0; x < op.in_width; x++) of_row += term(load(line + x * op.in_stride), c);
        sum += of_row;
      }
      store(sums + c, sum);
    }
  };
  sum_pixels(mean, [](Vector value, int64_t) { return value; });
  over_groups(mean, [&](float sum) { return sum / count; });
  sum_pixels(factor, [&](Vector value, int64_t c) {
    const Vector centred = value - load(mean + c);
    return centred * centred;
  });
  over_groups(factor, [&](float sum) { return 1.0f / std::sqrt(sum / count + norm.epsilon); });
  for (int64_t pixel = 0; pixel < pixels; pixel++) {
    for (int64_t c = 0; c < padded; c += kLanes) {
      const Vector scaled = (load(from + pixel * op.in_stride + c) - load(mean + c)) * load(factor + c);
      const Vector value = scaled * load(norm.weight + first + c) + load(norm.bias + first + c);
      store(to + pixel * op.out_stride + c, activate(value, op.activation));
    }
  }
  if (first + channels == op.out_channels) clear_channel_padding(op, to - first, pixels);
}

template <class Element>
static void normalize(const ts_operation& op, Element* workspace, int64_t task) {
  if (op.normalize.group_channels) {
    normalize_groups(op, workspace, task);
  } else {
    normalize_pixels(op, workspace, task);
  }
}

// A task is an output row; softmax over the channels of each pixel. The largest value is subtracted first, so nothing
// overflows.
template <class Element>
static void softmax_row(const ts_operation& op, Element* workspace, int64_t task) {
  const Element* from = workspace + op.input + task * op.in_width * op.in_stride;
  Element* to = workspace + op.output + task * op.out_width * op.out_stride;
  const int64_t channels = op.out_channels, padded = (channels + kLanes - 1) / kLanes * kLanes;
  float* values = static_cast<float*>(scratch(padded * static_cast<int64_t>(sizeof(float))));
  for (int64_t x = 0; x < op.out_width; x++, from += op.in_stride, to += op.out_stride) {
    float largest = -std::numeric_limits<float>::infinity();
    bool nan = false;
    for (int64_t c = 0; c < channels; c++) {
      values[c] = value_of(from[c]);
      largest = std::max(largest, values[c]);
      nan |= values[c] != values[c];
    }
    std::fill(values + channels, values + padded, -std::numeric_limits<float>::infinity());
    Vector sum{};
    for (int64_t c = 0; c < padded; c += kLanes) {
      // A value 87 below the largest counts for nothing: exponential() would return the smallest normal number.
      const Vector shifted = load(values + c) - largest;
      const Vector power = shifted < -87.0f ? Vector{} : exponential(shifted);
      store(values + c, power);
      sum += power;
    }
    const float factor = nan ? std::numeric_limits<float>::quiet_NaN() : 1.0f / sum_of_lanes(sum);
    for (int64_t c = 0; c < padded; c += kLanes) store(to + c, load(values + c) * factor);
  }
  clear_channel_padding(op, workspace + op.output + task * op.out_width * op.out_stride, op.out_width);
}

}  // namespace ts::TS_ISA
