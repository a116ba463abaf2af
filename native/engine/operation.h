// An operation: one step of a compiled network. The Python runtime fills it in (runtime/planning/operation_builder.py), the engine
// runs its tasks, and every kernel takes it. It is plain data with one layout for C++ and for ctypes
// (runtime/native/operations.py): change both together, and increment kInterface in engine.cpp.
//
// Activations are NHWC, float32 or bfloat16, in one workspace. An operation names them by their offset in it, counted in
// values of its precision. The channels of a pixel are padded with zeros to a multiple of the vector's lanes, so no kernel
// has a channel tail; the next pixel follows `in_stride` or `out_stride` values later. Weights are packed for one
// instruction set and named by address.
#pragma once

#include <cstdint>

extern "C" {

enum ts_kind : int32_t {
  TS_IMPORT = 0,            // (N, C, H, W) tensor of the caller, of any strides -> workspace
  TS_CONVOLUTION = 1,       // matrix of patches (see ts_matrix_source) times packed weights
  TS_DEPTHWISE = 2,         // depthwise convolution, optionally summing several filtered channels
  TS_POOL_MAX = 3,
  TS_POOL_AVERAGE = 4,
  TS_MEAN = 5,              // over all pixels of an image
  TS_ADD = 6,               // sum of two tensors of one shape
  TS_SCALE = 7,             // a tensor times one factor for each channel of each image
  TS_ACTIVATE = 8,          // an activation alone
  TS_COPY = 9,              // every stride-th pixel, to a place among the channels; the other channels become zero
  TS_REPAIR_NONFINITE = 10, // recompute the NaN outputs of groups that were multiplied as one matrix
  TS_ELEMENTWISE = 11,      // a binary operator whose operands are broadcast
  TS_RESAMPLE = 12,         // interpolation, padding, cropping by tables of rows and columns
  TS_STRIDED_COPY = 13,     // the same elements in another order, or a part of them
  TS_NORMALIZE = 14,        // layer, group and instance norm
  TS_SOFTMAX = 15,          // over the channels of each pixel
  TS_QUANTIZE = 16,         // floats -> uint8
  TS_DEQUANTIZE = 17,       // uint8 -> floats
  TS_LOOK_UP = 18,          // uint8 through a table
  TS_MATRIX_PRODUCT = 19,   // of two tensors, for each row of their pixels
};

// Where the left matrix of a convolution's matrix product comes from. It has a row for each output pixel.
enum ts_matrix_source : int32_t {
  TS_FROM_POINTWISE = 0,  // 1x1, stride 1: the input is the matrix
  TS_FROM_IM2COL = 1,     // the patches of a tile are copied one by one: where a row view is impossible
  TS_FROM_DEPTHWISE = 2,  // a depthwise convolution makes the rows of a tile (depthwise separable)
  TS_FROM_ROW_VIEW = 3,   // the input rows of a tile are copied once; each kernel row of a patch is a run of values there
};

enum ts_activation : int32_t {
  TS_CLAMP = 0,  // min(max(x, alpha), beta): none, ReLU, ReLU6, hardtanh
  TS_LEAKY_RELU = 1,
  TS_SILU = 2,
  TS_HARDSWISH = 3,
  TS_GELU = 4,
  TS_GELU_TANH = 5,
  TS_SIGMOID = 6,
  TS_HARDSIGMOID = 7,
  TS_TANH = 8,
  TS_ELU = 9,       // x above 0, alpha · (exp(x) - 1) below
  TS_SOFTPLUS = 10,  // log(1 + exp(x))
  TS_MISH = 11,     // x · tanh(softplus(x))
  TS_EXP = 12,
  TS_ABSOLUTE = 13,
  TS_SQUARE_ROOT = 14,
};

enum ts_binary_operator : int32_t {
  TS_OP_ADD = 0,
  TS_OP_SUBTRACT = 1,
  TS_OP_MULTIPLY = 2,
  TS_OP_DIVIDE = 3,
  TS_OP_MAXIMUM = 4,
  TS_OP_MINIMUM = 5,
  TS_OP_PRELU = 6,  // first where it is above 0, first · second below
  TS_OP_SECOND = 7,  // second: writes a constant into the workspace
};

enum ts_precision : int32_t {
  TS_FLOAT32 = 0,
  TS_BFLOAT16 = 1,  // activations and the weights of matrix products; sums, biases and depthwise weights are float32
  TS_UINT8 = 2,     // activations, by int8 weights; see int8.h
};
constexpr int kPrecisions = 3;

struct ts_act {
  int32_t kind;  // a ts_activation
  float alpha, beta;
  int32_t reserved;
};

struct ts_window {
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t pad_height, pad_width;
  int64_t dilation_height, dilation_width;
};

struct ts_external {
  int64_t first_image;  // of the caller's tensor, which this operation imports first
  int64_t strides[4];   // N, C, H, W, in float32 values
};

struct ts_convolution {
  ts_window window;             // of the convolution, or of its depthwise stage
  int64_t source;               // a ts_matrix_source
  int64_t depth;                // K: rows of the packed weights, padded
  int64_t out_vectors;          // of output channels that are computed: all of a pixel's, or those of a group
  int64_t tile_rows;            // output rows of a tile; pixels where the source is pointwise
  int64_t channel_splits;       // parts of the output channels; each part of a tile is a task
  int64_t channel_blocks;       // of the output; each is padded to whole vectors by itself
  int64_t paired_tail;          // whether two pixels share the last vector, see kernels/paired_tail.h
  int64_t float_output;         // whether a bfloat16 convolution writes float32, for an output of the network
  int64_t depth_multiplier;     // of the depthwise stage; 1 without one
  ts_act depthwise_activation;
  const void* weights;          // [panel][K][channel of the panel]; bfloat16 [panel][K / 2][channel of the panel][2]
  const void* next_weights;     // those that are read next, to be prefetched; never dereferenced
  const float* bias;            // padded to whole panels
  const float* depthwise_weights;  // [depth_multiplier][kernel_height * kernel_width][channel], see even_odd in vector.h
  const float* depthwise_bias;     // [depth_multiplier][channel], likewise
};

struct ts_depthwise {
  ts_window window;
  int64_t channels;        // of a group, padded to whole vectors
  int64_t summed_groups;   // groups of channels that are filtered and summed; 1 for an ordinary depthwise convolution
  const float* weights;    // [group][kernel_height * kernel_width][channel], see even_odd in vector.h
  const float* bias;       // [channel], likewise
};

struct ts_pool {
  ts_window window;
  int64_t count_padding;  // whether an average divides by the padding's pixels as well
};

struct ts_copy {
  int64_t stride_height, stride_width;
  int64_t channel_offset;  // of the first copied channel in the output
};

struct ts_repair {
  ts_window window;
  int64_t group_in_channels, group_out_channels;
  const float* weights;  // [output channel][kernel_height * kernel_width][channel of the group]
  const float* bias;     // [output channel]
};

struct ts_elementwise {
  int64_t binary;             // a ts_binary_operator
  int64_t first_strides[4];   // of an image, a row, a pixel, a channel; 0 repeats the operand
  int64_t second_strides[4];  // likewise
  const float* constant;      // the second operand, where it is no tensor of the workspace
};

struct ts_resample {
  int64_t blends;               // whether both entries of a table count; otherwise the first alone
  float fill;                   // the value of rows and columns with a negative index
  int32_t reserved;
  const int32_t* rows;          // [output row][2]: rows of the input
  const int32_t* columns;       // [output column][2]
  const float* row_weights;     // [output row][2]
  const float* column_weights;  // [output column][2]
};

constexpr int kCopyDimensions = 8;
struct ts_strided_copy {
  int64_t sizes[kCopyDimensions];  // the outermost first
  int64_t in_strides[kCopyDimensions], out_strides[kCopyDimensions];
  int64_t keeps_padding;  // whether the output's channel padding is left to another operation
};

struct ts_normalize {
  int64_t group_channels;  // that share their statistics over all pixels; 0: the channels of each pixel
  int64_t chunk;           // channels of a task: whole groups in whole vectors, or all
  float epsilon;
  int32_t reserved;
  const float* weight;     // padded to whole vectors
  const float* bias;
};

struct ts_matrix_product {
  int64_t transposed;  // whether the columns of the second operand's matrices are its pixels, and their rows its channels
  float scale;         // of the product
  int32_t reserved;
};

#include "int8.h"

struct ts_operation {
  int32_t kind;             // a ts_kind
  int32_t precision;        // a ts_precision
  int32_t instruction_set;  // number of the set that runs it, for which its weights are packed
  int32_t reserved;
  ts_act activation;        // of the output
  int64_t input, output;    // offsets in the workspace
  int64_t second_input;     // offset of the tensor that is added before the activation (residual), or of the other operand
                            // of TS_ADD, TS_SCALE and TS_MATRIX_PRODUCT; -1 without one
  int64_t second_stride;    // from a pixel of it to the next
  int64_t batch;
  int64_t in_height, in_width, in_channels, in_stride;
  int64_t out_height, out_width, out_channels, out_stride;
  int64_t out_padded;       // out_channels and the zeros that fill their last vector: what a kernel may write of a pixel
  union {                   // by kind; TS_MEAN, TS_ADD, TS_SCALE and TS_ACTIVATE need nothing more
    ts_external external;
    ts_convolution convolution;
    ts_depthwise depthwise;
    ts_pool pool;
    ts_copy copy;
    ts_repair repair;
    ts_elementwise elementwise;
    ts_resample resample;
    ts_strided_copy strided_copy;
    ts_normalize normalize;
    ts_matrix_product matrix_product;
    ts_int8_convolution int8_convolution;
    ts_int8_depthwise int8_depthwise;
    ts_int8_elementwise int8_elementwise;
  };
};

// Tasks [begin, end) of the operation at a place in an array.
struct ts_part {
  int64_t operation, begin, end;
};

// Calls `body(begin, end, context)` over parts of [begin, end), perhaps on several threads: the type of PyTorch's
// torch_parallel_for (stable ABI).
typedef int32_t (*ts_parallel_for)(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                                   void* context);
}
