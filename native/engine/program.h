// A list of operations that is ready to run: the stages and tasks that threads claim (claimed_run.h).
#pragma once

#include <vector>

#include "../kernels/kernels.h"

namespace ts {

// The kernels of an instruction set, by its number.
const Kernels& kernels_of(int64_t set);

// Whether this processor can run an instruction set, and whether it is faster here than those after it.
bool runs_here(const Kernels& set);
bool pays_here(const Kernels& set);

int64_t set_count();

// A list of operations and its operands. They belong to the caller and stay valid until the run is done.
struct Program {
  const ts_operation* operations;
  int64_t count;
  const ts_part* parts;
  const int64_t* ends;  // of each task list, among the parts
  int64_t lists;
  int64_t covered;      // operations that the task lists execute
  void* workspace;
  const float* external;

  // The first stage consists of the task lists, each of which is one task; each operation behind them is a stage.
  std::vector<int64_t> tasks_of_stages() const {
    std::vector<int64_t> tasks;
    tasks.reserve(static_cast<size_t>(count - covered + 1));
    tasks.push_back(lists);
    for (int64_t i = covered; i < count; i++) {
      tasks.push_back(kernels_of(operations[i].instruction_set).tasks(operations[i]));
    }
    return tasks;
  }

  void run(const ts_part& part) const {
    const ts_operation& operation = operations[part.operation];
    kernels_of(operation.instruction_set).run(operation, workspace, external, part.begin, part.end);
  }

  void run_stage(int64_t stage, int64_t begin, int64_t end) const {
    if (stage) return run({covered + stage - 1, begin, end});
    for (int64_t part = begin ? ends[begin - 1] : 0; part < ends[end - 1]; part++) run(parts[part]);
  }
};

// As ClaimedRun calls it, with a program.
inline void run_tasks(const void* program, int64_t stage, int64_t begin, int64_t end) {
  static_cast<const Program*>(program)->run_stage(stage, begin, end);
}

}  // namespace ts
