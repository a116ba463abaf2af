// Runs operations whose tasks are claimed by whichever threads are available.
//
// A run is a sequence of stages: the task lists, if there are any, then each operation. The tasks of a stage are divided into
// contiguous shares, one for each worker. A worker first claims tasks of its own share, because its caches hold what it wrote
// for their neighbours in the stage before, then tasks of the other shares. The thread that finishes a stage's last task opens
// the next stage. So a stage ends when its tasks are done, not when all threads have arrived: a thread that arrives late finds
// the current stage, and a thread that is interrupted between two claims delays nobody.
//
// Which thread runs a task does not change what the task computes, so results have the same bits for any number of threads.
//
// Memory order: a claim is a compare-and-swap of a share's counter, which includes the number of its stage, so a thread that
// still sees an old stage claims nothing. `finished_` orders all writes of a stage before the store to `stage_` that opens the
// next one.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "spin.h"
#include "thread_pool.h"

namespace ts {

class ClaimedRun final : public Job {
 public:
  // Runs tasks [begin, end) of a stage. Called only while the caller of the run waits.
  using RunTasks = void (*)(const void* context, int64_t stage, int64_t begin, int64_t end);

  ClaimedRun(std::vector<int64_t> tasks, int64_t workers, RunTasks run, const void* context)
      : tasks_(std::move(tasks)),
        stages_(static_cast<int64_t>(tasks_.size())),
        workers_(workers),
        shares_(std::make_unique<Share[]>(static_cast<size_t>(workers))),
        run_(run),
        context_(context) {
    open(0);
  }

  void work(int64_t worker) override {
    auto yielded = Clock::now();
    Backoff backoff;
    for (int64_t stage; (stage = stage_.load(std::memory_order_acquire)) < stages_;) {
      int64_t done = 0;
      for (int64_t i = 0; i < workers_; i++) done += run_share(stage, (worker + i) % workers_);
      if (done) {
        backoff = Backoff();
        const int64_t finished = finished_.fetch_add(done, std::memory_order_acq_rel) + done;
        if (finished == tasks_of(stage)) open(stage + 1);
        yield_sometimes(yielded);
      } else {
        backoff.wait();
      }
    }
  }

 private:
  using Clock = std::chrono::steady_clock;

  // The number of the stage in the upper 32 bits, the next unclaimed task in the lower.
  struct alignas(64) Share {
    std::atomic<uint64_t> next{0};
  };

  static uint64_t state_of(int64_t stage, int64_t task) {
    return static_cast<uint64_t>(stage) << 32 | static_cast<uint64_t>(task);
  }

  int64_t tasks_of(int64_t stage) const { return tasks_[static_cast<size_t>(stage)]; }

  // Claims and runs the remaining tasks of a worker's share. Returns their number.
  int64_t run_share(int64_t stage, int64_t worker) {
    const int64_t tasks = tasks_of(stage), each = (tasks + workers_ - 1) / workers_;
    const int64_t end = std::min((worker + 1) * each, tasks);
    std::atomic<uint64_t>& next = shares_[static_cast<size_t>(worker)].next;
    uint64_t state = next.load(std::memory_order_acquire);
    int64_t done = 0;
    for (;;) {
      const int64_t begin = static_cast<int64_t>(state & UINT32_MAX);
      if (state >> 32 != static_cast<uint64_t>(stage) || begin >= end) return done;
      // A quarter of the rest: few claims, and small ones at the end, when other threads may be waiting for the stage.
      const int64_t claimed = std::max<int64_t>((end - begin) / 4, 1);
      if (next.compare_exchange_weak(state, state_of(stage, begin + claimed), std::memory_order_acq_rel)) {
        run_(context_, stage, begin, begin + claimed);
        done += claimed;
        state = next.load(std::memory_order_acquire);
      }
    }
  }

  // Opens a stage or, if it has no tasks, the next one that has. Only one thread at a time calls it.
  void open(int64_t stage) {
    while (stage < stages_ && !tasks_of(stage)) stage++;
    finished_.store(0, std::memory_order_relaxed);
    for (int64_t worker = 0; worker < workers_ && stage < stages_; worker++) {
      const int64_t each = (tasks_of(stage) + workers_ - 1) / workers_;
      shares_[static_cast<size_t>(worker)].next.store(state_of(stage, worker * each), std::memory_order_release);
    }
    stage_.store(stage, std::memory_order_release);
  }

  // Offers the core to other programs while this thread holds no task. Otherwise its time slice may end in the middle of a task
  // that all other threads then wait for. If no program wants the core, the call takes less than a microsecond.
  // Linux's time slices are 3 ms on large machines and at least 0.7 ms (sched_base_slice): kSlice is below them.
  void yield_sometimes(Clock::time_point& yielded) const {
    constexpr std::chrono::microseconds kSlice{500};
    if (workers_ == 1) return;
    if (const auto now = Clock::now(); now - yielded > kSlice) {
      std::this_thread::yield();
      yielded = Clock::now();
    }
  }

  const std::vector<int64_t> tasks_;  // of each stage
  const int64_t stages_, workers_;
  const std::unique_ptr<Share[]> shares_;
  const RunTasks run_;
  const void* const context_;
  alignas(64) std::atomic<int64_t> finished_{0};  // tasks of the current stage; not in the line of stage_
  alignas(64) std::atomic<int64_t> stage_{0};
};

}  // namespace ts
