// One step of a program, as the Python runtime prepares it and the engine executes it: plain data, one layout for C and
// ctypes. Activations are NHWC, float32 or bfloat16, in one workspace and named by their offset in it, in values; the
// channels of a pixel are padded with zeros to a multiple of the vector's lanes, so that no kernel has a channel tail; the next
// pixel is `*_stride` values further, perhaps with a line that nobody uses between them. Weights are packed for an instruction
// set and named by address.
#pragma once

#include <cstdint>

extern "C" {

enum ts_kind : int32_t {
  TS_IMPORT = 0,       // strided external tensor (N, C, H, W) -> workspace
  TS_CONVOLUTION = 1,  // patches (see ts_patches) times packed weights: pointwise, dense, separable, linear
  TS_DEPTHWISE = 2,    // depthwise, or its pointwise-first form that sums several filtered channels
  TS_POOL_MAX = 3,
  TS_POOL_AVERAGE = 4,
  TS_MEAN = 5,   // over all pixels of an image
  TS_ADD = 6,    // two tensors of one shape
  TS_SCALE = 7,  // a tensor times one factor for each channel of each image
  TS_ACTIVATE = 8,
  TS_COPY = 9,  // every stride-th pixel, to a place among the channels; the other channels become zero
  TS_RECOMPUTE = 10,  // what groups that were computed together spoilt of each other, see recompute_row
};

enum ts_patches : int32_t {
  TS_DIRECT = 0,     // 1x1, stride 1: the input is the matrix
  TS_GATHERED = 1,   // the patches of a dense kernel are copied together (im2col), a tile at a time: where TS_LINES
                     // cannot be
  TS_FILTERED = 2,   // a depthwise convolution makes the matrix, a tile at a time (depthwise separable)
  TS_LINES = 3,      // a tile's input lines are the matrix: each row of a dense kernel reads a run of values in them
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
};

enum ts_precision : int32_t {
  TS_FLOAT32 = 0,
  TS_BFLOAT16 = 1,  // of activations and of the weights of matrix products; sums, biases and filters are float32
};
constexpr int kPrecisions = 2;

struct ts_act {
  int32_t kind;
  float alpha, beta;
  int32_t unused;
};

struct ts_operation {
  int32_t kind;
  int32_t patches;
  ts_act activation;          // of the result
  ts_act between;             // of the depthwise stage of a separable convolution
  int64_t input, output;      // offsets in the workspace; the input of TS_IMPORT is its first image
  int64_t residual;           // offset of a tensor that is added before the activation, or -1; the other operand of
                              // TS_ADD and TS_SCALE
  int64_t batch;
  int64_t in_height, in_width, in_channels, in_stride;
  int64_t out_height, out_width, out_channels, out_stride;
  int64_t residual_stride;
  int64_t kernel_height, kernel_width, stride_height, stride_width;
  int64_t pad_height, pad_width, dilation_height, dilation_width;
  int64_t multiplier;         // depthwise kernels for each channel; in TS_DEPTHWISE, filtered channels that are summed;
                              // in TS_RECOMPUTE, output channels of a group
  int64_t depth;              // rows of the packed weights, K; in TS_DEPTHWISE, channels of a block, padded; in
                              // TS_RECOMPUTE, input channels of a group
  int64_t tile_rows;          // output rows (pixels, where the input is the matrix) that one task computes
  int64_t out_vectors;        // of output channels that a convolution computes: all of a pixel's, or a group's
  int64_t precision;          // a ts_precision
  int64_t wide;               // the output of a bfloat16 convolution is float32: no other operation reads it
  int64_t splits;             // parts that the output channels of a tile are computed in, each a task of its own
  int64_t halves;             // the last panel's second vector is shared by two pixels: see kernels/halves.h
  int64_t blocks;             // of output channels, each padded to whole vectors by itself
  int64_t set;                // the instruction set that runs it, by number, for which its weights are packed
  const void* weights;        // [panel][K][channels of a panel]; of bfloat16 [panel][K / 2][channels of a panel][2]
  const void* next_weights;   // those that are read after them: fetched ahead, never looked into
  const float* bias;          // padded to whole panels
  const float* filters;       // depthwise weights, [multiplier][kernel_height * kernel_width][channels]; see in_turns;
                              // of TS_RECOMPUTE [output channel][kernel_height * kernel_width][channels of a group]
  const float* filter_bias;   // [multiplier][channels], likewise; of TS_RECOMPUTE [output channel]
  int64_t external_strides[4];  // of TS_IMPORT, in float32 values: N, C, H, W
  int64_t count_padding;        // of TS_POOL_AVERAGE
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
