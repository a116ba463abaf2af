// Threads of the caller's: they help with runs, and sleep when there are none. Unlike engine/thread_pool.h, which the process
// shares, these have an owner, a fixed number and CPUs, and they end with it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <sys/types.h>

#include "../engine/thread_pool.h"

namespace ts::standalone {

class Threads {
 public:
  // Starts `count` - 1 threads, as the caller of `run` is one; they may run on `cpus`, or on all where it is empty.
  Threads(int64_t count, const std::vector<int32_t>& cpus);
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int64_t count() const { return static_cast<int64_t>(threads_.size()) + 1; }

  // Works on the job, together with the threads that are free; returns when the job is done. A thread that joins late may
  // hold the job for a while longer. Fails in the child of a fork, which has none of the threads.
  void run(const std::shared_ptr<Job>& job);

 private:
  struct Offer {
    std::shared_ptr<Job> job;
    int64_t next;  // number of the next helper, from 1
  };

  void serve();
  void stop();

  const pid_t process_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Offer> offers_;
  bool stops_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace ts::standalone
