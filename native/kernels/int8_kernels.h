// The door to the kernels on uint8 activations of one instruction set, see int8.cpp.
#pragma once

#include "int8_vector.h"

namespace ts::TS_ISA {

int64_t int8_tasks(const ts_operation& op);

// Executes tasks [begin, end) of an operation on uint8 values. `external` is the tensor that TS_IMPORT reads.
void run_int8(const ts_operation& op, void* workspace, const float* external, int64_t begin, int64_t end);

// The measure of the machine, as in peak.h: rounds of multiply-adds in registers, and the operations of a round.
float multiply_add_int8(int64_t rounds);
constexpr int kInt8Chains = TS_ROWS > 8 ? 20 : 10;
constexpr int64_t kInt8Round = 2 * kInt8Chains * kLanes * kWordOperands;

}  // namespace ts::TS_ISA
