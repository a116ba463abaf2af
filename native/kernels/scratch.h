// Scratch memory of a thread, for the matrix of a tile. It grows to the largest tile so far and is kept, so that later calls do
// not allocate.
#pragma once

#include <cstdint>

namespace ts {

// Returns `bytes` of memory, aligned to a cache line. Valid until the same thread calls again.
void* scratch(int64_t bytes);

// Lets the calls of `scratch` on this thread succeed up to so many bytes; false where there is no memory.
bool reserve_scratch(int64_t bytes);

}  // namespace ts
