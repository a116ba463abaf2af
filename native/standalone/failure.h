// How the reader and the runtime report what is wrong: an exception with a status and a sentence, which api.cpp turns into a
// return value. No exception leaves the library.
#pragma once

#include <cstdarg>
#include <cstdio>

#include "separable.h"

namespace ts::standalone {

struct Failure {
  separable_status status;
  separable_error error;
};

[[noreturn]] __attribute__((format(printf, 2, 3))) inline void fail(separable_status status, const char* format, ...) {
  Failure failure{status, {}};
  va_list values;
  va_start(values, format);
  vsnprintf(failure.error.text, sizeof failure.error.text, format, values);
  va_end(values);
  throw failure;
}

}  // namespace ts::standalone
