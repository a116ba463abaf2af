// The checks of operations on uint8 values: their offsets and strides are in bytes.
#include <algorithm>

#include "check.h"

namespace ts::standalone {
namespace {

constexpr int64_t kBlock = 16;   // channels that depthwise stages compute at a time: kByteChannels of int8_vector.h
constexpr int64_t kWord = 64;    // bytes of a word of each of them: kColumnWord of int8_depthwise.h

}  // namespace

void Check::requantization(const ts_requantization& result, Size channels) const {
  weights("initial sums", result.initial, channels * 4);
  weights("multipliers", result.multiplier, channels * 4);
  weights("offsets", result.offset, channels * 4);
  within(result.zero_point, 0, 255, "a zero point is no uint8");
  within(result.residual_zero_point, 0, 255, "a zero point is no uint8");
}

int64_t Check::result_bytes(int32_t precision) const {
  within(precision, TS_FLOAT32, TS_UINT8, "the precision of its output is unknown");
  const int64_t each = precision == TS_FLOAT32 ? 4 : precision == TS_BFLOAT16 ? 2 : 1;
  return each;
}

void Check::int8_convolution() {
  const ts_int8_convolution& conv = op_.int8_convolution;
  product(conv.window, conv.source, conv.depth, conv.out_vectors, conv.tile_rows, conv.channel_splits,
          conv.depth_multiplier);
  within(conv.input_zero_point, 0, 255, "a zero point is no uint8");
  if (conv.source == TS_FROM_ROW_VIEW || conv.source == TS_FROM_IM2COL) {
    require(op_.in_channels % 4 == 0, "its input channels are no whole words");
  }
  const Size panels = (conv.out_vectors + 1) / 2, panel = shape_.panel;
  // Panels of 8 and 16 channels are computed whole; the last one of 32 may have one vector.
  require(lanes_ > 8 || conv.out_vectors % 2 == 0, "its channels are no whole panels");
  weights("weights", conv.weights, panels * panel * conv.depth * shape_.operand_bytes);
  requantization(conv.result, panels * panel);
  if (conv.source == TS_FROM_DEPTHWISE) {
    const int64_t operands = 4 / shape_.operand_bytes, words = (conv.window.kernel_height + operands - 1) / operands;
    weights("depthwise weights", conv.depthwise_weights, Size(conv.depth / kBlock) * conv.window.kernel_width * words * kWord);
    requantization(conv.depthwise, conv.depth);
  }
  const Size channels = Size(conv.out_vectors) * lanes_;
  const int64_t each = result_bytes(conv.result.output);
  if (op_.second_input >= 0) {
    pixels("its residual lies", op_.second_input, output_pixels(), op_.second_stride, channels, 1);
  }
  require(op_.output % each == 0, "its output begins within a value");
  const Size written = each == 1 ? channels : Size(std::min(channels.value(), op_.out_padded));
  pixels("it writes", op_.output / each, output_pixels(), op_.out_stride, written, each);
}

void Check::int8_depthwise() {
  const ts_int8_depthwise& own = op_.int8_depthwise;
  window(own.window);
  within(own.channels, 1, INT32_MAX, "it filters no channels, or too many");
  within(own.summed_groups, 1, INT32_MAX, "it sums no groups, or too many");
  within(own.input_zero_point, 0, 255, "a zero point is no uint8");
  require(own.channels % kBlock == 0, "its channels are no whole blocks of 16");
  const int64_t operands = 4 / shape_.operand_bytes, words = (own.window.kernel_height + operands - 1) / operands;
  const Size inputs = Size(own.channels) * own.summed_groups;
  weights("weights", own.weights, Size(own.channels / kBlock) * own.summed_groups * own.window.kernel_width * words * kWord);
  requantization(own.result, own.channels);
  pixels("it reads", op_.input, input_pixels(), op_.in_stride, inputs, 1);
  if (op_.second_input >= 0) {
    pixels("its residual lies", op_.second_input, output_pixels(), op_.second_stride, own.channels, 1);
  }
  const int64_t each = result_bytes(own.result.output);
  require(op_.output % each == 0, "its output begins within a value");
  const int64_t written = each == 1 ? own.channels : std::min(own.channels, op_.out_padded);
  pixels("it writes", op_.output / each, output_pixels(), op_.out_stride, written, each);
  const Size seen = Size(op_.out_width - 1) * own.window.stride_width +
                    Size(own.window.kernel_width - 1) * own.window.dilation_width + 1;
  scratch(seen * words * kWord * own.summed_groups);
  count_tasks(Size(op_.batch) * op_.out_height);
}

void Check::int8_operation() {
  const ts_int8_elementwise& own = op_.int8_elementwise;
  if (op_.kind == TS_CONVOLUTION) return int8_convolution();
  if (op_.kind == TS_DEPTHWISE) return int8_depthwise();
  for (int32_t zero_point : {own.zero_point, own.second_zero_point, own.out_zero_point}) {
    within(zero_point, 0, 255, "a zero point is no uint8");
  }
  const int64_t whole = rounded_up(op_.out_padded, lanes_);
  int64_t each = 1, written = whole;
  switch (op_.kind) {
    case TS_IMPORT: return images(1);
    case TS_POOL_MAX:
    case TS_POOL_AVERAGE:
      window(own.window);
      pixels("it reads", op_.input, input_pixels(), op_.in_stride, whole, 1);
      break;
    case TS_MEAN:
      pixels("it reads", op_.input, input_pixels(), op_.in_stride, whole, 1);
      pixels("it writes", op_.output, op_.batch, op_.out_stride, whole, 1);
      return count_tasks(op_.batch);
    case TS_ADD:
      pixels("it reads", op_.input, output_pixels(), op_.in_stride, whole, 1);
      pixels("its second operand lies", op_.second_input, output_pixels(), op_.second_stride, whole, 1);
      break;
    case TS_SCALE:
      pixels("it reads", op_.input, output_pixels(), op_.in_stride, whole, 1);
      pixels("its second operand lies", op_.second_input, op_.batch, op_.second_stride, whole, 1);
      break;
    case TS_COPY: {
      within(own.window.stride_height, 1, INT32_MAX, "its stride is not positive, or too large");
      within(own.window.stride_width, 1, INT32_MAX, "its stride is not positive, or too large");
      within(own.channel_offset, 0, INT32_MAX, "it writes to a negative channel");
      const Size last_row = Size(op_.batch - 1) * op_.in_height + Size(op_.out_height - 1) * own.window.stride_height;
      const Size read = last_row * op_.in_width + Size(op_.out_width - 1) * own.window.stride_width + 1;
      pixels("it reads", op_.input, read, op_.in_stride, op_.in_channels, 1);
      written = std::max(own.fills ? op_.out_padded : 0, own.channel_offset + op_.in_channels);
      break;
    }
    case TS_QUANTIZE: {
      within(own.other_precision, TS_FLOAT32, TS_BFLOAT16, "the precision of its input is unknown");
      const int64_t input = result_bytes(own.other_precision);
      require(op_.input % input == 0, "its input begins within a value");
      pixels("it reads", op_.input / input, output_pixels(), op_.in_stride, op_.in_channels, input);
      written = op_.in_channels;
      break;
    }
    case TS_DEQUANTIZE:
      within(own.other_precision, TS_FLOAT32, TS_BFLOAT16, "the precision of its output is unknown");
      each = result_bytes(own.other_precision);
      require(op_.output % each == 0, "its output begins within a value");
      pixels("it reads", op_.input, output_pixels(), op_.in_stride, op_.in_channels, 1);
      written = std::max(op_.in_channels, op_.out_padded);
      break;
    case TS_LOOK_UP:
      weights("table", own.table, 256);
      pixels("it reads", op_.input, output_pixels(), op_.in_stride, op_.out_padded, 1);
      written = op_.out_padded;
      break;
    default: refuse("this library cannot check it: update the library");
  }
  pixels("it writes", op_.output / each, output_pixels(), op_.out_stride, written, each);
  count_tasks(Size(op_.batch) * op_.out_height);
}

}  // namespace ts::standalone
