/* Run networks that torch-separable has compiled, without Python and PyTorch. C11.
 *
 *     separable_error error;
 *     separable_network* network;
 *     separable_context* context;
 *     if (separable_open("net.tsn", &network, &error)) die(error.text);
 *     if (separable_context_create(network, NULL, &context, &error)) die(error.text);
 *     if (separable_run(context, &images, &logits, 1, &error)) die(error.text);
 *
 * A network is read-only and may be shared by any number of threads. A context is memory for one run at a time: give each thread
 * its own, they are cheap. The library has no global state. Every function that can fail returns a separable_status and writes
 * one sentence to `error`, which may be NULL.
 */
#ifndef SEPARABLE_H
#define SEPARABLE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define SEPARABLE_API __attribute__((visibility("default")))
#else
#define SEPARABLE_API
#endif

#define SEPARABLE_VERSION_MAJOR 1 /* of this interface */
#define SEPARABLE_VERSION_MINOR 0

typedef enum separable_status {
  SEPARABLE_OK = 0,
  SEPARABLE_ERROR_FILE = 1,      /* the file cannot be opened or mapped */
  SEPARABLE_ERROR_FORMAT = 2,    /* it is no network, damaged, or names something outside of itself */
  SEPARABLE_ERROR_VERSION = 3,   /* it was written by a newer version */
  SEPARABLE_ERROR_PROCESSOR = 4, /* it has no schedule for an instruction set of this processor */
  SEPARABLE_ERROR_ARGUMENT = 5,  /* an argument is invalid, or does not fit the network */
  SEPARABLE_ERROR_MEMORY = 6,    /* out of memory, or of threads */
  SEPARABLE_ERROR_FORKED = 7     /* the threads were started before a fork, and do not exist in this process */
} separable_status;

typedef struct separable_error {
  char text[320]; /* one sentence, ended by a zero byte */
} separable_error;

typedef enum separable_type {
  SEPARABLE_FLOAT32 = 0,
  SEPARABLE_BFLOAT16 = 1, /* the upper half of a float32; of results inside a context only */
  SEPARABLE_UINT8 = 2
} separable_type;

#define SEPARABLE_MAX_RANK 4

/* An array of the caller or inside a context. Strides count values, not bytes, and may be negative in inputs. */
typedef struct separable_tensor {
  void* data;
  int32_t type; /* a separable_type */
  int32_t rank;
  int64_t shape[SEPARABLE_MAX_RANK];
  int64_t strides[SEPARABLE_MAX_RANK];
} separable_tensor;

/* An input or output. Pointers are valid until the network is closed. */
typedef struct separable_description {
  const char* name;
  const char* layout; /* of the dimensions, as "NCHW" or "NC" */
  int32_t type;       /* of the array that the caller passes */
  int32_t rank;
  int64_t shape[SEPARABLE_MAX_RANK]; /* shape[0] is the batch of the first schedule */
  const float* mean; /* of an input: prepare channel c of images in 0..1 as (x - mean[c]) / std[c]; NULL if unknown */
  const float* std;
} separable_description;

/* A way to run the network that was compiled into the file, for an instruction set that this processor has. */
typedef struct separable_schedule {
  const char* instruction_set;
  int64_t batch;
  int64_t threads;         /* that it was planned for; any number can run it */
  int64_t workspace_bytes; /* of a context */
} separable_schedule;

typedef struct separable_network separable_network;
typedef struct separable_context separable_context;
typedef struct separable_threads separable_threads;

/* Call body(context, i) once for each i in [0, count), on any threads, one after the other or at the same time. */
typedef void (*separable_parallel_for)(void* user, int64_t count, void (*body)(void* context, int64_t i), void* context);

/* Zero-initialize it; NULL instead of options means the first schedule, on the calling thread. */
typedef struct separable_options {
  int64_t batch;                      /* 0: that of the first schedule */
  const char* instruction_set;        /* NULL: the best one */
  separable_threads* threads;         /* that take part in runs; NULL: only the calling thread, or parallel_for */
  separable_parallel_for parallel_for; /* of the caller, instead of `threads` */
  void* parallel_user;                /* its first argument */
  int64_t parallel_threads;           /* how many threads parallel_for has */
} separable_options;

/* "1.0", the version of the library's interface. */
SEPARABLE_API const char* separable_version(void);

/* Map a file and check all of it. Processes that open the same file share its memory. Do not truncate the file while it is open:
 * replace it by renaming. */
SEPARABLE_API int separable_open(const char* path, separable_network** network, separable_error* error);

/* The same for a file in memory, at a multiple of 64 bytes, which must stay unchanged until the network is closed. */
SEPARABLE_API int separable_open_memory(const void* data, size_t size, separable_network** network, separable_error* error);

/* Contexts of the network keep what they need. */
SEPARABLE_API void separable_close(separable_network* network);

/* The file's metadata: JSON in UTF-8, ended by a zero byte, `size` bytes without it. Valid until the network is closed. */
SEPARABLE_API const char* separable_metadata(const separable_network* network, size_t* size);

/* The name of a class, in the order of the first output's values; NULL if it is unknown. */
SEPARABLE_API const char* separable_class_name(const separable_network* network, int64_t index);

SEPARABLE_API int separable_input(const separable_network* network, separable_description* description);
SEPARABLE_API int64_t separable_output_count(const separable_network* network);
SEPARABLE_API int separable_output(const separable_network* network, int64_t index, separable_description* description);

/* Schedule `index` of those that run on this processor, the best instruction set first; SEPARABLE_ERROR_ARGUMENT beyond the last. */
SEPARABLE_API int separable_schedule_at(const separable_network* network, int64_t index, separable_schedule* schedule);

/* Start `count` - 1 threads, which help the thread that calls separable_run and sleep otherwise. Contexts may share them. `cpus`
 * names the CPUs that they may run on, or is NULL. */
SEPARABLE_API int separable_threads_create(int64_t count, const int32_t* cpus, size_t cpu_count, separable_threads** threads,
                                           separable_error* error);

/* The threads end when the last context that uses them is freed. */
SEPARABLE_API void separable_threads_free(separable_threads* threads);

SEPARABLE_API int separable_context_create(const separable_network* network, const separable_options* options,
                                           separable_context** context, separable_error* error);
SEPARABLE_API void separable_context_free(separable_context* context);

/* Run the network on `input`: float32 (N, C, H, W), of any strides, so images in NHWC are passed with permuted strides. Copies the
 * results to `outputs`: as many arrays as the network has outputs, or none (`count` 0). */
SEPARABLE_API int separable_run(separable_context* context, const separable_tensor* input, const separable_tensor* outputs,
                                int64_t count, separable_error* error);

/* An output of the last run where it lies in the context, without a copy; valid until the next run. */
SEPARABLE_API int separable_result(const separable_context* context, int64_t index, separable_tensor* result);

#ifdef __cplusplus
}
#endif

#endif
