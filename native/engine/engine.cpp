// The library's C interface: which instruction sets there are, and running a program.
#include <cstdlib>
#include <memory>
#include <string_view>
#include <vector>

#if defined(TS_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "../kernels/kernels.h"
#include "../kernels/scratch.h"
#include "claimed_run.h"
#include "cpu_features.h"
#include "program.h"
#include "thread_pool.h"

#define TS_API extern "C" __attribute__((visibility("default")))

namespace ts {

// The build defines TS_SETS as TS_SET(name) for every instruction set that it compiled, the best first.
#define TS_SET(name) \
  namespace name { extern const Kernels kernels; }
TS_SETS
#undef TS_SET

namespace {
struct Buffer {
  void* data = nullptr;
  int64_t size = 0;
  ~Buffer() { std::free(data); }
};
thread_local Buffer buffer;
}  // namespace

bool reserve_scratch(int64_t bytes) {
  if (buffer.size >= bytes) return true;
  std::free(buffer.data);
  buffer.data = std::aligned_alloc(64, (static_cast<size_t>(bytes) + 63) / 64 * 64);
  buffer.size = buffer.data ? bytes : 0;
  return buffer.data != nullptr;
}

void* scratch(int64_t bytes) {
  if (!reserve_scratch(bytes)) std::abort();  // no memory for some kilobytes, on a thread that cannot report an error
  return buffer.data;
}

#define TS_SET(name) &name::kernels,
static const Kernels* const kSets[] = {TS_SETS};
#undef TS_SET
constexpr int kSetCount = sizeof kSets / sizeof *kSets;

#if defined(TS_X86) && !defined(TS_EMULATE)
// A process must ask Linux once for permission to use AMX's tile registers (Documentation/arch/x86/xstate.rst).
static bool may_use_tiles() {
#ifdef __linux__
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#endif

const Kernels& kernels_of(int64_t set) { return *kSets[set]; }

int64_t set_count() { return kSetCount; }

bool runs_here(const Kernels& set) {
#ifdef TS_EMULATE
  static_cast<void>(set);
  return true;  // an emulated build implements every set with instructions that the processor has
#else
  const std::string_view name = set.name;
#ifdef TS_X86
  const CpuFeatures& cpu = cpu_features();
  if (name == "amx") return cpu.amx_bf16 && cpu.avx512_vnni && may_use_tiles();
  if (name == "avx512bf16") return cpu.avx512_bf16 && cpu.avx512_vnni;
  if (name == "avx512vnni") return cpu.avx512_vnni;
  if (name == "avx512") return cpu.avx512;
  if (name == "avxvnni") return cpu.avx_vnni;
  if (name == "avx2") return cpu.avx2_fma;
#endif
  return name == "baseline";
#endif
}

// Whether a set that runs here is faster than those after it. Intel's cores take twice as long for a dot product of
// bfloat16 as for the two multiply-adds that it stands for (measured on Emerald Rapids); they have AMX instead.
bool pays_here(const Kernels& set) {
#if defined(TS_X86) && !defined(TS_EMULATE)
  if (std::string_view(set.name) == "avx512bf16") return !cpu_features().intel;
#endif
  static_cast<void>(set);
  return true;
}

// Runs workers [begin, end). If parallel_for gives several workers to one thread, the first of them runs all tasks.
static void run_workers(int64_t begin, int64_t end, void* run) {
  for (int64_t worker = begin; worker < end; worker++) static_cast<ClaimedRun*>(run)->work(worker);
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
  volatile float sink = 0;  // writing to it keeps the compiler from removing the work
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

// Version of the functions and structures of this interface. library.py refuses a library with another number.
constexpr int32_t kInterface = 10;
TS_API int32_t ts_interface() { return kInterface; }

// Size of ts_operation in bytes. library.py compares it with that of its own description.
TS_API int32_t ts_operation_size() { return sizeof(ts_operation); }

TS_API int64_t ts_set_count() { return ts::kSetCount; }

TS_API const char* ts_set_name(int64_t set) { return ts::kSets[set]->name; }

TS_API int64_t ts_set_runs_here(int64_t set) { return ts::runs_here(*ts::kSets[set]); }

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

TS_API int64_t ts_set_pays_here(int64_t set) { return ts::pays_here(*ts::kSets[set]); }

// Writes the fields of Kernels::Shape in order, for an instruction set and a ts_precision.
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
  shape[8] = from.shift;
}

// Tasks do not depend on the set. The last one runs everywhere, so operations can be planned for another processor.
TS_API int64_t ts_tasks(const ts_operation* operation) { return ts::kSets[ts::kSetCount - 1]->tasks(*operation); }

// Runs operations [0, count). Task lists, which are independent of each other, contain the first `covered` operations: list i
// is parts[ends[i - 1]] to parts[ends[i] - 1]. The other operations follow in order. TS_IMPORT reads `external`.
//
// At most `threads` threads take part: those of `parallel`, which is called once, or, if it is null, the caller and threads of
// the library's own pool. Results have the same bits for any number of threads. See claimed_run.h.
TS_API void ts_run(const ts_operation* operations, int64_t count, const ts_part* parts, const int64_t* ends,
                   int64_t lists, int64_t covered, void* workspace, const float* external, int64_t threads,
                   ts_parallel_for parallel) {
  const ts::Program program{operations, count, parts, ends, lists, covered, workspace, external};
  std::vector<int64_t> tasks = program.tasks_of_stages();
  if (threads <= 1) {
    for (size_t stage = 0; stage < tasks.size(); stage++) {
      if (tasks[stage]) program.run_stage(static_cast<int64_t>(stage), 0, tasks[stage]);
    }
    return;
  }
  const auto run = std::make_shared<ts::ClaimedRun>(std::move(tasks), threads, ts::run_tasks, &program);
  if (parallel) {
    parallel(0, threads, 1, ts::run_workers, run.get());
  } else {
    ts::run_with_helpers(run, threads - 1);
  }
}

// Number of CPUs that this process may use, by its affinity and its control group's quota.
TS_API int64_t ts_available_cpus() { return ts::available_cpus(); }

// Number of threads that the library's pool has started in this process, and how often one of them has joined a run.
TS_API int64_t ts_pool_threads() { return ts::pool_statistics().threads; }
TS_API int64_t ts_pool_joined() { return ts::pool_statistics().joined; }

// Each thread runs `rounds` rounds of multiply-adds in registers or, if `from` is given, reads its part of `floats` values
// `rounds` times. Returns the floating-point operations (two for each multiply-add) or the bytes of all threads. The caller
// measures the time.
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
