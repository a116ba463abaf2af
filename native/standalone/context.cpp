#include "context.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include <sys/mman.h>
#include <unistd.h>

#include "../engine/claimed_run.h"
#include "../engine/program.h"
#include "../kernels/scratch.h"

namespace ts::standalone {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kLargePage = size_t{2} << 20;  // of x86-64, and of ARM64 with pages of 4 KB


size_t rounded(size_t size, size_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// The threads of one run. Each makes sure of its scratch memory before it claims tasks: a kernel could not report its lack.
class Run final : public Job {
 public:
  Run(const Program& program, std::vector<int64_t> tasks, int64_t workers, int64_t scratch)
      : claimed_(std::move(tasks), workers, run_tasks, &program), scratch_(scratch) {}

  void work(int64_t worker) override {
    if (reserve_scratch(scratch_)) claimed_.work(worker);
  }

 private:
  ClaimedRun claimed_;
  const int64_t scratch_;
};

void work_on(void* run, int64_t worker) { static_cast<Run*>(run)->work(worker); }

// Marks a context as running, as long as it exists.
class Running {
 public:
  explicit Running(std::atomic<bool>& flag) : flag_(flag) {
    if (flag.exchange(true, std::memory_order_acquire)) {
      fail(SEPARABLE_ERROR_ARGUMENT, "the context is running on another thread: create a context for each thread");
    }
  }
  ~Running() { flag_.store(false, std::memory_order_release); }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  std::atomic<bool>& flag_;
};

// The innermost dimension of a copy; others are loops around it.
template <class To, class From, class Convert>
void copy_values(const Result& from, const From* source, const separable_tensor& to, Convert convert) {
  int64_t at[SEPARABLE_MAX_RANK] = {};
  const int32_t last = from.rank - 1;
  auto* target = static_cast<To*>(to.data);
  for (;;) {
    int64_t read = 0, written = 0;
    for (int32_t d = 0; d < last; d++) {
      read += at[d] * from.strides[d];
      written += at[d] * to.strides[d];
    }
    for (int64_t i = 0; i < from.shape[last]; i++) {
      target[written + i * to.strides[last]] = convert(source[read + i * from.strides[last]]);
    }
    int32_t d = last - 1;
    while (d >= 0 && ++at[d] == from.shape[d]) at[d--] = 0;
    if (d < 0) return;
  }
}

float from_bfloat16(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

void copy_result(const Result& from, const void* workspace, const separable_tensor& to) {
  const char* source = static_cast<const char*>(workspace) + from.offset;
  switch (from.type) {
    case SEPARABLE_FLOAT32:
      return copy_values<float>(from, reinterpret_cast<const float*>(source), to, [](float value) { return value; });
    case SEPARABLE_BFLOAT16:
      return copy_values<float>(from, reinterpret_cast<const uint16_t*>(source), to, from_bfloat16);
    default:
      copy_values<uint8_t>(from, reinterpret_cast<const uint8_t*>(source), to, [](uint8_t value) { return value; });
  }
}

}  // namespace

// Behind the memory lies a page that cannot be accessed: should a kernel write further than its check says, the process ends
// there, and no other memory changes.
Workspace::Workspace(int64_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t size = rounded(static_cast<size_t>(bytes), kCacheLine);
  const bool large = size >= kLargePage / 2;
  const size_t usable = rounded(size, page) + (large ? kLargePage : 0);
  mapped_bytes_ = usable + page;
  mapped_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped_ == MAP_FAILED) {
    fail(SEPARABLE_ERROR_MEMORY, "no memory for a workspace of %lld bytes", static_cast<long long>(bytes));
  }
  char* end = static_cast<char*>(mapped_) + usable;
  if (large) end -= reinterpret_cast<uintptr_t>(end) % kLargePage;
  mprotect(end, page, PROT_NONE);
  data_ = end - size;
#ifdef MADV_HUGEPAGE
  if (large) madvise(mapped_, usable, MADV_HUGEPAGE);  // only a hint
#endif
}

Workspace::~Workspace() { munmap(mapped_, mapped_bytes_); }

Context::Context(std::shared_ptr<const Network> network, const separable_options& options, std::shared_ptr<Threads> threads)
    : network_(std::move(network)),
      threads_(std::move(threads)),
      parallel_for_(options.parallel_for),
      parallel_user_(options.parallel_user),
      parallel_threads_(options.parallel_threads),
      schedule_(network_->choose(options.batch, options.instruction_set,
                                 threads_        ? threads_->count()
                                 : parallel_for_ ? parallel_threads_
                                                 : 1)),
      workspace_(schedule_.workspace_bytes),
      operations_(schedule_.operations) {
  for (ts_operation& operation : operations_) {
    if (operation.kind != TS_IMPORT) continue;
    import_strides_.push_back(operation.precision == TS_UINT8 ? operation.int8_elementwise.external.strides
                                                              : operation.external.strides);
  }
}

void Context::check_input(const separable_tensor& input) const {
  const int64_t shape[] = {schedule_.batch, network_->input().shape[1], network_->input().shape[2],
                           network_->input().shape[3]};
  if (input.type != SEPARABLE_FLOAT32) fail(SEPARABLE_ERROR_ARGUMENT, "the input must be float32");
  if (input.rank != 4 || memcmp(input.shape, shape, sizeof shape) != 0) {
    fail(SEPARABLE_ERROR_ARGUMENT, "the input must have shape (%lld, %lld, %lld, %lld)", static_cast<long long>(shape[0]),
         static_cast<long long>(shape[1]), static_cast<long long>(shape[2]), static_cast<long long>(shape[3]));
  }
  if (!input.data || reinterpret_cast<uintptr_t>(input.data) % sizeof(float) != 0) {
    fail(SEPARABLE_ERROR_ARGUMENT, "the input's address must be a multiple of 4 and not null");
  }
}

void Context::check_output(const separable_tensor& output, int64_t index) const {
  const Result& result = schedule_.results[static_cast<size_t>(index)];
  const int32_t type = result.type == SEPARABLE_UINT8 ? SEPARABLE_UINT8 : SEPARABLE_FLOAT32;
  const size_t each = type == SEPARABLE_UINT8 ? 1 : sizeof(float);
  if (output.type != type) {
    fail(SEPARABLE_ERROR_ARGUMENT, "output %lld must be %s", static_cast<long long>(index), each == 1 ? "uint8" : "float32");
  }
  const size_t sizes = static_cast<size_t>(result.rank) * sizeof(int64_t);
  if (output.rank != result.rank || memcmp(output.shape, result.shape, sizes) != 0) {
    fail(SEPARABLE_ERROR_ARGUMENT, "output %lld has another shape than the network's: ask separable_output for it",
         static_cast<long long>(index));
  }
  if (!output.data || reinterpret_cast<uintptr_t>(output.data) % each != 0) {
    fail(SEPARABLE_ERROR_ARGUMENT, "the address of output %lld must be a multiple of %d and not null",
         static_cast<long long>(index), static_cast<int>(each));
  }
}

void Context::run(const separable_tensor& input, const separable_tensor* outputs, int64_t count) {
  const Running running(runs_);
  const int64_t expected = static_cast<int64_t>(schedule_.results.size());
  if (count != 0 && (count != expected || !outputs)) {
    fail(SEPARABLE_ERROR_ARGUMENT, "%lld outputs were passed, and the network has %lld", static_cast<long long>(count),
         static_cast<long long>(expected));
  }
  check_input(input);
  for (int64_t i = 0; i < count; i++) check_output(outputs[i], i);
  for (int64_t* strides : import_strides_) memcpy(strides, input.strides, 4 * sizeof *strides);
  execute(static_cast<const float*>(input.data));
  for (int64_t i = 0; i < count; i++) copy_result(schedule_.results[static_cast<size_t>(i)], workspace_.data(), outputs[i]);
}

void Context::execute(const float* external) {
  const Program program{operations_.data(), static_cast<int64_t>(operations_.size()),
                        schedule_.parts.data(), schedule_.ends.data(), static_cast<int64_t>(schedule_.ends.size()),
                        schedule_.covered, workspace_.data(), external};
  if (!reserve_scratch(schedule_.scratch_bytes)) {
    fail(SEPARABLE_ERROR_MEMORY, "no memory for a tile of %lld bytes", static_cast<long long>(schedule_.scratch_bytes));
  }
  std::vector<int64_t> tasks = program.tasks_of_stages();
  const int64_t workers = threads_ ? threads_->count() : parallel_for_ ? parallel_threads_ : 1;
  if (workers == 1) {
    for (size_t stage = 0; stage < tasks.size(); stage++) {
      if (tasks[stage]) program.run_stage(static_cast<int64_t>(stage), 0, tasks[stage]);
    }
    return;
  }
  const auto run = std::make_shared<Run>(program, std::move(tasks), workers, schedule_.scratch_bytes);
  if (threads_) return threads_->run(run);
  parallel_for_(parallel_user_, workers, work_on, run.get());
  // Where parallel_for ran no worker, or none that had memory, the work is still to do.
  run->work(0);
}

separable_tensor Context::result(int64_t index) const {
  if (index < 0 || index >= static_cast<int64_t>(schedule_.results.size())) {
    fail(SEPARABLE_ERROR_ARGUMENT, "the network has no output %lld", static_cast<long long>(index));
  }
  const Result& from = schedule_.results[static_cast<size_t>(index)];
  separable_tensor tensor{};
  tensor.data = static_cast<char*>(workspace_.data()) + from.offset;
  tensor.type = from.type;
  tensor.rank = from.rank;
  memcpy(tensor.shape, from.shape, sizeof tensor.shape);
  memcpy(tensor.strides, from.strides, sizeof tensor.strides);
  return tensor;
}

}  // namespace ts::standalone
