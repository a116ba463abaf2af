/* Print the five likeliest classes of a photograph, a binary PPM of the network's size.
 *
 *     cc -std=c11 classify.c $(pkg-config --cflags --libs separable) -lm -o classify
 *     ./classify net.tsn photograph.ppm
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <separable.h>

static void stop(const char *why) {
  fprintf(stderr, "classify: %s\n", why);
  exit(1);
}

/* Read width x height pixels of three bytes; both sizes must be as expected. */
static unsigned char *read_ppm(const char *path, int64_t width, int64_t height) {
  FILE *file = fopen(path, "rb");
  if (!file) stop("the photograph cannot be opened");
  long w, h, most;
  if (fscanf(file, "P6 %ld %ld %ld", &w, &h, &most) != 3 || most != 255) stop("the photograph is no binary PPM of 8 bits");
  if (w != width || h != height) stop("the photograph has another size than the network's input");
  fgetc(file); /* one white space after the header */
  size_t bytes = (size_t)(3 * width * height);
  unsigned char *pixels = malloc(bytes);
  if (!pixels || fread(pixels, 1, bytes, file) != bytes) stop("the photograph is too short");
  fclose(file);
  return pixels;
}

int main(int count, char **arguments) {
  if (count != 3) stop("usage: classify NETWORK PHOTOGRAPH");
  separable_error error;
  separable_network *network;
  separable_context *context;
  if (separable_open(arguments[1], &network, &error)) stop(error.text);
  if (separable_context_create(network, NULL, &context, &error)) stop(error.text);

  separable_description in, out;
  separable_input(network, &in);
  separable_output(network, 0, &out);
  if (in.shape[1] != 3 || out.rank != 2) stop("the network does not map photographs to class scores");
  int64_t height = in.shape[2], width = in.shape[3], classes = out.shape[1];

  unsigned char *pixels = read_ppm(arguments[2], width, height);
  float *images = malloc(sizeof(float) * (size_t)(in.shape[0] * 3 * height * width));
  float *scores = malloc(sizeof(float) * (size_t)(out.shape[0] * classes));
  if (!images || !scores) stop("out of memory");
  for (int64_t i = 0; i < in.shape[0] * 3 * height * width; i++) {
    float value = (float)pixels[i % (3 * height * width)] / 255.0f;
    images[i] = (value - (in.mean ? in.mean[i % 3] : 0.0f)) / (in.std ? in.std[i % 3] : 1.0f);
  }

  /* The pixels are NHWC in memory, and the strides say so: no copy. */
  separable_tensor input = {images, SEPARABLE_FLOAT32, 4,
                            {in.shape[0], 3, height, width}, {3 * height * width, 1, 3 * width, 3}};
  separable_tensor output = {scores, SEPARABLE_FLOAT32, 2, {out.shape[0], classes}, {classes, 1}};
  if (separable_run(context, &input, &output, 1, &error)) stop(error.text);

  float largest = scores[0], sum = 0;
  for (int64_t c = 0; c < classes; c++) largest = fmaxf(largest, scores[c]);
  for (int64_t c = 0; c < classes; c++) sum += expf(scores[c] - largest);
  for (int rank = 0; rank < 5 && rank < classes; rank++) {
    int64_t best = 0;
    for (int64_t c = 0; c < classes; c++) best = scores[c] > scores[best] ? c : best;
    const char *name = separable_class_name(network, best);
    printf("%5.1f %%  %lld %s\n", 100 * expf(scores[best] - largest) / sum, (long long)best, name ? name : "");
    scores[best] = -INFINITY;
  }
  free(pixels);
  free(images);
  free(scores);
  separable_context_free(context);
  separable_close(network);
  return 0;
}
