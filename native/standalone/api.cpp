// The C functions of separable.h: arguments are checked here, and every exception becomes a status and a sentence.
#include <cstring>
#include <memory>
#include <new>
#include <system_error>

#include "context.h"
#include "failure.h"
#include "network.h"
#include "separable.h"
#include "threads.h"

using ts::standalone::Context;
using ts::standalone::fail;
using ts::standalone::Failure;
using ts::standalone::Mapping;
using ts::standalone::Network;
using ts::standalone::Threads;

struct separable_network {
  std::shared_ptr<const Network> network;
};
struct separable_context {
  Context context;
};
struct separable_threads {
  std::shared_ptr<Threads> threads;
};

namespace {

int report(separable_error* error, separable_status status, const char* text) {
  if (error) {
    memset(error, 0, sizeof *error);
    strncpy(error->text, text, sizeof error->text - 1);
  }
  return status;
}

template <class Body>
int guarded(separable_error* error, Body body) {
  try {
    body();
    return report(error, SEPARABLE_OK, "");
  } catch (const Failure& failure) {
    return report(error, failure.status, failure.error.text);
  } catch (const std::bad_alloc&) {
    return report(error, SEPARABLE_ERROR_MEMORY, "out of memory");
  } catch (const std::system_error& problem) {
    return report(error, SEPARABLE_ERROR_MEMORY, problem.what());
  } catch (const std::exception& problem) {
    return report(error, SEPARABLE_ERROR_ARGUMENT, problem.what());
  }
}

void require(const void* argument, const char* name) {
  if (!argument) fail(SEPARABLE_ERROR_ARGUMENT, "the argument %s is NULL", name);
}

void describe(const ts::standalone::Description& from, separable_description* to) {
  *to = {};
  to->name = from.name;
  to->layout = from.layout;
  to->type = from.type;
  to->rank = from.rank;
  memcpy(to->shape, from.shape, sizeof to->shape);
  to->mean = from.mean.empty() ? nullptr : from.mean.data();
  to->std = from.std.empty() ? nullptr : from.std.data();
}

}  // namespace

extern "C" {

const char* separable_version(void) { return "1.0"; }

int separable_open(const char* path, separable_network** network, separable_error* error) {
  return guarded(error, [&] {
    require(path, "path");
    require(network, "network");
    *network = nullptr;
    *network = new separable_network{std::make_shared<const Network>(Mapping::open(path))};
  });
}

int separable_open_memory(const void* data, size_t size, separable_network** network, separable_error* error) {
  return guarded(error, [&] {
    require(network, "network");
    *network = nullptr;
    *network = new separable_network{std::make_shared<const Network>(Mapping::of(data, size))};
  });
}

void separable_close(separable_network* network) { delete network; }

const char* separable_metadata(const separable_network* network, size_t* size) {
  if (!network) return nullptr;
  if (size) *size = network->network->metadata().size();
  return network->network->metadata().c_str();
}

const char* separable_class_name(const separable_network* network, int64_t index) {
  if (!network || index < 0) return nullptr;
  const auto& classes = network->network->classes();
  return static_cast<size_t>(index) < classes.size() ? classes[static_cast<size_t>(index)] : nullptr;
}

int separable_input(const separable_network* network, separable_description* description) {
  if (!network || !description) return SEPARABLE_ERROR_ARGUMENT;
  describe(network->network->input(), description);
  return SEPARABLE_OK;
}

int64_t separable_output_count(const separable_network* network) {
  return network ? static_cast<int64_t>(network->network->outputs().size()) : 0;
}

int separable_output(const separable_network* network, int64_t index, separable_description* description) {
  if (!network || !description || index < 0 || index >= separable_output_count(network)) return SEPARABLE_ERROR_ARGUMENT;
  describe(network->network->outputs()[static_cast<size_t>(index)], description);
  return SEPARABLE_OK;
}

int separable_schedule_at(const separable_network* network, int64_t index, separable_schedule* schedule) {
  if (!network || !schedule || index < 0) return SEPARABLE_ERROR_ARGUMENT;
  const auto& schedules = network->network->schedules();
  if (static_cast<size_t>(index) >= schedules.size()) return SEPARABLE_ERROR_ARGUMENT;
  const auto& from = schedules[static_cast<size_t>(index)];
  *schedule = {from.instruction_set, from.batch, from.threads, from.workspace_bytes};
  return SEPARABLE_OK;
}

int separable_threads_create(int64_t count, const int32_t* cpus, size_t cpu_count, separable_threads** threads,
                             separable_error* error) {
  return guarded(error, [&] {
    require(threads, "threads");
    *threads = nullptr;
    if (cpu_count) require(cpus, "cpus");
    if (count < 1 || count > 4096) fail(SEPARABLE_ERROR_ARGUMENT, "%lld threads: must be 1 to 4096", static_cast<long long>(count));
    *threads = new separable_threads{std::make_shared<Threads>(count, std::vector<int32_t>(cpus, cpus + cpu_count))};
  });
}

void separable_threads_free(separable_threads* threads) { delete threads; }

int separable_context_create(const separable_network* network, const separable_options* options,
                             separable_context** context, separable_error* error) {
  return guarded(error, [&] {
    require(network, "network");
    require(context, "context");
    *context = nullptr;
    const separable_options chosen = options ? *options : separable_options{};
    if (chosen.threads && chosen.parallel_for) fail(SEPARABLE_ERROR_ARGUMENT, "pass threads or parallel_for, not both");
    if (chosen.parallel_for && (chosen.parallel_threads < 1 || chosen.parallel_threads > 4096)) {
      fail(SEPARABLE_ERROR_ARGUMENT, "parallel_threads must be 1 to 4096");
    }
    if (chosen.batch < 0) fail(SEPARABLE_ERROR_ARGUMENT, "a negative batch");
    *context = new separable_context{
        {network->network, chosen, chosen.threads ? chosen.threads->threads : std::shared_ptr<Threads>()}};
  });
}

void separable_context_free(separable_context* context) { delete context; }

int separable_run(separable_context* context, const separable_tensor* input, const separable_tensor* outputs, int64_t count,
                  separable_error* error) {
  return guarded(error, [&] {
    require(context, "context");
    require(input, "input");
    context->context.run(*input, outputs, count);
  });
}

int separable_result(const separable_context* context, int64_t index, separable_tensor* result) {
  return guarded(nullptr, [&] {
    require(context, "context");
    require(result, "result");
    *result = context->context.result(index);
  });
}

}  // extern "C"
