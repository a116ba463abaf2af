// What an operation reads and writes: computed from its fields as its kernel does it, and compared with the workspace and the
// weights. A schedule runs only if every operation of it passes, so that no file makes a kernel touch memory that is not its own.
//
// A kernel that reads or writes something else than before has to change its check here, and tests/standalone to prove it.
#pragma once

#include <cstdint>
#include <vector>

#include "../kernels/kernels.h"
#include "failure.h"
#include "fields.h"

namespace ts::standalone {

// A size of at most 2^62; larger results stay there. All factors are at most 2^62, so 128 bits hold every product.
class Size {
 public:
  constexpr Size(int64_t value) : value_(value) {}
  friend constexpr Size operator*(Size a, Size b) { return Size(cut(static_cast<__int128>(a.value_) * b.value_)); }
  friend constexpr Size operator+(Size a, Size b) { return Size(cut(static_cast<__int128>(a.value_) + b.value_)); }
  friend constexpr Size operator-(Size a, Size b) { return Size(a.value_ - b.value_); }
  friend constexpr bool operator>(Size a, Size b) { return a.value_ > b.value_; }
  friend constexpr bool operator<=(Size a, Size b) { return a.value_ <= b.value_; }
  constexpr int64_t value() const { return value_; }

 private:
  static constexpr int64_t kHuge = int64_t{1} << 62;
  static constexpr int64_t cut(__int128 value) { return value > kHuge ? kHuge : static_cast<int64_t>(value); }
  int64_t value_;
};

constexpr int64_t rounded_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Weights that an operation points to.
struct Reference {
  const void* address;
  uint64_t bytes;
};

// What a schedule gives its operations.
struct Limits {
  int64_t workspace_bytes;
  int64_t batch, channels, height, width;  // of the input
};

// One operation under examination.
class Check {
 public:
  Check(const Kind& kind, const ts_operation& op, const std::vector<Reference>& references, int64_t index,
        const Limits& limits);

  // Fails with a sentence that names the operation.
  void run();

  int64_t scratch_bytes() const { return scratch_; }
  int64_t tasks() const { return tasks_; }

 private:
  [[noreturn]] void refuse(const char* what) const;
  void require(bool holds, const char* what) const {
    if (!holds) refuse(what);
  }
  void within(int64_t value, int64_t low, int64_t high, const char* what) const {
    if (value < low || value > high) refuse(what);
  }

  // Values of `each` bytes from an offset on, in the workspace.
  void region(const char* what, int64_t offset, Size values, int64_t each) const;
  // `pixels` pixels, `stride` apart, of which the first `channels` are used.
  void pixels(const char* what, int64_t offset, Size pixels, int64_t stride, Size channels, int64_t each) const;
  // The weights that a field points to must have so many bytes.
  void weights(const char* what, const void* address, Size bytes) const;
  void scratch(Size bytes);
  void count_tasks(Size tasks);

  void common() const;
  void window(const ts_window& window) const;
  void images(int64_t each);
  void product(const ts_window& window, int64_t source, int64_t depth, int64_t out_vectors, int64_t tile_rows,
               int64_t channel_splits, int64_t depth_multiplier);
  Size input_pixels() const { return Size(op_.batch) * op_.in_height * op_.in_width; }
  Size output_pixels() const { return Size(op_.batch) * op_.out_height * op_.out_width; }

  void float_operation();
  void convolution();
  void depthwise();
  void pool();
  void copy();
  void repair();
  void elementwise();
  void resample();
  void strided_copy();
  void normalize();
  void matrix_product();

  void int8_operation();
  void int8_convolution();
  void int8_depthwise();
  void requantization(const ts_requantization& result, Size channels) const;
  int64_t result_bytes(int32_t precision) const;
  void int8_float_output(int64_t each) const;

  const Kind& kind_;
  const ts_operation& op_;
  const std::vector<Reference>& references_;
  const int64_t index_;
  const Limits& limits_;
  const Kernels::Shape& shape_;
  const int64_t lanes_, each_;  // values of a vector; bytes of a value
  int64_t scratch_ = 0, tasks_ = 0;
};

}  // namespace ts::standalone
