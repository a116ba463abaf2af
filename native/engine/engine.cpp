// The library's C interface: which instruction sets there are, and running a program.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <thread>
#include <utility>

#if defined(TS_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "../kernels/kernels.h"
#include "../kernels/scratch.h"
#include "cpu_features.h"

#define TS_API extern "C" __attribute__((visibility("default")))

TS_API int64_t ts_tasks(const ts_operation* operation);

namespace ts {

// The build says which sets there are: TS_SETS is TS_SET(name) of each, the best first.
#define TS_SET(name) \
  namespace name { extern const Kernels kernels; }
TS_SETS
#undef TS_SET

void* scratch(int64_t bytes) {
  struct Room {
    void* data = nullptr;
    int64_t size = 0;
    ~Room() { std::free(data); }
  };
  thread_local Room room;
  if (room.size < bytes) {
    std::free(room.data);
    room.data = std::aligned_alloc(64, (static_cast<size_t>(bytes) + 63) / 64 * 64);
    room.size = room.data ? bytes : 0;
    if (!room.data) std::abort();  // out of memory for some kilobytes, on a thread that cannot report it
  }
  return room.data;
}

#define TS_SET(name) &name::kernels,
static const Kernels* const kSets[] = {TS_SETS};
#undef TS_SET
constexpr int kSetCount = sizeof kSets / sizeof *kSets;

#if defined(TS_X86) && !defined(TS_EMULATE)
// Linux gives a process the state of AMX's tiles when it asks, once (Documentation/arch/x86/xstate.rst).
static bool may_use_tiles() {
#ifdef __linux__
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#endif

static bool runs_here(const Kernels* set) {
#ifdef TS_EMULATE
  static_cast<void>(set);
  return true;  // the sets that this processor lacks were built from instructions that it has
#else
  const std::string_view name = set->name;
#ifdef TS_X86
  const CpuFeatures& cpu = cpu_features();
  if (name == "amx") return cpu.amx_bf16 && may_use_tiles();
  if (name == "avx512bf16") return cpu.avx512_bf16;
  if (name == "avx512") return cpu.avx512;
  if (name == "avx2") return cpu.avx2_fma;
#endif
  return name == "baseline";
#endif
}

// Whether a set that runs here is faster than those after it. Intel's cores take twice as long for a dot product of
// bfloat16 as for the two multiply-adds that it stands for (measured on Emerald Rapids); they have AMX instead.
static bool pays_here(const Kernels* set) {
#if defined(TS_X86) && !defined(TS_EMULATE)
  if (std::string_view(set->name) == "avx512bf16") return !cpu_features().intel;
#endif
  static_cast<void>(set);
  return true;
}

// Lets workers wait for one another. They wait awake, as a thread that sleeps takes longer to wake than most layers leave to
// wait for; after kLooks they step aside between looks, as there may be fewer cores than threads.
class Barrier {
 public:
  explicit Barrier(int64_t workers) : workers_(workers) {}

  // Returns when all workers have come; so many come with this thread.
  void wait(int64_t coming) {
    const int64_t turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(coming, std::memory_order_acq_rel) + coming == workers_) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    for (int64_t looks = 0; turn_.load(std::memory_order_acquire) == turn; looks++) {
      if (looks < kLooks) {
        rest();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  static constexpr int64_t kLooks = 2000;

  static void rest() {
#ifdef TS_X86
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  const int64_t workers_;
  alignas(64) std::atomic<int64_t> arrived_{0};  // apart: those that look are not disturbed by those that come
  alignas(64) std::atomic<int64_t> turn_{0};
};

// What all threads of a run share.
struct Run {
  const ts_operation* operations;
  int64_t count;
  const ts_part* parts;
  const int64_t* ends;  // of each course, among the parts
  int64_t courses;
  int64_t covered;      // operations, by the courses
  void* workspace;
  const float* external;
  int64_t workers;
  Barrier barrier{workers};

  void run(const ts_part& part) const {
    const ts_operation& operation = operations[part.operation];
    kSets[operation.instruction_set]->run(operation, workspace, external, part.begin, part.end);
  }

  void run_courses(int64_t begin, int64_t end) const {
    if (begin >= end) return;
    for (int64_t part = begin ? ends[begin - 1] : 0; part < ends[end - 1]; part++) run(parts[part]);
  }
};

// The share of workers [begin, end) of so many tasks: neighbouring ones.
static std::pair<int64_t, int64_t> share_of(int64_t tasks, int64_t workers, int64_t begin, int64_t end) {
  const int64_t each = (tasks + workers - 1) / workers;
  return {std::min(begin * each, tasks), std::min(end * each, tasks)};
}

// What workers [begin, end) do of a run, in step with the others. A thread may be given several of them, or all.
static void run_workers(int64_t begin, int64_t end, void* context) {
  Run& all = *static_cast<Run*>(context);
  if (all.courses) {
    const auto [first, last] = share_of(all.courses, all.workers, begin, end);
    all.run_courses(first, last);
    if (all.covered < all.count) all.barrier.wait(end - begin);
  }
  for (int64_t i = all.covered; i < all.count; i++) {
    const auto [first, last] = share_of(ts_tasks(all.operations + i), all.workers, begin, end);
    if (first < last) all.run({i, first, last});
    if (i + 1 < all.count) all.barrier.wait(end - begin);
  }
}

// A thread's share of a measurement of the machine.
struct Measurement {
  const Kernels* set;
  int64_t precision;
  int64_t rounds;      // of multiply-adds, or of reading
  const float* from;   // read where it is not null, each thread a part of its own
  int64_t floats;      // of a part
};

static void measure_part(int64_t begin, int64_t end, void* context) {
  const Measurement& work = *static_cast<Measurement*>(context);
  volatile float sink = 0;  // whose being written keeps the compiler from leaving the work out
  static_cast<void>(sink);
  for (int64_t part = begin; part < end; part++) {
    if (!work.from) {
      sink = work.set->multiply_add[work.precision](work.rounds);
      continue;
    }
    for (int64_t round = 0; round < work.rounds; round++) {
      sink = work.set->read_through(work.from + part * work.floats, work.floats);
    }
  }
}

}  // namespace ts

// Changes whenever a function or what it takes does: the Python side checks that it is the one that it calls.
constexpr int32_t kInterface = 7;
TS_API int32_t ts_interface() { return kInterface; }

// Bytes of ts_operation: the Python side checks that it describes the same layout.
TS_API int32_t ts_operation_size() { return sizeof(ts_operation); }

TS_API int64_t ts_set_count() { return ts::kSetCount; }

TS_API const char* ts_set_name(int64_t set) { return ts::kSets[set]->name; }

TS_API int64_t ts_set_runs_here(int64_t set) { return ts::runs_here(ts::kSets[set]); }

// Whether the processor and the operating system support a feature, by Linux's name for it in /proc/cpuinfo.
TS_API int64_t ts_cpu_has(const char* feature) {
#ifdef TS_X86
  const std::string_view name = feature;
  const ts::CpuFeatures& cpu = ts::cpu_features();
  if (name == "avx512_vnni") return cpu.avx512_vnni;
  if (name == "avx_vnni") return cpu.avx_vnni;
  if (name == "avx512_bf16") return cpu.avx512_bf16;
  if (name == "amx_bf16") return cpu.amx_bf16;
  if (name == "amx_int8") return cpu.amx_int8;
  if (name == "avx512f") return cpu.avx512;
  if (name == "avx2") return cpu.avx2_fma;
#endif
  static_cast<void>(feature);
  return 0;
}

TS_API int64_t ts_set_pays_here(int64_t set) { return ts::pays_here(ts::kSets[set]); }

// What Kernels::Shape holds, in its order, of a set and a ts_precision.
TS_API void ts_set_shape(int64_t set, int64_t precision, int64_t* shape) {
  const ts::Kernels::Shape& from = ts::kSets[set]->shapes[precision];
  shape[0] = from.vector;
  shape[1] = from.panel;
  shape[2] = from.rows;
  shape[3] = from.channels;
  shape[4] = from.depth;
  shape[5] = from.operand_bytes;
  shape[6] = from.even_odd;
  shape[7] = from.paired_tail;
}

TS_API int64_t ts_tasks(const ts_operation* operation) { return ts::kSets[operation->instruction_set]->tasks(*operation); }

// Executes operations [0, count). The first `covered` of them in courses, which may run side by side, a thread each: a
// course is a sequence of `parts`, up to `ends` of it. Then the others, in order, whose tasks are shared out. Where there is
// more than one thread, `parallel` is called once: its threads must run at the same time, as those of OpenMP do.
// `external` is what TS_IMPORT reads.
TS_API void ts_run(const ts_operation* operations, int64_t count, const ts_part* parts, const int64_t* ends,
                   int64_t courses, int64_t covered, void* workspace, const float* external, int64_t threads,
                   ts_parallel_for parallel) {
  ts::Run all{operations, count, parts, ends, courses, covered, workspace, external, parallel ? threads : 1};
  if (all.workers == 1) {
    ts::run_workers(0, 1, &all);
  } else {
    parallel(0, threads, 1, ts::run_workers, &all);
  }
}

// Has every thread do `rounds` rounds of multiply-adds in registers, or, where `from` is given, read its part of `floats`
// values as often. Returns the floating-point operations (two for a multiply-add) or the bytes of all threads together;
// the caller holds the clock.
TS_API int64_t ts_measure(int64_t set, int64_t precision, int64_t rounds, const float* from, int64_t floats,
                          int64_t threads, ts_parallel_for parallel) {
  const ts::Kernels* kernels = ts::kSets[set];
  ts::Measurement work{kernels, precision, rounds, from, floats};
  if (threads == 1 || !parallel) {
    ts::measure_part(0, 1, &work);
  } else {
    parallel(0, threads, 1, ts::measure_part, &work);
  }
  const int64_t parts = threads == 1 || !parallel ? 1 : threads;
  return parts * rounds * (from ? floats * static_cast<int64_t>(sizeof(float)) : kernels->round[precision]);
}
