// Memory in which a network runs, one run at a time.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "network.h"
#include "threads.h"

namespace ts::standalone {

// Zeros, in large pages where Linux gives them.
class Workspace {
 public:
  explicit Workspace(int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const { return data_; }

 private:
  void* mapped_;
  size_t mapped_bytes_;
  void* data_;
};

class Context {
 public:
  Context(std::shared_ptr<const Network> network, const separable_options& options, std::shared_ptr<Threads> threads);

  // Copies the results to `outputs`, as many as the network has, unless `count` is 0.
  void run(const separable_tensor& input, const separable_tensor* outputs, int64_t count);

  // An output of the last run, where it lies.
  separable_tensor result(int64_t index) const;

 private:
  void check_input(const separable_tensor& input) const;
  void check_output(const separable_tensor& output, int64_t index) const;
  void execute(const float* external);

  const std::shared_ptr<const Network> network_;
  const std::shared_ptr<Threads> threads_;
  const separable_parallel_for parallel_for_;
  void* const parallel_user_;
  const int64_t parallel_threads_;
  const Schedule& schedule_;
  const Workspace workspace_;
  std::vector<ts_operation> operations_;  // with the strides of the input that is being read
  std::vector<int64_t*> import_strides_;  // four each
  std::atomic<bool> runs_{false};
};

}  // namespace ts::standalone
