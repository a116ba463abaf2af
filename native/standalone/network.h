// A network as a file describes it: schedules of checked operations on weights that stay where the file is mapped.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../engine/operation.h"
#include "file.h"
#include "separable.h"

namespace ts::standalone {

// Where an output lies in the workspace.
struct Result {
  int32_t type;    // a separable_type
  int32_t rank;
  int64_t offset;  // in bytes
  int64_t shape[SEPARABLE_MAX_RANK];
  int64_t strides[SEPARABLE_MAX_RANK];  // in values
};

// The operations for one instruction set, batch size and number of threads.
struct Schedule {
  int64_t set;  // its number
  const char* instruction_set;
  int64_t batch, threads;
  int64_t workspace_bytes, scratch_bytes;  // scratch: of each thread
  std::vector<ts_operation> operations;
  std::vector<ts_part> parts;  // of the task lists, which execute the first `covered` operations
  std::vector<int64_t> ends;
  int64_t covered;
  std::vector<Result> results;
  std::vector<std::vector<int32_t>> tables;  // of resampling: checked values, which a change of the file does not reach
};

struct Description {
  const char* name;
  const char* layout;
  int32_t type, rank;
  int64_t shape[SEPARABLE_MAX_RANK];
  std::vector<float> mean, std;
};

class Network {
 public:
  explicit Network(std::unique_ptr<Mapping> mapping);

  const std::string& metadata() const { return metadata_; }
  const Description& input() const { return input_; }
  const std::vector<Description>& outputs() const { return outputs_; }
  const std::vector<const char*>& classes() const { return classes_; }
  // Those that this processor can run, the best first.
  const std::vector<Schedule>& schedules() const { return schedules_; }
  // The schedule for a batch (0: any), an instruction set (null: the best) and the nearest number of threads.
  const Schedule& choose(int64_t batch, const char* instruction_set, int64_t threads) const;

 private:
  std::unique_ptr<Mapping> mapping_;
  Sections sections_;
  Texts texts_;
  std::string metadata_;
  Description input_;
  std::vector<Description> outputs_;
  std::vector<const char*> classes_;
  std::vector<Schedule> schedules_;
};

}  // namespace ts::standalone
