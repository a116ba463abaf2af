#include "fields.h"

#include <cstddef>
#include <type_traits>

namespace ts::standalone {
namespace {

constexpr Kind kKinds[] = {
    {"import", TS_IMPORT, false, "external"},
    {"convolution", TS_CONVOLUTION, false, "convolution"},
    {"depthwise", TS_DEPTHWISE, false, "depthwise"},
    {"pool_max", TS_POOL_MAX, false, "pool"},
    {"pool_average", TS_POOL_AVERAGE, false, "pool"},
    {"mean", TS_MEAN, false, ""},
    {"add", TS_ADD, false, ""},
    {"scale", TS_SCALE, false, ""},
    {"activate", TS_ACTIVATE, false, ""},
    {"copy", TS_COPY, false, "copy"},
    {"repair_nonfinite", TS_REPAIR_NONFINITE, false, "repair"},
    {"elementwise", TS_ELEMENTWISE, false, "elementwise"},
    {"resample", TS_RESAMPLE, false, "resample"},
    {"strided_copy", TS_STRIDED_COPY, false, "strided_copy"},
    {"normalize", TS_NORMALIZE, false, "normalize"},
    {"softmax", TS_SOFTMAX, false, ""},
    {"matrix_product", TS_MATRIX_PRODUCT, false, "matrix_product"},
    {"int8_import", TS_IMPORT, true, "int8_elementwise"},
    {"int8_convolution", TS_CONVOLUTION, true, "int8_convolution"},
    {"int8_depthwise", TS_DEPTHWISE, true, "int8_depthwise"},
    {"int8_pool_max", TS_POOL_MAX, true, "int8_elementwise"},
    {"int8_pool_average", TS_POOL_AVERAGE, true, "int8_elementwise"},
    {"int8_mean", TS_MEAN, true, "int8_elementwise"},
    {"int8_add", TS_ADD, true, "int8_elementwise"},
    {"int8_scale", TS_SCALE, true, "int8_elementwise"},
    {"int8_copy", TS_COPY, true, "int8_elementwise"},
    {"int8_quantize", TS_QUANTIZE, true, "int8_elementwise"},
    {"int8_dequantize", TS_DEQUANTIZE, true, "int8_elementwise"},
    {"int8_look_up", TS_LOOK_UP, true, "int8_elementwise"},
};

template <class Value>
constexpr FieldType type_of() {
  if (std::is_pointer_v<Value>) return FieldType::kAddress;
  if (std::is_same_v<Value, float>) return FieldType::kFloat;
  if (std::is_same_v<Value, double>) return FieldType::kDouble;
  return sizeof(Value) == 4 ? FieldType::kInt32 : FieldType::kInt64;
}

#define OF(member) {#member, static_cast<uint32_t>(offsetof(ts_operation, member)), type_of<std::decay_t<decltype(std::declval<ts_operation&>().member)>>()}
#define WINDOW(of)                                                                                               \
  OF(of.window.kernel_height), OF(of.window.kernel_width), OF(of.window.stride_height), OF(of.window.stride_width), \
      OF(of.window.pad_height), OF(of.window.pad_width), OF(of.window.dilation_height), OF(of.window.dilation_width)
#define ACTIVATION(of) OF(of.kind), OF(of.alpha), OF(of.beta)
#define FOUR(of) OF(of[0]), OF(of[1]), OF(of[2]), OF(of[3])
#define EIGHT(of) FOUR(of), OF(of[4]), OF(of[5]), OF(of[6]), OF(of[7])
#define REQUANTIZATION(of)                                                                                     \
  OF(of.initial), OF(of.multiplier), OF(of.offset), OF(of.low), OF(of.high), OF(of.zero_point), OF(of.output), \
      OF(of.residual_multiplier), OF(of.residual_zero_point)

constexpr Field kFields[] = {
    OF(precision),
    {"instruction_set", offsetof(ts_operation, instruction_set), FieldType::kSet},
    ACTIVATION(activation),
    OF(input),
    OF(output),
    OF(second_input),
    OF(second_stride),
    OF(batch),
    OF(in_height),
    OF(in_width),
    OF(in_channels),
    OF(in_stride),
    OF(out_height),
    OF(out_width),
    OF(out_channels),
    OF(out_stride),
    OF(out_padded),
    OF(external.first_image),
    WINDOW(convolution),
    OF(convolution.source),
    OF(convolution.depth),
    OF(convolution.out_vectors),
    OF(convolution.tile_rows),
    OF(convolution.channel_splits),
    OF(convolution.channel_blocks),
    OF(convolution.paired_tail),
    OF(convolution.float_output),
    OF(convolution.depth_multiplier),
    ACTIVATION(convolution.depthwise_activation),
    OF(convolution.weights),
    OF(convolution.next_weights),
    OF(convolution.bias),
    OF(convolution.depthwise_weights),
    OF(convolution.depthwise_bias),
    WINDOW(depthwise),
    OF(depthwise.channels),
    OF(depthwise.summed_groups),
    OF(depthwise.weights),
    OF(depthwise.bias),
    WINDOW(pool),
    OF(pool.count_padding),
    OF(copy.stride_height),
    OF(copy.stride_width),
    OF(copy.channel_offset),
    WINDOW(repair),
    OF(repair.group_in_channels),
    OF(repair.group_out_channels),
    OF(repair.weights),
    OF(repair.bias),
    OF(elementwise.binary),
    FOUR(elementwise.first_strides),
    FOUR(elementwise.second_strides),
    OF(elementwise.constant),
    OF(resample.blends),
    OF(resample.fill),
    OF(resample.rows),
    OF(resample.columns),
    OF(resample.row_weights),
    OF(resample.column_weights),
    EIGHT(strided_copy.sizes),
    EIGHT(strided_copy.in_strides),
    EIGHT(strided_copy.out_strides),
    OF(strided_copy.keeps_padding),
    OF(normalize.group_channels),
    OF(normalize.chunk),
    OF(normalize.epsilon),
    OF(normalize.weight),
    OF(normalize.bias),
    OF(matrix_product.transposed),
    OF(matrix_product.scale),
    WINDOW(int8_convolution),
    OF(int8_convolution.source),
    OF(int8_convolution.depth),
    OF(int8_convolution.out_vectors),
    OF(int8_convolution.tile_rows),
    OF(int8_convolution.channel_splits),
    OF(int8_convolution.depth_multiplier),
    OF(int8_convolution.input_zero_point),
    OF(int8_convolution.weights),
    OF(int8_convolution.next_weights),
    REQUANTIZATION(int8_convolution.result),
    OF(int8_convolution.depthwise_weights),
    REQUANTIZATION(int8_convolution.depthwise),
    WINDOW(int8_depthwise),
    OF(int8_depthwise.channels),
    OF(int8_depthwise.summed_groups),
    OF(int8_depthwise.input_zero_point),
    OF(int8_depthwise.weights),
    REQUANTIZATION(int8_depthwise.result),
    OF(int8_elementwise.external.first_image),
    WINDOW(int8_elementwise),
    OF(int8_elementwise.count_padding),
    OF(int8_elementwise.channel_offset),
    OF(int8_elementwise.fills),
    OF(int8_elementwise.table),
    OF(int8_elementwise.in_scale),
    OF(int8_elementwise.out_scale),
    OF(int8_elementwise.multiplier),
    OF(int8_elementwise.second_multiplier),
    OF(int8_elementwise.low),
    OF(int8_elementwise.high),
    OF(int8_elementwise.zero_point),
    OF(int8_elementwise.second_zero_point),
    OF(int8_elementwise.out_zero_point),
    OF(int8_elementwise.other_precision),
};

// Whether a field belongs to the member `params` of the union.
bool belongs_to(std::string_view field, std::string_view params) {
  return !params.empty() && field.size() > params.size() && field.substr(0, params.size()) == params &&
         field[params.size()] == '.';
}

// Whether all operations have the field: it lies before the union.
bool is_common(const Field& field) { return field.offset < offsetof(ts_operation, external); }

}  // namespace

const Kind* find_kind(std::string_view name) {
  for (const Kind& kind : kKinds) {
    if (name == kind.name) return &kind;
  }
  return nullptr;
}

const Field* find_field(const Kind& kind, std::string_view name) {
  for (const Field& field : kFields) {
    if (name == field.name && (is_common(field) || belongs_to(name, kind.params))) return &field;
  }
  return nullptr;
}

}  // namespace ts::standalone
