// Elementwise operations on one or two operands of any broadcast shape, with the activation of the result.
//
//     output[n, y, x, c] = act(first[n, y, x, c] (op) second[n, y, x, c])
//
// An operand is a tensor in the workspace or a constant, named by its address. Its strides say how it is broadcast: a
// stride of 0 repeats it along that dimension. Channels are contiguous (stride 1) or one value serves all of them
// (stride 0).
#pragma once

#include "vector.h"

namespace ts::TS_ISA {

template <int Operator>
TS_INLINE Vector combine(Vector a, Vector b) {
  switch (Operator) {
    case TS_OP_ADD: return a + b;
    case TS_OP_SUBTRACT: return a - b;
    case TS_OP_MULTIPLY: return a * b;
    case TS_OP_DIVIDE: return a / b;
    // As torch.maximum and torch.minimum: NaN in either operand is the result.
    case TS_OP_MAXIMUM: return a != a || a > b ? a : b;
    case TS_OP_MINIMUM: return a != a || a < b ? a : b;
    case TS_OP_PRELU: return a > 0.0f ? a : a * b;
    case TS_OP_SECOND: return b;
    default: return a;
  }
}

template <bool Shared, class Value>
TS_INLINE Vector operand(const Value* row, int64_t channel) {
  if constexpr (Shared) return broadcast(value_of(*row));
  return load(row + channel);
}

template <int Operator, bool FirstShared, bool SecondShared, class Element, class Second>
static void combine_row(const ts_operation& op, const Element* first, const Second* second, Element* to) {
  const int64_t first_step = op.elementwise.first_strides[2], second_step = op.elementwise.second_strides[2];
  const ts_act clamp = clamp_of(op.activation);
  const Vector low = broadcast(clamp.alpha), high = broadcast(clamp.beta);
  const bool clamped = clamps(clamp), activates = op.activation.kind != TS_CLAMP;
  for (int64_t x = 0; x < op.out_width; x++, first += first_step, second += second_step, to += op.out_stride) {
    for (int64_t c = 0; c < op.out_channels; c += kLanes) {
      Vector value = combine<Operator>(operand<FirstShared>(first, c), operand<SecondShared>(second, c));
      if (activates) value = activated(value, op.activation);
      if (clamped) value = at_most(at_least(value, low), high);
      store(to + c, value);
    }
  }
}

template <int Operator, class Element, class Second>
static void combine_as(const ts_operation& op, const Element* first, const Second* second, Element* to) {
  const bool first_shared = !op.elementwise.first_strides[3], second_shared = !op.elementwise.second_strides[3];
  if (first_shared && second_shared) return combine_row<Operator, true, true>(op, first, second, to);
  if (first_shared) return combine_row<Operator, true, false>(op, first, second, to);
  if (second_shared) return combine_row<Operator, false, true>(op, first, second, to);
  combine_row<Operator, false, false>(op, first, second, to);
}

template <class Element, class Second>
static void combine_operands(const ts_operation& op, const Element* first, const Second* second, Element* to) {
  switch (op.elementwise.binary) {
    case TS_OP_ADD: return combine_as<TS_OP_ADD>(op, first, second, to);
    case TS_OP_SUBTRACT: return combine_as<TS_OP_SUBTRACT>(op, first, second, to);
    case TS_OP_MULTIPLY: return combine_as<TS_OP_MULTIPLY>(op, first, second, to);
    case TS_OP_DIVIDE: return combine_as<TS_OP_DIVIDE>(op, first, second, to);
    case TS_OP_MAXIMUM: return combine_as<TS_OP_MAXIMUM>(op, first, second, to);
    case TS_OP_MINIMUM: return combine_as<TS_OP_MINIMUM>(op, first, second, to);
    case TS_OP_PRELU: return combine_as<TS_OP_PRELU>(op, first, second, to);
    case TS_OP_SECOND: return combine_as<TS_OP_SECOND>(op, first, second, to);
    default: return;
  }
}

// A task is an output row. The channels that pad the last vector become what their operands' padding gives, and then
// zero: a quotient of padding would be NaN.
template <class Element>
static void combine_task(const ts_operation& op, Element* workspace, int64_t task) {
  const int64_t image = task / op.out_height, row = task % op.out_height;
  const int64_t* first_strides = op.elementwise.first_strides;
  const int64_t* second_strides = op.elementwise.second_strides;
  const Element* first = workspace + op.input + image * first_strides[0] + row * first_strides[1];
  const int64_t at = image * second_strides[0] + row * second_strides[1];
  Element* to = workspace + op.output + task * op.out_width * op.out_stride;
  if (op.elementwise.constant) {
    combine_operands(op, first, op.elementwise.constant + at, to);
  } else {
    combine_operands(op, first, workspace + op.second_input + at, to);
  }
  clear_channel_padding(op, to, op.out_width);
}

}  // namespace ts::TS_ISA
