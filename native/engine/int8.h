// What the operations on uint8 activations need beyond what all operations have: see "int8" in native/README.md. Part of
// operation.h. Offsets and strides of these operations are in bytes.
#pragma once

// From the int32 sums of output channels to a result, in float32 with no fused multiply-add:
//   v = float(sum) * multiplier + offset [+ float(residual - residual_zero_point) * residual_multiplier]
//   result = round_half_to_even(clamp(v, low, high)) + zero_point, or v itself where the output is of floats.
struct ts_requantization {
  const int32_t* initial;   // value that each channel's sum begins with: takes the input's zero point out of it
  const float* multiplier;  // of each channel; these three are padded to whole panels (blocks of 16 in depthwise)
  const float* offset;
  float low, high;
  int32_t zero_point;
  int32_t output;           // a ts_precision
  float residual_multiplier;
  int32_t residual_zero_point;
};

struct ts_int8_convolution {
  ts_window window;          // of the convolution, or of its depthwise stage
  int64_t source;            // a ts_matrix_source
  int64_t depth;             // K: rows of the packed weights, padded
  int64_t out_vectors;       // of output channels that are computed: all of a pixel's, or those of a group
  int64_t tile_rows;         // output rows of a tile; pixels where the source is pointwise
  int64_t channel_splits;    // parts of the output channels; each part of a tile is a task
  int64_t depth_multiplier;  // of the depthwise stage; 1 without one
  int64_t input_zero_point;  // padded pixels hold it
  const void* weights;       // [panel][word of K][channel of the panel][operand of the word]
  const void* next_weights;  // those that are read next, to be prefetched; never dereferenced
  ts_requantization result;
  const void* depthwise_weights;  // [multiplier], and then as in ts_int8_depthwise
  ts_requantization depthwise;    // [multiplier][channel]
};

struct ts_int8_depthwise {
  ts_window window;
  int64_t channels;       // of a group, padded to whole blocks of 16
  int64_t summed_groups;  // groups of channels that are filtered and summed; 1 for an ordinary depthwise convolution
  int64_t input_zero_point;
  const void* weights;    // [block of 16 channels][group][kernel column][word of a column][channel][operand of the word]
  ts_requantization result;
};

// Quantization, lookup, sums, products, pooling, copies.
struct ts_int8_elementwise {
  ts_external external;                  // of TS_IMPORT, which quantizes
  ts_window window;                      // of pooling; of a copy its stride
  int64_t count_padding;                 // whether an average divides by the padding's pixels as well
  int64_t channel_offset;                // of a copy's first channel in the output
  int64_t fills;                         // whether a copy gives all other channels the zero point
  const uint8_t* table;                  // of TS_LOOK_UP, 256 entries
  double in_scale, out_scale;            // of averages
  float multiplier, second_multiplier;   // reciprocal of the scale where floats are quantized; scale of TS_DEQUANTIZE
  float low, high;                       // of the result before its zero point is added
  int32_t zero_point, second_zero_point, out_zero_point;
  int32_t other_precision;               // a ts_precision: of the input of TS_QUANTIZE, the output of TS_DEQUANTIZE
};
