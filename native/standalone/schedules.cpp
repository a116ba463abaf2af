#include "schedules.h"

#include <algorithm>

#include "../engine/program.h"
#include "check.h"
#include "fields.h"

namespace ts::standalone {
namespace {

constexpr int64_t kMostBytes = int64_t{1} << 40;  // of a workspace

// The numbers of Kernels::Shape that packing depends on, in the order in which the file has them.
constexpr int kShapeNumbers = 9;

// A kind of operation as the file writes it: one value for each of the fields, in this order.
struct Layout {
  const Kind* kind;
  const char* name;
  std::vector<const Field*> fields;
};

// The name of a set in files. ARM64 has its NEON kernels as the library's only set.
const char* file_name_of(int64_t set) {
#if defined(__aarch64__)
  if (std::string_view(kernels_of(set).name) == "baseline") return "neon";
#endif
  return kernels_of(set).name;
}

// The number of a set that this processor can run, or -1.
int64_t find_set(std::string_view name) {
  for (int64_t set = 0; set < set_count(); set++) {
    if (name == file_name_of(set)) return runs_here(kernels_of(set)) ? set : -1;
  }
  return -1;
}

std::vector<Layout> read_layouts(Span section, const Texts& texts) {
  Cursor cursor(section, "kinds");
  std::vector<Layout> layouts(cursor.count(2));
  for (Layout& layout : layouts) {
    layout.name = texts.at(cursor.value());
    layout.kind = find_kind(layout.name);
    std::vector<const Field*> fields(cursor.count(1));
    for (const Field*& field : fields) {
      const char* name = texts.at(cursor.value());
      if (!layout.kind) continue;
      field = find_field(*layout.kind, name);
      if (!field) {
        fail(SEPARABLE_ERROR_VERSION, "this library does not know the field %.60s of the operation %.60s: update it", name,
             layout.name);
      }
    }
    layout.fields = std::move(fields);
  }
  return layouts;
}

class ScheduleReader {
 public:
  ScheduleReader(const Sections& sections, const Texts& texts, const Description& input,
                 const std::vector<Description>& outputs)
      : texts_(texts),
        input_(input),
        outputs_(outputs),
        layouts_(read_layouts(sections.at("kinds"), texts)),
        blobs_(sections.at("blobs")),
        weights_(sections.at("weights")) {}

  Schedule read(Cursor cursor, int64_t set, const char* name) {
    Schedule schedule{};
    schedule.set = set;
    schedule.instruction_set = name;
    schedule.batch = cursor.number("a batch size", 1, INT32_MAX);
    schedule.threads = cursor.number("a number of threads", 1, INT32_MAX);
    schedule.workspace_bytes = cursor.number("the size of a workspace", 1, kMostBytes);
    check_shapes(cursor);
    limits_ = {schedule.workspace_bytes, schedule.batch, input_.shape[1], input_.shape[2], input_.shape[3]};
    schedule.operations.resize(cursor.count(2));
    std::vector<int64_t> tasks;
    for (size_t i = 0; i < schedule.operations.size(); i++) {
      const Kind& kind = read_operation(cursor, schedule.operations[i]);
      if (schedule.operations[i].kind == TS_RESAMPLE) own_tables(schedule, schedule.operations[i]);
      Check check(kind, schedule.operations[i], references_, static_cast<int64_t>(i), limits_);
      check.run();
      schedule.scratch_bytes = std::max(schedule.scratch_bytes, check.scratch_bytes());
      tasks.push_back(check.tasks());
    }
    read_task_lists(cursor, schedule, tasks);
    read_results(cursor, schedule);
    return schedule;
  }

 private:
  // The file's weights are packed for kernels of certain sizes; these must be the library's.
  void check_shapes(Cursor& cursor) const {
    for (uint64_t left = cursor.count(2 + kShapeNumbers); left > 0; left--) {
      const char* name = texts_.at(cursor.value());
      const int64_t set = find_set(name), precision = cursor.number("a precision", 0, kPrecisions - 1);
      int64_t numbers[kShapeNumbers];
      for (int64_t& number : numbers) number = static_cast<int64_t>(cursor.value());
      if (set < 0) fail(SEPARABLE_ERROR_PROCESSOR, "a schedule needs the instruction set %.40s as well", name);
      const Kernels::Shape& own = kernels_of(set).shapes[precision];
      const int64_t expected[] = {own.vector,        own.panel,    own.rows,        own.channels, own.depth,
                                  own.operand_bytes, own.even_odd, own.paired_tail, own.shift};
      if (!std::equal(numbers, numbers + kShapeNumbers, expected)) {
        fail(SEPARABLE_ERROR_VERSION, "the weights are packed for other kernels of %.40s than this library has: export again",
             name);
      }
    }
  }

