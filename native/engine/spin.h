// How a thread waits for another that is expected within microseconds.
#pragma once

#include <cstdint>
#include <thread>

namespace ts {

// Tells the processor that this is a waiting loop: the core's other hardware thread gets its units.
inline void pause() {
#ifdef TS_X86
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits longer the longer it has waited. A pause takes 10 to 50 ns on the processors of the last ten years, so kPauses of them
// are about the time that a sleeping thread takes to wake up, 50 us: a shorter wait must not sleep. After it the thread offers
// its core to others between looks, as there may be fewer cores than threads.
class Backoff {
 public:
  void wait() {
    if (waited_ < kPauses) {
      waited_++;
      pause();
    } else {
      std::this_thread::yield();
    }
  }

  // Whether the wait has lasted so long that sleeping costs less than what it saves.
  bool is_long() const { return waited_ >= kPauses; }

 private:
  static constexpr int64_t kPauses = 2000;
  int64_t waited_ = 0;
};

}  // namespace ts
