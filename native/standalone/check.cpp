#include "check.h"

#include <algorithm>

#include "../engine/program.h"

namespace ts::standalone {
namespace {

constexpr int64_t kMost = INT32_MAX;            // of a dimension, a stride, a number of tasks
constexpr int64_t kMostOfWindow = 1 << 20;      // of a kernel's size, stride, padding, dilation
constexpr int64_t kMostScratch = int64_t{1} << 31;  // bytes of a thread; networks need some hundred kilobytes
constexpr int32_t kLastActivation = TS_SQUARE_ROOT;
constexpr int64_t kLastOperator = TS_OP_SECOND;
constexpr int64_t kCacheLine = 64;

int64_t bytes_of(int32_t precision) { return precision == TS_FLOAT32 ? 4 : precision == TS_BFLOAT16 ? 2 : 1; }

}  // namespace

Check::Check(const Kind& kind, const ts_operation& op, const std::vector<Reference>& references, int64_t index,
             const Limits& limits)
    : kind_(kind),
      op_(op),
      references_(references),
      index_(index),
      limits_(limits),
      shape_(kernels_of(op.instruction_set).shapes[op.precision]),
      lanes_(shape_.vector),
      each_(bytes_of(op.precision)) {}

void Check::refuse(const char* what) const {
  fail(SEPARABLE_ERROR_FORMAT, "operation %lld (%s): %s", static_cast<long long>(index_), kind_.name, what);
}

void Check::region(const char* what, int64_t offset, Size values, int64_t each) const {
  const bool inside = offset >= 0 && (Size(offset) + values) * each <= Size(limits_.workspace_bytes);
  if (!inside) {
    fail(SEPARABLE_ERROR_FORMAT, "operation %lld (%s): %s beyond the workspace of %lld bytes", static_cast<long long>(index_),
         kind_.name, what, static_cast<long long>(limits_.workspace_bytes));
  }
}

void Check::pixels(const char* what, int64_t offset, Size pixels, int64_t stride, Size channels, int64_t each) const {
  region(what, offset, (pixels - 1) * stride + channels, each);
}

void Check::weights(const char* what, const void* address, Size bytes) const {
  for (const Reference& reference : references_) {
    if (reference.address == address && bytes <= Size(static_cast<int64_t>(reference.bytes))) return;
  }
  fail(SEPARABLE_ERROR_FORMAT, "operation %lld (%s): the file lacks its %s, or has fewer of them than %lld bytes",
       static_cast<long long>(index_), kind_.name, what, static_cast<long long>(bytes.value()));
}

void Check::scratch(Size bytes) {
  require(bytes <= Size(kMostScratch), "a tile of it takes too much memory");
  scratch_ = std::max(scratch_, bytes.value());
}

void Check::count_tasks(Size tasks) {
  require(tasks <= Size(kMost), "it has too many tasks");
  tasks_ = tasks.value();
}

void Check::run() {
  common();
  if (kind_.int8) {
    int8_operation();
  } else {
    float_operation();
  }
}

void Check::common() const {
  require(kind_.int8 == (op_.precision == TS_UINT8), "its precision does not fit its kind");
  for (int64_t size : {op_.batch, op_.in_height, op_.in_width, op_.in_channels, op_.out_height, op_.out_width,
                       op_.out_channels}) {
    within(size, 1, kMost, "a dimension is not positive, or too large");
  }
  for (int64_t stride : {op_.in_stride, op_.out_stride, op_.second_stride}) {
    within(stride, 0, kMost, "a stride is negative or too large");
  }
  within(op_.out_padded, op_.out_channels, kMost, "its padded channels are fewer than its channels, or too many");
  within(op_.activation.kind, 0, kLastActivation, "its activation is unknown");
  within(op_.second_input, -1, INT64_MAX, "its second operand is at a negative offset");
}

void Check::window(const ts_window& window) const {
  for (int64_t size : {window.kernel_height, window.kernel_width, window.stride_height, window.stride_width,
                       window.dilation_height, window.dilation_width}) {
    within(size, 1, kMostOfWindow, "a size of its window is not positive, or too large");
  }
  for (int64_t pad : {window.pad_height, window.pad_width}) {
    within(pad, 0, kMostOfWindow, "the padding of its window is negative or too large");
  }
}

void Check::images(int64_t each) {
  const int64_t first = kind_.int8 ? op_.int8_elementwise.external.first_image : op_.external.first_image;
  require(op_.in_channels == limits_.channels && op_.in_height == limits_.height && op_.in_width == limits_.width,
          "it imports images of another shape than the network takes");
  within(first, 0, kMost, "it imports an image that the input does not have");
  require(Size(first) + op_.batch <= Size(limits_.batch), "it imports an image that the input does not have");
  require(op_.out_stride >= op_.in_channels, "its pixels have fewer values than channels");
  region("it writes", op_.output, input_pixels() * op_.out_stride, each);
  count_tasks(Size(op_.batch) * op_.in_height);
}

// What the products of floats and of uint8 share.
void Check::product(const ts_window& at, int64_t source, int64_t depth, int64_t out_vectors, int64_t tile_rows,
                    int64_t channel_splits, int64_t depth_multiplier) {
  window(at);
  within(source, TS_FROM_POINTWISE, TS_FROM_ROW_VIEW, "its source is unknown");
  within(depth, 1, kMost, "its depth is not positive, or too large");
  require(depth % shape_.depth == 0, "its depth is not a multiple of what the instruction set takes");
  within(out_vectors, 1, kMost, "it computes no channels, or too many");
  within(tile_rows, 1, kMost, "its tiles have no rows, or too many");
  within(channel_splits, 1, kMostOfWindow, "its channels are split in no parts, or too many");
  within(depth_multiplier, 1, kMost, "its depth multiplier is not positive, or too large");
  const Size taps = Size(at.kernel_height) * at.kernel_width;
  const bool pointwise = source == TS_FROM_POINTWISE;
  const Size rows = pointwise ? output_pixels() : Size(op_.out_height);
  const Size tiles = (rows.value() + tile_rows - 1) / tile_rows;
  count_tasks((pointwise ? Size(1) : Size(op_.batch)) * tiles * channel_splits);
  const Size rows_of_tile = std::min(tile_rows, rows.value());
  const int64_t operand = shape_.operand_bytes;
  if (source == TS_FROM_ROW_VIEW) {
    require(taps * op_.in_channels <= Size(depth) && Size(depth) <= taps * op_.in_channels,
            "its depth is not that of its window");
    require(at.kernel_width * op_.in_channels % shape_.depth == 0,
            "a row of its window is not a multiple of what the instruction set takes");
    const Size lines = (rows_of_tile - 1) * at.stride_height + Size(at.kernel_height - 1) * at.dilation_height + 1;
    const Size width = Size(op_.out_width - 1) * at.stride_width + at.kernel_width;
    pixels("it reads", op_.input, input_pixels(), op_.in_stride, op_.in_channels, each_);
    return scratch(lines * width * op_.in_channels * operand);
  }
  const Size used = pointwise ? rows_of_tile : rows_of_tile * op_.out_width;
  // A cache line may follow each pixel of a tile. Patches of bfloat16 lie behind the floats that they become.
  const Size matrix = used * (Size(depth) * operand + kCacheLine);
  if (pointwise) {
    pixels("it reads", op_.input, output_pixels(), op_.in_stride, depth, each_);
    return scratch(matrix);
  }
  if (source == TS_FROM_IM2COL) {
    require(taps * op_.in_channels <= Size(depth), "its depth is smaller than its window");
    pixels("it reads", op_.input, input_pixels(), op_.in_stride, op_.in_channels, each_);
    return scratch(matrix + used * (Size(depth) * each_ + kCacheLine));
  }
  const int64_t channels = depth / depth_multiplier, unit = kind_.int8 ? 16 : lanes_;
  require(depth % depth_multiplier == 0 && channels % unit == 0, "its depthwise stage has no whole vectors of channels");
  pixels("it reads", op_.input, input_pixels(), op_.in_stride, channels, each_);
  // The columns of uint8 that depthwise stages lay out: see int8_depthwise.h.
  const Size seen = Size(op_.out_width - 1) * at.stride_width + Size(at.kernel_width - 1) * at.dilation_width + 1;
  scratch(matrix + kCacheLine + (kind_.int8 ? seen * ((at.kernel_height + 1) / 2) * 64 : Size(0)));
}

void Check::float_operation() {
  // Vectors are whole: kernels read and write all of the last one.
  const int64_t whole = rounded_up(op_.out_padded, lanes_);
  switch (op_.kind) {
    case TS_IMPORT: return images(each_);
    case TS_CONVOLUTION: return convolution();
    case TS_DEPTHWISE: return depthwise();
    case TS_POOL_MAX:
    case TS_POOL_AVERAGE: return pool();
    case TS_MEAN:
      pixels("it reads", op_.input, input_pixels(), op_.in_stride, whole, each_);
      pixels("it writes", op_.output, op_.batch, op_.out_stride, whole, each_);
      return count_tasks(op_.batch);
    case TS_ADD:
      require(op_.out_padded % lanes_ == 0, "its padded channels are no whole vectors");
      pixels("it reads", op_.input, output_pixels(), op_.in_stride, whole, each_);
      pixels("its second operand lies", op_.second_input, output_pixels(), op_.second_stride, whole, each_);
      break;
    case TS_SCALE:
      pixels("it reads", op_.input, output_pixels(), op_.in_stride, whole, each_);
      pixels("its second operand lies", op_.second_input, op_.batch, op_.second_stride, whole, each_);
      break;
    case TS_ACTIVATE: pixels("it reads", op_.input, output_pixels(), op_.in_stride, whole, each_); break;
    case TS_COPY: return copy();
    case TS_REPAIR_NONFINITE: return repair();
    case TS_ELEMENTWISE: return elementwise();
    case TS_RESAMPLE: return resample();
    case TS_STRIDED_COPY: return strided_copy();
    case TS_NORMALIZE: return normalize();
    case TS_MATRIX_PRODUCT: return matrix_product();
    case TS_SOFTMAX: {
      const Size rows = Size(op_.batch) * op_.out_height;
      pixels("it reads", op_.input, (rows - 1) * op_.in_width + op_.out_width, op_.in_stride, op_.out_channels, each_);
      scratch(Size(rounded_up(op_.out_channels, lanes_)) * 4);
      break;
    }
    default: refuse("this library cannot check it: update the library");
  }
  pixels("it writes", op_.output, output_pixels(), op_.out_stride, whole, each_);
  count_tasks(Size(op_.batch) * op_.out_height);
}

void Check::convolution() {
  const ts_convolution& conv = op_.convolution;
  product(conv.window, conv.source, conv.depth, conv.out_vectors, conv.tile_rows, conv.channel_splits,
          conv.depth_multiplier);
  within(conv.depthwise_activation.kind, 0, kLastActivation, "the activation of its depthwise stage is unknown");
  const int64_t channels = conv.out_vectors * lanes_;
  within(conv.channel_blocks, 1, channels, "it has no blocks of channels, or too many");
  require(channels % conv.channel_blocks == 0 && channels / conv.channel_blocks % lanes_ == 0,
          "its blocks of channels are no whole vectors");
  within(conv.paired_tail, 0, shape_.paired_tail, "the instruction set has no paired tails");
  require(!conv.paired_tail || conv.out_vectors > 1, "it has a paired tail alone");
  within(conv.float_output, 0, op_.precision == TS_BFLOAT16, "only bfloat16 operations can write float32");
  const Size panels = (conv.out_vectors + 1) / 2, panel = shape_.panel;
  weights("weights", conv.weights, panels * panel * conv.depth * each_);
  weights("bias", conv.bias, panels * panel * 4);
  if (conv.source == TS_FROM_DEPTHWISE) {
    const Size taps = Size(conv.window.kernel_height) * conv.window.kernel_width;
    weights("depthwise weights", conv.depthwise_weights, taps * conv.depth * 4);
    weights("depthwise bias", conv.depthwise_bias, Size(conv.depth) * 4);
  }
  if (op_.second_input >= 0) {
    pixels("its residual lies", op_.second_input, output_pixels(), op_.second_stride, channels, each_);
  }
  if (!conv.float_output) return pixels("it writes", op_.output, output_pixels(), op_.out_stride, channels, each_);
  require(op_.output % 2 == 0, "its float32 output begins within a value");
  pixels("it writes", op_.output / 2, output_pixels(), op_.out_stride, channels, 4);
}

void Check::depthwise() {
  const ts_depthwise& own = op_.depthwise;
  window(own.window);
  within(own.channels, 1, kMost, "it filters no channels, or too many");
  within(own.summed_groups, 1, kMost, "it sums no groups, or too many");
  require(own.channels % lanes_ == 0, "its channels are no whole vectors");
  const Size inputs = Size(own.channels) * own.summed_groups;
  const Size taps = Size(own.window.kernel_height) * own.window.kernel_width;
  weights("weights", own.weights, inputs * taps * 4);
  weights("bias", own.bias, Size(own.channels) * 4);
  pixels("it reads", op_.input, input_pixels(), op_.in_stride, inputs, each_);
  if (op_.second_input >= 0) {
    pixels("its residual lies", op_.second_input, output_pixels(), op_.second_stride, own.channels, each_);
  }
  pixels("it writes", op_.output, output_pixels(), op_.out_stride, own.channels, each_);
  count_tasks(Size(op_.batch) * op_.out_height);
}

void Check::pool() {
  window(op_.pool.window);
  const int64_t whole = rounded_up(op_.out_padded, lanes_);
  pixels("it reads", op_.input, input_pixels(), op_.in_stride, whole, each_);
  pixels("it writes", op_.output, output_pixels(), op_.out_stride, whole, each_);
  count_tasks(Size(op_.batch) * op_.out_height);
}

void Check::copy() {
  const ts_copy& own = op_.copy;
  within(own.stride_height, 1, kMost, "its stride is not positive, or too large");
  within(own.stride_width, 1, kMost, "its stride is not positive, or too large");
  within(own.channel_offset, 0, kMost, "it writes to a negative channel");
  const Size last_row = Size(op_.batch - 1) * op_.in_height + Size(op_.out_height - 1) * own.stride_height;
  const Size read = last_row * op_.in_width + Size(op_.out_width - 1) * own.stride_width + 1;
  pixels("it reads", op_.input, read, op_.in_stride, op_.in_channels, each_);
  const int64_t written = std::max(op_.out_padded, own.channel_offset + op_.in_channels);
  pixels("it writes", op_.output, output_pixels(), op_.out_stride, written, each_);
  count_tasks(Size(op_.batch) * op_.out_height);
}

void Check::repair() {
  const ts_repair& own = op_.repair;
  window(own.window);
  within(own.group_in_channels, 1, kMost, "its groups have no channels, or too many");
  within(own.group_out_channels, 1, kMost, "its groups have no outputs, or too many");
  const Size read = Size((op_.out_channels - 1) / own.group_out_channels + 1) * own.group_in_channels;
  pixels("it reads", op_.input, input_pixels(), op_.in_stride, read, each_);
  if (op_.second_input >= 0) {
    pixels("its residual lies", op_.second_input, output_pixels(), op_.second_stride, op_.out_channels, each_);
  }
  pixels("it writes", op_.output, output_pixels(), op_.out_stride, rounded_up(op_.out_padded, lanes_), each_);
  const Size taps = Size(own.window.kernel_height) * own.window.kernel_width;
  weights("weights", own.weights, taps * op_.out_channels * own.group_in_channels * 4);
  weights("bias", own.bias, Size(op_.out_channels) * 4);
  count_tasks(Size(op_.batch) * op_.out_height);
}

void Check::elementwise() {
  const ts_elementwise& own = op_.elementwise;
  within(own.binary, 0, kLastOperator, "its operator is unknown");
  const int64_t whole = rounded_up(op_.out_padded, lanes_);
  const auto extent = [&](const int64_t (&strides)[4]) {
    for (int64_t stride : strides) within(stride, 0, kMost, "a stride is negative or too large");
    const Size images = Size(op_.batch - 1) * strides[0], rows = Size(op_.out_height - 1) * strides[1];
    return images + rows + Size(op_.out_width - 1) * strides[2] + (strides[3] ? whole : 1);
  };
  region("it reads", op_.input, extent(own.first_strides), each_);
  if (own.constant) {
    weights("constant", own.constant, extent(own.second_strides) * 4);
  } else {
    region("its second operand lies", op_.second_input, extent(own.second_strides), each_);
  }
  pixels("it writes", op_.output, output_pixels(), op_.out_stride, whole, each_);
  count_tasks(Size(op_.batch) * op_.out_height);
}

// The tables of rows and columns are checked by what they hold; reader.cpp copies them first.
void Check::resample() {
  const ts_resample& own = op_.resample;
  const int64_t whole = rounded_up(op_.out_padded, lanes_);
  pixels("it reads", op_.input, input_pixels(), op_.in_stride, own.blends ? whole : op_.out_channels, each_);
  pixels("it writes", op_.output, output_pixels(), op_.out_stride, whole, each_);
  weights("table of rows", own.rows, Size(op_.out_height) * 8);
  weights("table of columns", own.columns, Size(op_.out_width) * 8);
  if (own.blends) {
    weights("weights of rows", own.row_weights, Size(op_.out_height) * 8);
    weights("weights of columns", own.column_weights, Size(op_.out_width) * 8);
  }
  const auto holds = [&](const int32_t* table, int64_t size, int64_t limit) {
    for (int64_t i = 0; i < 2 * size; i++) {
      // Without blending the second entry is not read, and a negative first one means `fill`.
      const bool read = own.blends || i % 2 == 0;
      require(!read || (table[i] < limit && (table[i] >= 0 || !own.blends)), "its tables name a pixel outside of the image");
    }
  };
  holds(own.rows, op_.out_height, op_.in_height);
  holds(own.columns, op_.out_width, op_.in_width);
  count_tasks(Size(op_.batch) * op_.out_height);
}

void Check::strided_copy() {
  const ts_strided_copy& own = op_.strided_copy;
  Size read = 1, written = 1;
  for (int i = 0; i < kCopyDimensions; i++) {
    within(own.sizes[i], 1, kMost, "a dimension is not positive, or too large");
    within(own.in_strides[i], 0, kMost, "a stride is negative or too large");
    within(own.out_strides[i], 0, kMost, "a stride is negative or too large");
    read = read + Size(own.sizes[i] - 1) * own.in_strides[i];
    written = written + Size(own.sizes[i] - 1) * own.out_strides[i];
  }
  region("it reads", op_.input, read, each_);
  region("it writes", op_.output, written, each_);
  count_tasks(Size(own.sizes[0]) * own.sizes[1]);
  require(output_pixels() <= Size(kMost), "it has too many pixels");
  if (!own.keeps_padding) {
    pixels("it writes", op_.output, output_pixels(), op_.out_stride, op_.out_padded, each_);
  }
}

void Check::matrix_product() {
  constexpr int64_t kRowsOfTask = 64;  // kMatrixRows of matrix_product.h
  const Size matrices = Size(op_.batch) * op_.out_height;
  const int64_t whole = rounded_up(op_.out_padded, lanes_);
  pixels("it reads", op_.input, (matrices - 1) * op_.in_width + op_.out_width, op_.in_stride, op_.in_channels, each_);
  if (op_.matrix_product.transposed) {
    pixels("its second operand lies", op_.second_input, matrices * op_.out_channels, op_.second_stride, op_.in_channels, each_);
    scratch(Size(op_.in_channels) * rounded_up(op_.out_channels, lanes_) * 4);
  } else {
    pixels("its second operand lies", op_.second_input, matrices * op_.in_channels, op_.second_stride, whole, each_);
  }
  pixels("it writes", op_.output, output_pixels(), op_.out_stride, whole, each_);
  count_tasks(matrices * ((op_.out_width + kRowsOfTask - 1) / kRowsOfTask));
}

void Check::normalize() {
  const ts_normalize& own = op_.normalize;
  const int64_t channels = op_.out_channels, whole = rounded_up(op_.out_padded, lanes_);
  weights("weights", own.weight, Size(rounded_up(channels, lanes_)) * 4);
  weights("bias", own.bias, Size(rounded_up(channels, lanes_)) * 4);
  if (own.group_channels == 0) {
    const Size rows = Size(op_.batch) * op_.out_height;
    pixels("it reads", op_.input, (rows - 1) * op_.in_width + op_.out_width, op_.in_stride, whole, each_);
    pixels("it writes", op_.output, output_pixels(), op_.out_stride, whole, each_);
    return count_tasks(rows);
  }
  within(own.group_channels, 1, channels, "its groups have no channels, or too many");
  within(own.chunk, 1, kMost, "its tasks have no channels, or too many");
  require(channels % own.group_channels == 0, "its groups are not equal");
  require(own.chunk >= channels || (own.chunk % lanes_ == 0 && own.chunk % own.group_channels == 0),
          "its tasks are no whole groups in whole vectors");
  pixels("it reads", op_.input, input_pixels(), op_.in_stride, whole, each_);
  pixels("it writes", op_.output, input_pixels(), op_.out_stride, whole, each_);
  scratch(Size(rounded_up(std::min(own.chunk, channels), lanes_)) * 8);
  count_tasks(Size(op_.batch) * ((channels + own.chunk - 1) / own.chunk));
}

}  // namespace ts::standalone
