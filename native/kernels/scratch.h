// A thread's own scratch, which grows to the largest tile that it has seen and then stays: no allocation in later calls.
#pragma once

#include <cstdint>

namespace ts {

// Room for `bytes`, aligned to a cache line; valid until the same thread asks again.
void* scratch(int64_t bytes);

}  // namespace ts
