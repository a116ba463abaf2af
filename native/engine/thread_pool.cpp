#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <mutex>
#include <thread>

#include <pthread.h>

#include "spin.h"

namespace ts {
namespace {

class Pool {
 public:
  // The pool of this process. It is never destroyed, because its threads may still run when the process ends.
  static Pool& get() {
    static const int registered = pthread_atfork(nullptr, nullptr, forget);
    static_cast<void>(registered);
    Pool* pool = current_.load(std::memory_order_acquire);
    if (pool) return *pool;
    Pool* made = new Pool;
    if (current_.compare_exchange_strong(pool, made, std::memory_order_acq_rel)) return *made;
    delete made;  // another caller was first
    return *pool;
  }

  void run(const std::shared_ptr<Job>& job, int64_t helpers) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      while (threads_ < helpers) start_thread();
      offers_.push_back({job, helpers, 1});
      open_.store(static_cast<int64_t>(offers_.size()), std::memory_order_release);
    }
    if (helpers == 1) {
      wake_.notify_one();
    } else {
      wake_.notify_all();
    }
    job->work(0);
    const std::lock_guard<std::mutex> lock(mutex_);
    offers_.erase(std::remove_if(offers_.begin(), offers_.end(), [&](const Offer& o) { return o.job == job; }),
                  offers_.end());
    open_.store(static_cast<int64_t>(offers_.size()), std::memory_order_release);
  }

  PoolStatistics statistics() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {threads_, joined_};
  }

 private:
  struct Offer {
    std::shared_ptr<Job> job;
    int64_t helpers;  // that may still join
    int64_t next;     // number of the next one
  };

  // Called in the child of a fork. The parent's pool is leaked: a thread that no longer exists may hold its lock.
  static void forget() { current_.store(nullptr, std::memory_order_release); }

  // Blocks all signals in the new thread, so that handlers run on the program's own threads.
  void start_thread() {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread([this] { serve(); }).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    threads_++;
  }

  void serve() {
    for (;;) {
      auto [job, worker] = take_offer();
      job->work(worker);
    }
  }

  // Waits for an offer. It spins before it sleeps, because a caller that runs a network in a loop makes the next offer soon.
  std::pair<std::shared_ptr<Job>, int64_t> take_offer() {
    Backoff backoff;
    while (!open_.load(std::memory_order_acquire) && !backoff.is_long()) backoff.wait();
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, [this] { return !offers_.empty(); });
    Offer& offer = offers_.front();
    std::pair<std::shared_ptr<Job>, int64_t> taken{offer.job, offer.next++};
    if (!--offer.helpers) offers_.pop_front();
    open_.store(static_cast<int64_t>(offers_.size()), std::memory_order_release);
    joined_++;
    return taken;
  }

  static std::atomic<Pool*> current_;
  std::atomic<int64_t> open_{0};  // size of offers_, read without the lock
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Offer> offers_;
  int64_t threads_ = 0, joined_ = 0;
};

std::atomic<Pool*> Pool::current_{nullptr};

}  // namespace

void run_with_helpers(const std::shared_ptr<Job>& job, int64_t helpers) { Pool::get().run(job, helpers); }

PoolStatistics pool_statistics() { return Pool::get().statistics(); }

}  // namespace ts
