// Depthwise convolution of uint8, an output row at a time, 16 channels at a time.
//
// The input rows of the window are interleaved first: for each column, a word of each channel holds the channel's values in
// kWordOperands neighbouring kernel rows. A kernel 3 rows high takes one quad or two pairs. Then an instruction multiplies
// a whole column of the window, and no column needs to know of padding, dilation or the image's borders:
//   columns[x][word][channel of 16], where padded pixels hold the input's zero point
//   out[x][c] = requantize(initial[c] + sum_kw,word columns[x * stride + kw * dilation][word][c] W[kw][word][c])
#pragma once

#include <algorithm>

#include "int8_vector.h"
#include "scratch.h"
#include "window.h"

namespace ts::TS_ISA {

// Output pixels that are computed together. The usual widths (112, 56, 28, 14, 7) are multiples of it.
constexpr int kPixels8 = 7;
constexpr int64_t kColumnWord = kByteChannels * 4;  // bytes of a word of each channel

static int64_t column_words(const ts_window& window) {
  return (window.kernel_height + kWordOperands - 1) / kWordOperands;
}
static int64_t columns_seen(const ts_window& window, int64_t out_width) {
  return (out_width - 1) * window.stride_width + (window.kernel_width - 1) * window.dilation_width + 1;
}

// What the columns of `groups` groups of 16 channels take, in bytes.
static int64_t columns_bytes(const ts_window& window, int64_t out_width, int64_t groups) {
  return groups * columns_seen(window, out_width) * column_words(window) * kColumnWord;
}

// Values of kWordOperands rows, a word for each channel.
TS_INLINE void interleave_rows(char* to, const uint8_t* const (&rows)[4]) {
#if defined(__AVX2__) && !defined(TS_EMULATE) && !defined(TS_VNNI)
  if constexpr (kWordOperands == 2) {
    const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[0]));
    const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[1]));
    __m256i* words = reinterpret_cast<__m256i*>(to);
    _mm256_storeu_si256(words, _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(first, second)));
    _mm256_storeu_si256(words + 1, _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(first, second)));
    return;
  }
#endif
  constexpr int kBits = 32 / static_cast<int>(kWordOperands);
  TS_UNROLL for (int v = 0; v < kByteVectors; v++) {
    Words word{};
    TS_UNROLL for (int i = 0; i < kWordOperands; i++) word |= (Words)load_bytes(rows[i] + v * kLanes) << (i * kBits);
    if constexpr (kOperandShift != 0) word ^= 0x80808080u;  // quads of x - 128
    store_integers(to + v * kLanes * 4, (Integers)word);
  }
}

// The columns that an output row sees of 16 channels from `image` on.
static void lay_out_columns(const ts_operation& op, const ts_window& window, int64_t zero_point, const uint8_t* image,
                            int64_t row, char* to) {
  uint8_t padding[kByteChannels];
  memset(padding, static_cast<int>(zero_point), sizeof padding);
  const int64_t seen = columns_seen(window, op.out_width), words = column_words(window), pad = window.pad_width;
  const int64_t stride = op.in_stride, in_row = op.in_width * stride;
  const int64_t first = std::min(pad, seen), last = std::max(first, std::min(seen, pad + op.in_width));
  for (int64_t word = 0; word < words; word++) {
    const uint8_t* rows[4];
    int64_t steps[4];
    for (int64_t i = 0; i < 4; i++) {
      const int64_t kh = word * kWordOperands + i;
      const int64_t y = row * window.stride_height - window.pad_height + kh * window.dilation_height;
      const bool inside = kh < window.kernel_height && y >= 0 && y < op.in_height;
      rows[i] = inside ? image + y * in_row : padding;
      steps[i] = inside ? stride : 0;
    }
    const uint8_t* const nothing[4] = {padding, padding, padding, padding};
    char* at = to + word * kColumnWord;
    const int64_t column = words * kColumnWord;
    for (int64_t x = 0; x < first; x++, at += column) interleave_rows(at, nothing);
    for (int64_t x = first; x < last; x++, at += column) {
      interleave_rows(at, rows);
      TS_UNROLL for (int i = 0; i < kWordOperands; i++) rows[i] += steps[i];
    }
    for (int64_t x = last; x < seen; x++, at += column) interleave_rows(at, nothing);
  }
}

// What the pixels of an output row share, of 16 channels.
template <class Out>
struct Row8 {
  const char* columns;
  const char* weights;
  int64_t groups, group_bytes;  // of columns that are summed
  int64_t width, words, column;  // of the kernel; bytes of a column
  int64_t step, dilation;       // bytes to the column of the next pixel, and of the next kernel column
  const int32_t* initial;
  const float *multiplier, *offset;
  const uint8_t* residual;
  int64_t residual_stride;
  Out* out;
  int64_t out_stride;
  float residual_multiplier, low, high;
  int32_t residual_zero_point, zero_point;
  int64_t room;  // values of a pixel from the first channel on
};

// A vector of results, of which there is room for so many.
template <class Out>
TS_INLINE void put_result(Out* to, Vector v, const Requantization& requantize, int64_t room) {
  if constexpr (std::is_same_v<Out, float> || std::is_same_v<Out, Bfloat16>) {
    store_floats(to, at_most(at_least(v, requantize.low), requantize.high), room);
  } else {
    store_operands8(to, requantize(v));
  }
}

