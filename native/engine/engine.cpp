// The library's C interface: which instruction sets there are, and running a program.
#include <cstdlib>
#include <cstring>
#include <memory>

#include "../kernels/kernels.h"
#include "../kernels/scratch.h"

namespace ts {

namespace baseline { extern const Kernels kernels; }
#ifdef TS_X86
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
#endif

float* scratch(int64_t floats) {
  struct Room {
    float* data = nullptr;
    int64_t size = 0;
    ~Room() { std::free(data); }
  };
  thread_local Room room;
  if (room.size < floats) {
    std::free(room.data);
    const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
    room.data = static_cast<float*>(std::aligned_alloc(64, bytes));
    room.size = room.data ? floats : 0;
    if (!room.data) std::abort();  // out of memory for some kilobytes, on a thread that cannot report it
  }
  return room.data;
}

// The best set first.
static const Kernels* const kSets[] = {
#ifdef TS_X86
    &avx512::kernels,
    &avx2::kernels,
#endif
    &baseline::kernels,
};
constexpr int kSetCount = sizeof kSets / sizeof *kSets;

static bool runs_here(const Kernels* set) {
#ifdef TS_X86
  __builtin_cpu_init();
  if (!std::strcmp(set->name, "avx512")) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
  }
  if (!std::strcmp(set->name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return !std::strcmp(set->name, "baseline");
}

struct Part {
  const Kernels* set;
  const ts_operation* op;
  float* workspace;
  const float* external;
};

static void run_part(int64_t begin, int64_t end, void* context) {
  const Part& part = *static_cast<const Part*>(context);
  part.set->run(*part.op, part.workspace, part.external, begin, end);
}

// A thread's share of a measurement of the machine.
struct Measurement {
  const Kernels* set;
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
      sink = work.set->multiply_add(work.rounds);
      continue;
    }
    for (int64_t round = 0; round < work.rounds; round++) {
      sink = work.set->read_through(work.from + part * work.floats, work.floats);
    }
  }
}

}  // namespace ts

#define TS_API extern "C" __attribute__((visibility("default")))

// Bytes of ts_operation: the Python side checks that it describes the same layout.
TS_API int64_t ts_operation_size() { return sizeof(ts_operation); }

TS_API int64_t ts_set_count() { return ts::kSetCount; }

TS_API const char* ts_set_name(int64_t set) { return ts::kSets[set]->name; }

TS_API int64_t ts_set_runs_here(int64_t set) { return ts::runs_here(ts::kSets[set]); }

// Lanes, panel and rows of a set, in this order.
TS_API void ts_set_shape(int64_t set, int64_t* shape) {
  shape[0] = ts::kSets[set]->lanes;
  shape[1] = ts::kSets[set]->panel;
  shape[2] = ts::kSets[set]->rows;
}

TS_API int64_t ts_tasks(int64_t set, const ts_operation* operation) { return ts::kSets[set]->tasks(*operation); }

// Executes operations in order, or, on one thread, their tasks in the order of `parts` where there are any. `external` is
// what TS_IMPORT reads. With more than one thread the tasks of an operation are shared out by `parallel`.
TS_API void ts_run(int64_t set, const ts_operation* operations, int64_t count, const ts_part* parts, int64_t part_count,
                   float* workspace, const float* external, int64_t threads, ts_parallel_for parallel) {
  const ts::Kernels* kernels = ts::kSets[set];
  if (parts) {
    for (int64_t i = 0; i < part_count; i++) {
      kernels->run(operations[parts[i].operation], workspace, external, parts[i].begin, parts[i].end);
    }
    return;
  }
  for (int64_t i = 0; i < count; i++) {
    const ts_operation& op = operations[i];
    const int64_t tasks = kernels->tasks(op);
    if (threads == 1 || tasks == 1 || !parallel) {
      kernels->run(op, workspace, external, 0, tasks);
    } else {
      ts::Part part{kernels, &op, workspace, external};
      parallel(0, tasks, (tasks + threads - 1) / threads, ts::run_part, &part);
    }
  }
}

// Has every thread do `rounds` rounds of multiply-adds in registers, or, where `from` is given, read its part of `floats`
// values as often. Returns the floating-point operations (two for a multiply-add) or the bytes of all threads together;
// the caller holds the clock.
TS_API int64_t ts_measure(int64_t set, int64_t rounds, const float* from, int64_t floats, int64_t threads,
                          ts_parallel_for parallel) {
  const ts::Kernels* kernels = ts::kSets[set];
  ts::Measurement work{kernels, rounds, from, floats};
  if (threads == 1 || !parallel) {
    ts::measure_part(0, 1, &work);
  } else {
    parallel(0, threads, 1, ts::measure_part, &work);
  }
  const int64_t parts = threads == 1 || !parallel ? 1 : threads;
  return parts * rounds * (from ? floats * static_cast<int64_t>(sizeof(float)) : 2 * kernels->chains * kernels->lanes);
}
