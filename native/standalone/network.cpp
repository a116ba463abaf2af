#include "network.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "schedules.h"

namespace ts::standalone {
namespace {

std::vector<float> read_channels(Cursor& cursor, const char* what, int64_t channels) {
  std::vector<float> values(cursor.count(1));
  if (!values.empty() && static_cast<int64_t>(values.size()) != channels) {
    fail(SEPARABLE_ERROR_FORMAT, "the file has another number of %s than the input has channels", what);
  }
  for (float& value : values) {
    const uint64_t bits = cursor.value();
    double wide;
    memcpy(&wide, &bits, sizeof wide);
    if (!std::isfinite(wide)) fail(SEPARABLE_ERROR_FORMAT, "one of the %s is not finite: the file is damaged", what);
    value = static_cast<float>(wide);
  }
  return values;
}

Description read_description(Cursor& cursor, const Texts& texts) {
  Description description{};
  description.name = texts.at(cursor.value());
  description.layout = texts.at(cursor.value());
  description.type = static_cast<int32_t>(cursor.number("the type of an array", SEPARABLE_FLOAT32, SEPARABLE_UINT8));
  description.rank = static_cast<int32_t>(cursor.number("the rank of an array", 1, SEPARABLE_MAX_RANK));
  for (int32_t d = 0; d < description.rank; d++) description.shape[d] = cursor.number("a size", 1, INT32_MAX);
  return description;
}

}  // namespace

Network::Network(std::unique_ptr<Mapping> mapping)
    : mapping_(std::move(mapping)), sections_(mapping_->bytes()), texts_(sections_.at("texts")) {
  const Span metadata = sections_.at("metadata");
  metadata_.assign(reinterpret_cast<const char*>(metadata.data), metadata.size);
  Cursor cursor(sections_.at("network"), "network");
  input_ = read_description(cursor, texts_);
  if (input_.rank != 4 || input_.type != SEPARABLE_FLOAT32) {
    fail(SEPARABLE_ERROR_FORMAT, "the input is not float32 (N, C, H, W): the file is damaged");
  }
  input_.mean = read_channels(cursor, "means", input_.shape[1]);
  input_.std = read_channels(cursor, "standard deviations", input_.shape[1]);
  const uint64_t outputs = cursor.count(5);
  for (uint64_t i = 0; i < outputs; i++) outputs_.push_back(read_description(cursor, texts_));
  classes_.resize(cursor.count(1));
  for (const char*& name : classes_) name = texts_.at(cursor.value());
  std::string in_file;
  schedules_ = read_schedules(sections_, texts_, input_, outputs_, &in_file);
  if (schedules_.empty()) {
    fail(SEPARABLE_ERROR_PROCESSOR, "this processor can run none of the instruction sets that the network was compiled for: %.150s",
         in_file.c_str());
  }
}

const Schedule& Network::choose(int64_t batch, const char* instruction_set, int64_t threads) const {
  const Schedule* best = nullptr;
  const auto distance = [&](const Schedule& schedule) { return std::abs(schedule.threads - threads); };
  for (const Schedule& schedule : schedules_) {
    if (instruction_set && std::string_view(instruction_set) != schedule.instruction_set) continue;
    if (batch && batch != schedule.batch) continue;
    // The first set that fits is the best one, the first batch the default.
    const bool alike = best && best->set == schedule.set && best->batch == schedule.batch;
    if (!best || (alike && distance(schedule) < distance(*best))) best = &schedule;
  }
  if (!best) {
    fail(SEPARABLE_ERROR_ARGUMENT, "the network was not compiled for batch %lld and instruction set %.40s",
         static_cast<long long>(batch), instruction_set ? instruction_set : "(any)");
  }
  return *best;
}

}  // namespace ts::standalone
