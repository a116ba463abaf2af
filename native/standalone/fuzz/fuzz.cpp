// Opens and runs damaged network files. Damage is done to single values, and checksums are computed again, so that it reaches
// the checks of operations. Two programs:
//
//     clang++ -fsanitize=fuzzer,address,undefined -DTS_LIBFUZZER fuzz.cpp ...     libFuzzer's (`make fuzz`)
//     c++ fuzz.cpp ... && ./fuzz SECONDS SEED FILE...                             its own loop, for a short run in the tests
//
// The second one needs no sanitizer to see reads and writes beyond the file and the workspace: behind both lies memory that
// cannot be accessed.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <limits>
#include <random>
#include <vector>

#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../separable.h"

namespace {

constexpr size_t kHeader = 64, kEntry = 32, kPage = 4096;

// As fletcher64 in file.cpp, on its own so that the program needs nothing but the C interface.
uint64_t fletcher64(const uint8_t* data, size_t size) {
  uint64_t sum = 0, sums = 0;
  for (size_t at = 0; at < size; at += 4) {
    uint32_t word = 0;
    memcpy(&word, data + at, std::min<size_t>(4, size - at));
    sum = (sum + word) % UINT32_MAX;
    sums = (sums + sum) % UINT32_MAX;
  }
  return sums << 32 | sum;
}

template <class Value>
Value get(const uint8_t* data, size_t at) {
  Value value;
  memcpy(&value, data + at, sizeof value);
  return value;
}

void put(uint8_t* data, size_t at, uint64_t value) { memcpy(data + at, &value, sizeof value); }

size_t sections_of(const uint8_t* data, size_t size) {
  if (size < kHeader) return 0;
  return std::min<size_t>(get<uint32_t>(data, 24), (size - kHeader) / kEntry);
}

// Makes the sizes and checksums of a file right again.
void repair(uint8_t* data, size_t size) {
  const size_t sections = sections_of(data, size);
  for (size_t i = 0; i < sections; i++) {
    const size_t entry = kHeader + i * kEntry;
    const uint64_t offset = get<uint64_t>(data, entry + 8), bytes = get<uint64_t>(data, entry + 16);
    if (offset <= size && bytes <= size - offset) put(data, entry + 24, fletcher64(data + offset, bytes));
  }
  if (size < kHeader) return;
  put(data, 16, size);
  put(data, 32, fletcher64(data + kHeader, sections * kEntry));
  put(data, 40, fletcher64(data, 40));
}

// Damages one to four values, mostly of operations.
void damage(std::vector<uint8_t>& file, std::mt19937_64& random) {
  static const uint64_t kValues[] = {0, 1, 2, 3, 7, 8, 15, 16, 17, 64, 255, 256, 4096, 1u << 20, INT32_MAX, UINT32_MAX,
                                     1ull << 32, 1ull << 40, INT64_MAX, 1ull << 63, UINT64_MAX, UINT64_MAX - 1};
  const size_t sections = sections_of(file.data(), file.size());
  for (uint64_t left = 1 + random() % 4; left > 0; left--) {
    size_t begin = 0, end = file.size();
    if (sections && random() % 16) {
      const size_t entry = kHeader + random() % sections * kEntry;
      const uint64_t offset = get<uint64_t>(file.data(), entry + 8), bytes = get<uint64_t>(file.data(), entry + 16);
      if (bytes >= 8 && offset <= file.size() && bytes <= file.size() - offset) begin = offset, end = offset + bytes;
    }
    const size_t at = begin + random() % ((end - begin) / 8) * 8;
    const uint64_t old = get<uint64_t>(file.data(), at);
    switch (random() % 6) {
      case 0: put(file.data(), at, kValues[random() % (sizeof kValues / sizeof *kValues)]); break;
      case 1: put(file.data(), at, old + random() % 33 - 16); break;
      case 2: put(file.data(), at, old ^ 1ull << random() % 64); break;
      case 3: put(file.data(), at, old * 2); break;
      case 4: put(file.data(), at, get<uint64_t>(file.data(), begin + random() % ((end - begin) / 8) * 8)); break;
      default: put(file.data(), at, old / 2); break;
    }
  }
  if (random() % 64 == 0) file.resize(random() % file.size() / 8 * 8 + 8);
}

// Opens the file and runs every schedule of it once. Returns how many ran.
int run_all(const uint8_t* data, size_t size) {
  separable_error error;
  separable_network* network;
  if (separable_open_memory(data, size, &network, &error)) {
    if (!*error.text) abort();  // every refusal has a sentence
    return 0;
  }
  separable_description in;
  separable_input(network, &in);
  int ran = 0;
  separable_schedule schedule;
  for (int64_t i = 0; separable_schedule_at(network, i, &schedule) == SEPARABLE_OK; i++) {
    const double values = static_cast<double>(schedule.batch) * static_cast<double>(in.shape[1]) *
                          static_cast<double>(in.shape[2]) * static_cast<double>(in.shape[3]);
    if (values > 1e6 || schedule.workspace_bytes > 1 << 26) continue;  // memory that is not worth its time
    std::vector<float> images(static_cast<size_t>(values), std::numeric_limits<float>::quiet_NaN());
    const separable_tensor input{images.data(), SEPARABLE_FLOAT32, 4,
                                 {schedule.batch, in.shape[1], in.shape[2], in.shape[3]},
                                 {in.shape[1] * in.shape[2] * in.shape[3], in.shape[2] * in.shape[3], in.shape[3], 1}};
    separable_options options{};
    options.batch = schedule.batch;
    options.instruction_set = schedule.instruction_set;
    separable_context* context;
    if (separable_context_create(network, &options, &context, &error)) continue;
    ran += separable_run(context, &input, nullptr, 0, &error) == SEPARABLE_OK;
    separable_context_free(context);
  }
  separable_close(network);
  return ran;
}

// A file that ends where memory that cannot be accessed begins. Its beginning is at a multiple of 64.
class Guarded {
 public:
  explicit Guarded(const std::vector<uint8_t>& file) : size_((file.size() + 63) / 64 * 64) {
    mapped_ = (size_ + kPage - 1) / kPage * kPage + kPage;
    void* memory = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) abort();
    memory_ = static_cast<uint8_t*>(memory);
    mprotect(memory_ + mapped_ - kPage, kPage, PROT_NONE);
    memcpy(memory_ + mapped_ - kPage - size_, file.data(), file.size());
  }
  ~Guarded() { munmap(memory_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  const uint8_t* data() const { return memory_ + mapped_ - kPage - size_; }

 private:
  size_t size_, mapped_;
  uint8_t* memory_;
};

}  // namespace

#ifdef TS_LIBFUZZER

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::vector<uint8_t> file(data, data + size);
  const Guarded guarded(file);
  run_all(guarded.data(), size);
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t, unsigned seed) {
  std::mt19937_64 random(seed);
  std::vector<uint8_t> file(data, data + size);
  if (file.size() < kHeader) return size;
  damage(file, random);
  repair(file.data(), file.size());
  memcpy(data, file.data(), file.size());
  return file.size();
}