  // Makes `op` the next operation of the file, and `references_` the weights that it points to.
  const Kind& read_operation(Cursor& cursor, ts_operation& op) {
    const uint64_t number = cursor.value();
    if (number >= layouts_.size()) fail(SEPARABLE_ERROR_FORMAT, "an operation has no kind: the file is damaged");
    const Layout& layout = layouts_[number];
    if (!layout.kind) {
      fail(SEPARABLE_ERROR_VERSION, "this library does not know the operation %.60s: update it", layout.name);
    }
    op = {};
    op.kind = layout.kind->kind;
    op.instruction_set = -1;
    references_.clear();
    for (const Field* field : layout.fields) assign(reinterpret_cast<char*>(&op) + field->offset, *field, cursor.value());
    if (op.instruction_set < 0) fail(SEPARABLE_ERROR_FORMAT, "an operation names no instruction set: the file is damaged");
    if (op.precision < 0 || op.precision >= kPrecisions) {
      fail(SEPARABLE_ERROR_FORMAT, "an operation has an unknown precision: the file is damaged");
    }
    return *layout.kind;
  }

  void assign(char* to, const Field& field, uint64_t value) {
    switch (field.type) {
      case FieldType::kInt64: memcpy(to, &value, sizeof value); break;
      case FieldType::kInt32: {
        const int64_t wide = static_cast<int64_t>(value);
        if (wide < INT32_MIN || wide > INT32_MAX) {
          fail(SEPARABLE_ERROR_FORMAT, "the field %s does not fit 32 bits: the file is damaged", field.name);
        }
        const int32_t narrow = static_cast<int32_t>(wide);
        memcpy(to, &narrow, sizeof narrow);
        break;
      }
      case FieldType::kFloat: {
        double wide;
        memcpy(&wide, &value, sizeof wide);
        const float narrow = static_cast<float>(wide);
        memcpy(to, &narrow, sizeof narrow);
        break;
      }
      case FieldType::kDouble: memcpy(to, &value, sizeof value); break;
      case FieldType::kSet: {
        const char* name = texts_.at(value);
        const int64_t set = find_set(name);
        if (set < 0) fail(SEPARABLE_ERROR_PROCESSOR, "an operation needs the instruction set %.40s as well", name);
        const int32_t narrow = static_cast<int32_t>(set);
        memcpy(to, &narrow, sizeof narrow);
        break;
      }
      case FieldType::kAddress: {
        const void* address = nullptr;
        if (value) {
          references_.push_back(blob(value - 1));
          address = references_.back().address;
        }
        memcpy(to, &address, sizeof address);
        break;
      }
    }
  }

  Reference blob(uint64_t index) const {
    if (index >= blobs_.size / 16) fail(SEPARABLE_ERROR_FORMAT, "an operation names weights that the file lacks");
    uint64_t place[2];  // offset, size
    memcpy(place, blobs_.data + index * sizeof place, sizeof place);
    if (place[0] % 64 != 0 || place[0] > weights_.size || place[1] > weights_.size - place[0]) {
      fail(SEPARABLE_ERROR_FORMAT, "weights lie outside of their section, or not at a multiple of 64 bytes");
    }
    return {weights_.data + place[0], place[1]};
  }

  // Copies the tables of a resampling before they are checked: what lies in the file may change while it is mapped.
  void own_tables(Schedule& schedule, ts_operation& op) {
    for (const int32_t** table : {&op.resample.rows, &op.resample.columns}) {
      for (Reference& reference : references_) {
        if (reference.address != *table) continue;
        const auto* from = static_cast<const int32_t*>(reference.address);
        schedule.tables.emplace_back(from, from + reference.bytes / sizeof *from);
        *table = schedule.tables.back().data();
        references_.push_back({*table, reference.bytes / sizeof *from * sizeof *from});
        break;
      }
    }
  }

