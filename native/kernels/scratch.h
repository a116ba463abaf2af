// A thread's own scratch, which grows to the largest tile that it has seen and then stays: no allocation in later calls.
#pragma once

#include <cstdint>

namespace ts {

// Room for `floats` values, aligned to a cache line; valid until the same thread asks again.
float* scratch(int64_t floats);

}  // namespace ts
