// Threads that share a network, each with a context of its own, as in a server. Prints the checksum of every thread's outputs.
//
//     c++ -std=c++17 shared.cpp $(pkg-config --cflags --libs separable) -pthread -o shared
//     ./shared net.tsn 4
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include <separable.h>

namespace {

using Network = std::unique_ptr<separable_network, decltype(&separable_close)>;
using Context = std::unique_ptr<separable_context, decltype(&separable_context_free)>;

Network open(const char* path) {
  separable_error error;
  separable_network* network;
  if (separable_open(path, &network, &error)) throw std::runtime_error(error.text);
  return {network, separable_close};
}

Context context_of(const separable_network* network) {
  separable_error error;
  separable_context* context;
  if (separable_context_create(network, nullptr, &context, &error)) throw std::runtime_error(error.text);
  return {context, separable_context_free};
}

// The sum of the first output for an image whose values all are `value`.
double run(const separable_network* network, float value) {
  const Context context = context_of(network);
  separable_description in;
  separable_input(network, &in);
  std::vector<float> images(static_cast<size_t>(in.shape[0] * in.shape[1] * in.shape[2] * in.shape[3]), value);
  separable_tensor input{images.data(), SEPARABLE_FLOAT32, 4, {}, {}};
  int64_t stride = 1;
  for (int d = 3; d >= 0; d--) {
    input.shape[d] = in.shape[d];
    input.strides[d] = stride;
    stride *= in.shape[d];
  }
  separable_error error;
  if (separable_run(context.get(), &input, nullptr, 0, &error)) throw std::runtime_error(error.text);
  separable_tensor result;
  if (separable_result(context.get(), 0, &result) || result.type != SEPARABLE_FLOAT32 || result.rank != 2) {
    throw std::runtime_error("the first output is no float32 matrix");
  }
  const auto* scores = static_cast<const float*>(result.data);  // where they lie in the context
  double sum = 0;
  for (int64_t c = 0; c < result.shape[1]; c++) sum += static_cast<double>(scores[c * result.strides[1]]);
  return sum;
}

}  // namespace

int main(int count, char** arguments) try {
  if (count != 3) throw std::runtime_error("usage: shared NETWORK THREADS");
  const Network network = open(arguments[1]);
  std::vector<double> sums(static_cast<size_t>(std::atoi(arguments[2])));
  std::vector<std::thread> threads;
  for (double& sum : sums) threads.emplace_back([&] { sum = run(network.get(), 0.5f); });
  for (std::thread& thread : threads) thread.join();
  for (double sum : sums) std::printf("%.9g\n", sum);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "shared: %s\n", error.what());
  return 1;
}