#else

namespace {

std::vector<uint8_t> read_file(const char* path) {
  std::vector<uint8_t> content;
  FILE* file = fopen(path, "rb");
  if (!file) {
    perror(path);
    exit(2);
  }
  for (int byte; (byte = fgetc(file)) != EOF;) content.push_back(static_cast<uint8_t>(byte));
  fclose(file);
  return content;
}

// What the child processes tell their parent.
struct Progress {
  uint64_t number, opened;
};

std::vector<uint8_t> damaged(const std::vector<std::vector<uint8_t>>& files, uint64_t seed, uint64_t number) {
  std::mt19937_64 random(seed * 1000003 + number);
  std::vector<uint8_t> file = files[number % files.size()];
  damage(file, random);
  repair(file.data(), file.size());
  return file;
}

}  // namespace

// Children do the work: one that takes longer than half a second for a file is ended, and the next file begins.
int main(int count, char** arguments) {
  if (count < 4) {
    fprintf(stderr, "usage: fuzz SECONDS SEED FILE...\n");
    return 2;
  }
  const double seconds = atof(arguments[1]);
  const uint64_t seed = strtoull(arguments[2], nullptr, 10);
  std::vector<std::vector<uint8_t>> files;
  for (int i = 3; i < count; i++) files.push_back(read_file(arguments[i]));
  for (const auto& file : files) {
    if (!run_all(Guarded(file).data(), file.size())) {
      fprintf(stderr, "a file that was not damaged does not run\n");
      return 2;
    }
  }
  void* shared = mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) abort();
  auto* progress = static_cast<volatile Progress*>(shared);
  const time_t begin = time(nullptr);
  uint64_t slow = 0;
  while (difftime(time(nullptr), begin) < seconds) {
    const pid_t child = fork();
    if (child < 0) abort();
    if (child == 0) {
      while (difftime(time(nullptr), begin) < seconds) {
        const std::vector<uint8_t> file = damaged(files, seed, progress->number);
        const itimerval limit{{0, 0}, {0, 500000}}, none{};
        setitimer(ITIMER_PROF, &limit, nullptr);
        const int ran = run_all(Guarded(file).data(), file.size());
        setitimer(ITIMER_PROF, &none, nullptr);
        progress->opened = progress->opened + (ran > 0);
        progress->number = progress->number + 1;
      }
      _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) continue;
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGPROF) {
      slow++;
      progress->number = progress->number + 1;
      continue;
    }
    const std::vector<uint8_t> file = damaged(files, seed, progress->number);
    FILE* kept = fopen("crash.tsn", "wb");
    if (kept) {
      fwrite(file.data(), 1, file.size(), kept);
      fclose(kept);
    }
    fprintf(stderr, "file %llu of seed %llu ends the process with status %d: see crash.tsn\n",
            static_cast<unsigned long long>(progress->number), static_cast<unsigned long long>(seed), status);
    return 1;
  }
  printf("%llu files, %llu ran, %llu were too slow\n", static_cast<unsigned long long>(progress->number),
         static_cast<unsigned long long>(progress->opened), static_cast<unsigned long long>(slow));
  return 0;
}

#endif
