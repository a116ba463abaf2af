#include "threads.h"

#include <algorithm>
#include <csignal>
#include <system_error>

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "failure.h"

namespace ts::standalone {
namespace {

// Lets a thread run on some CPUs only; true where the system did so.
bool bind(pthread_t thread, const std::vector<int32_t>& cpus) {
#ifdef __linux__
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int32_t cpu : cpus) CPU_SET(cpu, &set);
  return pthread_setaffinity_np(thread, sizeof set, &set) == 0;
#else
  static_cast<void>(thread);
  return cpus.empty();
#endif
}

}  // namespace

Threads::Threads(int64_t count, const std::vector<int32_t>& cpus) : process_(getpid()) {
#ifdef __linux__
  for (int32_t cpu : cpus) {
    if (cpu < 0 || cpu >= CPU_SETSIZE) fail(SEPARABLE_ERROR_ARGUMENT, "CPU %d: must be at least 0, and below %d", cpu, CPU_SETSIZE);
  }
#endif
  // Signals are for the threads of the program.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    threads_.reserve(static_cast<size_t>(count - 1));
    while (this->count() < count) threads_.emplace_back([this] { serve(); });
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    stop();
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (cpus.empty()) return;
  for (std::thread& thread : threads_) {
    if (bind(thread.native_handle(), cpus)) continue;
    stop();
    fail(SEPARABLE_ERROR_ARGUMENT, "threads cannot be bound to these CPUs: this process may use none of them");
  }
}

Threads::~Threads() { stop(); }

void Threads::stop() {
  if (getpid() != process_) {
    // The child of a fork: the threads are not there to be joined, and one of them may have held the lock.
    for (std::thread& thread : threads_) thread.detach();
    return;
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stops_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void Threads::run(const std::shared_ptr<Job>& job) {
  if (getpid() != process_) {
    fail(SEPARABLE_ERROR_FORKED, "the threads were started before a fork and do not run in this process: create them after it");
  }
  if (!threads_.empty()) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      offers_.push_back({job, 1});
    }
    wake_.notify_all();
  }
  job->work(0);
  if (threads_.empty()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  offers_.erase(std::remove_if(offers_.begin(), offers_.end(), [&](const Offer& o) { return o.job == job; }), offers_.end());
}

void Threads::serve() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stops_ || !offers_.empty(); });
    if (stops_) return;
    Offer& offer = offers_.front();
    std::shared_ptr<Job> job = offer.job;
    const int64_t worker = offer.next++;
    if (offer.next == count()) offers_.pop_front();
    lock.unlock();
    job->work(worker);
    job.reset();
    lock.lock();
  }
}

}  // namespace ts::standalone
