// Runs prepared operations that arrive on the standard input by a kernel library, and writes the workspace to the standard
// output: how the kernels of another kind of processor are tested, in a process that emulates it. conftest.py is the
// other end. Everything is in this processor's byte order, which must be the other end's.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <type_traits>
#include <vector>

#include "../../native/engine/operation.h"

struct Request {
  int64_t precision;
  int64_t count;      // of operations; 0 asks for the shape of the kernels
  int64_t constants;  // bytes that operations point into, by offset + 1
  int64_t memory;     // bytes
  int64_t workspace;  // where it begins in the memory
  int64_t external;   // float32 values
  int64_t threads;
};

template <class Value>
static std::vector<Value> read(int64_t count) {
  std::vector<Value> values(static_cast<size_t>(count));
  if (std::fread(values.data(), sizeof(Value), values.size(), stdin) != values.size()) std::exit(0);
  return values;
}

// A thread for each part.
static int32_t side_by_side(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                            void* context) {
  std::vector<std::thread> threads;
  for (; begin < end; begin += grain) threads.emplace_back(body, begin, std::min(begin + grain, end), context);
  for (std::thread& thread : threads) thread.join();
  return 0;
}

struct alignas(64) Line {
  char bytes[64];
};

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (!library) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  const auto shape_of = reinterpret_cast<void (*)(int64_t, int64_t, int64_t*)>(dlsym(library, "ts_set_shape"));
  const auto run = reinterpret_cast<void (*)(const ts_operation*, int64_t, const ts_part*, const int64_t*, int64_t,
                                             int64_t, void*, const float*, int64_t, ts_parallel_for)>(
      dlsym(library, "ts_run"));
  for (;;) {
    const Request request = read<Request>(1)[0];
    if (!request.count) {
      int64_t shape[9];
      shape_of(0, request.precision, shape);
      std::fwrite(shape, sizeof shape, 1, stdout);
    } else {
      std::vector<ts_operation> operations = read<ts_operation>(request.count);
      const std::vector<Line> constants = read<Line>(request.constants / 64);
      std::vector<Line> memory = read<Line>(request.memory / 64);
      const std::vector<float> external = read<float>(request.external);
      const char* base = constants.data()->bytes;
      const auto moved = [base](auto*& pointer) {
        if (pointer) pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(
            reinterpret_cast<intptr_t>(base) + reinterpret_cast<intptr_t>(pointer) - 1);
      };
      const auto moved_result = [&moved](ts_requantization& result) {
        moved(result.initial);
        moved(result.multiplier);
        moved(result.offset);
      };
      for (ts_operation& op : operations) {
        if (op.precision == TS_UINT8) {
          if (op.kind == TS_CONVOLUTION) {
            moved(op.int8_convolution.weights);
            moved(op.int8_convolution.next_weights);
            moved(op.int8_convolution.depthwise_weights);
            moved_result(op.int8_convolution.result);
            moved_result(op.int8_convolution.depthwise);
          } else if (op.kind == TS_DEPTHWISE) {
            moved(op.int8_depthwise.weights);
            moved_result(op.int8_depthwise.result);
          } else if (op.kind == TS_LOOK_UP) {
            moved(op.int8_elementwise.table);
          }
          continue;
        }
        if (op.kind == TS_CONVOLUTION) {
          moved(op.convolution.weights);
          moved(op.convolution.next_weights);
          moved(op.convolution.bias);
          moved(op.convolution.depthwise_weights);
          moved(op.convolution.depthwise_bias);
        } else if (op.kind == TS_DEPTHWISE) {
          moved(op.depthwise.weights);
          moved(op.depthwise.bias);
        } else if (op.kind == TS_REPAIR_NONFINITE) {
          moved(op.repair.weights);
          moved(op.repair.bias);
        } else if (op.kind == TS_ELEMENTWISE) {
          moved(op.elementwise.constant);
        } else if (op.kind == TS_RESAMPLE) {
          moved(op.resample.rows);
          moved(op.resample.columns);
          moved(op.resample.row_weights);
          moved(op.resample.column_weights);
        } else if (op.kind == TS_NORMALIZE) {
          moved(op.normalize.weight);
          moved(op.normalize.bias);
        }
      }
      run(operations.data(), request.count, nullptr, nullptr, 0, 0, memory.data()->bytes + request.workspace,
          external.data(), request.threads, side_by_side);
      std::fwrite(memory.data(), 64, memory.size(), stdout);
    }
    std::fflush(stdout);
  }
}