  static void read_task_lists(Cursor& cursor, Schedule& schedule, const std::vector<int64_t>& tasks) {
    const int64_t count = static_cast<int64_t>(tasks.size());
    schedule.covered = cursor.number("the number of operations in task lists", 0, count);
    schedule.parts.resize(cursor.count(3));
    for (ts_part& part : schedule.parts) {
      part.operation = cursor.number("the operation of a task list", 0, schedule.covered - 1);
      part.end = cursor.number("the end of a task list's part", 0, tasks[static_cast<size_t>(part.operation)]);
      part.begin = cursor.number("the begin of a task list's part", 0, part.end);
    }
    schedule.ends.resize(cursor.count(1));
    int64_t before = 0;
    for (int64_t& end : schedule.ends) {
      end = cursor.number("the end of a task list", before, static_cast<int64_t>(schedule.parts.size()));
      before = end;
    }
  }

  void read_results(Cursor& cursor, Schedule& schedule) const {
    schedule.results.resize(cursor.count(3));
    if (schedule.results.size() != outputs_.size()) {
      fail(SEPARABLE_ERROR_FORMAT, "a schedule has another number of outputs than the network: the file is damaged");
    }
    for (size_t i = 0; i < schedule.results.size(); i++) {
      Result& result = schedule.results[i];
      result = {};
      result.type = static_cast<int32_t>(cursor.number("the type of an output", SEPARABLE_FLOAT32, SEPARABLE_UINT8));
      result.rank = static_cast<int32_t>(cursor.number("the rank of an output", 1, SEPARABLE_MAX_RANK));
      result.offset = cursor.number("the offset of an output", 0, kMostBytes);
      const int64_t each = result.type == SEPARABLE_FLOAT32 ? 4 : result.type == SEPARABLE_BFLOAT16 ? 2 : 1;
      Size last = 1;
      for (int32_t d = 0; d < result.rank; d++) {
        result.shape[d] = cursor.number("the size of an output", 1, INT32_MAX);
        result.strides[d] = cursor.number("the stride of an output", 0, INT32_MAX);
        last = last + Size(result.shape[d] - 1) * result.strides[d];
      }
      const Description& output = outputs_[i];
      const bool same = result.rank == output.rank && std::equal(result.shape + 1, result.shape + result.rank, output.shape + 1);
      if (!same) fail(SEPARABLE_ERROR_FORMAT, "the schedules differ in the shape of an output: the file is damaged");
      if (result.offset % each != 0 || last * each + result.offset > Size(schedule.workspace_bytes)) {
        fail(SEPARABLE_ERROR_FORMAT, "an output lies beyond the workspace: the file is damaged");
      }
      if ((result.type == SEPARABLE_UINT8) != (output.type == SEPARABLE_UINT8)) {
        fail(SEPARABLE_ERROR_FORMAT, "a schedule has an output of another type than the network: the file is damaged");
      }
    }
  }

  const Texts& texts_;
  const Description& input_;
  const std::vector<Description>& outputs_;
  const std::vector<Layout> layouts_;
  const Span blobs_, weights_;
  std::vector<Reference> references_;
  Limits limits_{};
};

}  // namespace

std::vector<Schedule> read_schedules(const Sections& sections, const Texts& texts, const Description& input,
                                     const std::vector<Description>& outputs, std::string* in_file) {
  ScheduleReader reader(sections, texts, input, outputs);
  Cursor cursor(sections.at("plans"), "plans");
  std::vector<Schedule> found;
  for (uint64_t left = cursor.count(2); left > 0; left--) {
    const char* name = texts.at(cursor.value());
    const Cursor own = cursor.part(cursor.value());
    if (in_file->find(name) == std::string::npos) *in_file += (in_file->empty() ? "" : ", ") + std::string(name);
    if (const int64_t set = find_set(name); set >= 0) found.push_back(reader.read(own, set, name));
  }
  std::stable_sort(found.begin(), found.end(), [](const Schedule& a, const Schedule& b) {
    const bool a_pays = pays_here(kernels_of(a.set)), b_pays = pays_here(kernels_of(b.set));
    return a_pays != b_pays ? a_pays : a.set < b.set;
  });
  return found;
}

}  // namespace ts::standalone
