// The library's own threads. They help with whatever jobs are open, and sleep when there are none.
//
// A caller offers a job and works on it itself. Idle threads join it at any time, and the caller does not wait for them: it
// returns when the job is done, and a thread that joins later finds no task left. So the job is shared (shared_ptr), and must
// not touch the caller's memory unless it has claimed a task, for which the caller waits.
//
// There are as many threads as the largest job has asked for, whatever the number of callers: eight callers of jobs with two
// helpers share two threads. The pool starts anew in the child of a fork, which inherits none of the threads.
#pragma once

#include <cstdint>
#include <memory>

namespace ts {

class Job {
 public:
  virtual ~Job() = default;
  // Does a part of the job, until nothing is left. `worker` is the caller's 0 or a helper's number, from 1.
  virtual void work(int64_t worker) = 0;
};

// Has up to `helpers` threads of the pool join the job, and works on it until it is done.
void run_with_helpers(const std::shared_ptr<Job>& job, int64_t helpers);

struct PoolStatistics {
  int64_t threads;  // that have been started in this process
  int64_t joined;   // how often one of them has joined a job
};
PoolStatistics pool_statistics();

// The CPUs that this process may use: those of its affinity, and no more than its control group's quota of CPU time.
int64_t available_cpus();

}  // namespace ts