// A row in blocks of Pixels, the last of which begins early enough to end with the row.
template <int Pixels, class Out>
static void filter_pixels8(const Row8<Out>& shared, int64_t out_width) {
  const Row8<Out> row = shared;
  const Requantization requantize(row.low, row.high, row.zero_point);
  for (int vector = 0; vector < kByteVectors; vector++) {
    const int64_t channel = vector * kLanes, room = row.room - channel;
    if (room <= 0) return;
    const Integers start = load_integers(row.initial + channel);
    const Vector multiplier = load(row.multiplier + channel), offset = load(row.offset + channel);
    for (int64_t next = 0; next < out_width; next += Pixels) {
      const int64_t pixel = std::min(next, out_width - Pixels);
      Integers sum[Pixels];
      TS_UNROLL for (int p = 0; p < Pixels; p++) sum[p] = start;
      const char* weight = row.weights + channel * 4;
      const char* first = row.columns + pixel * row.step + channel * 4;
      for (int64_t group = 0; group < row.groups; group++, first += row.group_bytes) {
        const char* column = first;
        for (int64_t kw = 0; kw < row.width; kw++, column += row.dilation) {
          const char* word = column;
          for (int64_t w = 0; w < row.words; w++, word += kColumnWord, weight += kColumnWord) {
            const Integers weights = load_integers(weight);
            TS_UNROLL for (int p = 0; p < Pixels; p++) sum[p] = dot(sum[p], load_integers(word + p * row.step), weights);
          }
        }
      }
      Out* out = row.out + pixel * row.out_stride + channel;
      if (row.residual) {
        const uint8_t* residual = row.residual + pixel * row.residual_stride + channel;
        TS_UNROLL for (int p = 0; p < Pixels; p++) {
          const Vector branch = to_float(load_bytes(residual + p * row.residual_stride) - row.residual_zero_point);
          put_result(out + p * row.out_stride, to_float(sum[p]) * multiplier + offset + branch * row.residual_multiplier,
                     requantize, room);
        }
      } else {
        TS_UNROLL for (int p = 0; p < Pixels; p++) {
          put_result(out + p * row.out_stride, to_float(sum[p]) * multiplier + offset, requantize, room);
        }
      }
    }
  }
}

// One output row of all channels: `channels` of them, padded, in each of `summed` groups, whose columns are laid out in
// `columns`. Out is a uint8_t, an operand of the product that follows, or a float.
template <class Out>
static void filter_row8(const ts_operation& op, const ts_window& window, int64_t zero_point, const void* weights,
                        const ts_requantization& result, int64_t channels, int64_t summed, const uint8_t* image,
                        int64_t row, char* columns, const uint8_t* residual, Out* out, int64_t out_stride, int64_t room) {
  const int64_t words = column_words(window), column = words * kColumnWord;
  const int64_t group_bytes = columns_bytes(window, op.out_width, 1);
  const int64_t block_weights = summed * window.kernel_width * column;
  for (int64_t channel = 0; channel < channels; channel += kByteChannels) {
    for (int64_t group = 0; group < summed; group++) {
      lay_out_columns(op, window, zero_point, image + group * channels + channel, row, columns + group * group_bytes);
    }
    const Row8<Out> shared{columns,
                           static_cast<const char*>(weights) + channel / kByteChannels * block_weights,
                           summed,
                           group_bytes,
                           window.kernel_width,
                           words,
                           column,
                           window.stride_width * column,
                           window.dilation_width * column,
                           result.initial + channel,
                           result.multiplier + channel,
                           result.offset + channel,
                           residual ? residual + channel : nullptr,
                           op.second_stride,
                           out + channel,
                           out_stride,
                           result.residual_multiplier,
                           result.low,
                           result.high,
                           result.residual_zero_point,
                           result.zero_point,
                           room - channel};
    (op.out_width >= kPixels8 ? filter_pixels8<kPixels8, Out>
     : op.out_width >= 4      ? filter_pixels8<4, Out>
     : op.out_width >= 2      ? filter_pixels8<2, Out>
                              : filter_pixels8<1, Out>)(shared, op.out_width);
  }
}

// A depthwise convolution by itself: a task is an output row.
static void filter8(const ts_operation& op, uint8_t* workspace, int64_t task) {
  const ts_int8_depthwise& depthwise = op.int8_depthwise;
  const int64_t image = task / op.out_height, row = task % op.out_height, begin = task * op.out_width;
  const uint8_t* from = workspace + op.input + image * op.in_height * op.in_width * op.in_stride;
  const uint8_t* residual = op.second_input < 0 ? nullptr : workspace + op.second_input + begin * op.second_stride;
  auto* columns = static_cast<char*>(scratch(columns_bytes(depthwise.window, op.out_width, depthwise.summed_groups)));
  // Of uint8 all channels of a block of the output are written, of floats those that there is room for.
  const int64_t room = depthwise.result.output == TS_UINT8 ? depthwise.channels : op.out_padded;
  auto filter_to = [&](auto* output) {
    filter_row8(op, depthwise.window, depthwise.input_zero_point, depthwise.weights, depthwise.result, depthwise.channels,
                depthwise.summed_groups, from, row, columns, residual, output + begin * op.out_stride, op.out_stride, room);
  };
  uint8_t* output = workspace + op.output;
  switch (depthwise.result.output) {
    case TS_FLOAT32: return filter_to(reinterpret_cast<float*>(output));
    case TS_BFLOAT16: return filter_to(reinterpret_cast<Bfloat16*>(output));
    default: filter_to(output);
  }
}

}  // namespace ts::TS_ISA
