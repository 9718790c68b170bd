#include "image.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"

enum { kFixedPointBits = 22, kMaxSide = 1 << 16 };

// The next number of a PPM header, -1 where there is none; a "#" begins a comment that ends with its line.
static int header_number(FILE* file) {
  int next = fgetc(file);
  while (next == '#' || isspace(next)) {
    while (next == '#' && next != EOF && (next = fgetc(file)) != '\n' && next != EOF) {
      next = '#';
    }
    next = fgetc(file);
  }
  ungetc(next, file);
  int number = -1;
  return fscanf(file, "%9d", &number) == 1 ? number : -1;
}

Image read_ppm(const char* path) {
  FILE* file = fopen(path, "rb");
  if (file == NULL) {
    fail("cannot read %s: %s", path, strerror(errno));
  }
  char magic[2] = {0};
  const size_t read = fread(magic, 1, sizeof magic, file);
  Image image = {0};
  image.width = header_number(file);
  image.height = header_number(file);
  const int largest = header_number(file);
  fgetc(file);  // the one white space before the pixels
  if (read != sizeof magic || magic[0] != 'P' || magic[1] != '6' || largest != 255) {
    fail("%s is not a binary PPM (P6) with 8 bits per channel", path);
  }
  if (image.width < 1 || image.height < 1 || image.width > kMaxSide || image.height > kMaxSide) {
    fail("%s has no usable size", path);
  }
  const size_t count = (size_t)image.height * image.width * 3;
  image.pixels = allocate(count, 1);
  if (fread(image.pixels, 1, count, file) != count) {
    fail("%s is truncated", path);
  }
  fclose(file);
  return image;
}

void shortest_edge(int* height, int* width, int min_size, int max_size) {
  if (min_size == 0) {
    return;
  }
  const double scale = (double)min_size / (*height < *width ? *height : *width);
  double new_height = *height < *width ? min_size : scale * *height;
  double new_width = *height < *width ? scale * *width : min_size;
  const double longest = new_height > new_width ? new_height : new_width;
  if (longest > max_size) {
    new_height *= max_size / longest;
    new_width *= max_size / longest;
  }
  *height = (int)(new_height + 0.5);
  *width = (int)(new_width + 0.5);
}

// The weights with which input pixels first, first + 1 ... make one output pixel.
typedef struct {
  int first;
  int count;
  const int* weights;
} Window;

// One window for each of out_size pixels; released, with all weights, by free().
static Window* make_windows(int in_size, int out_size) {
  const double scale = (double)in_size / out_size;
  const double reach = scale > 1.0 ? scale : 1.0;
  const size_t most = (size_t)(2.0 * reach) + 3;
  Window* windows = allocate(1, out_size * (sizeof(Window) + most * sizeof(int)));
  int* weights = (int*)(windows + out_size);
  double* exact = allocate(most, sizeof(double));
  for (int out = 0; out < out_size; ++out, weights += most) {
    const double centre = (out + 0.5) * scale;
    const int low = (int)(centre - reach + 0.5), high = (int)(centre + reach + 0.5);
    const int first = low > 0 ? low : 0, end = high < in_size ? high : in_size;
    double sum = 0.0;
    for (int in = first; in < end; ++in) {
      const double distance = fabs((in - centre + 0.5) / reach);
      exact[in - first] = distance < 1.0 ? 1.0 - distance : 0.0;
      sum += exact[in - first];
    }
    for (int k = 0; k < end - first; ++k) {
      weights[k] = (int)(0.5 + exact[k] / sum * (1 << kFixedPointBits));
    }
    windows[out] = (Window){first, end - first, weights};
  }
  free(exact);
  return windows;
}

// The weighted sum of bytes that lie `step` apart, rounded.
static uint8_t weighted(const uint8_t* bytes, size_t step, const Window* window) {
  int64_t sum = (int64_t)1 << (kFixedPointBits - 1);
  for (int k = 0; k < window->count; ++k) {
    sum += (int64_t)bytes[(window->first + k) * step] * window->weights[k];
  }
  sum >>= kFixedPointBits;
  return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

static Image resize_columns(const Image* image, int width) {
  Window* windows = make_windows(image->width, width);
  Image result = {image->height, width, allocate((size_t)image->height * width * 3, 1)};
  uint8_t* out = result.pixels;
  for (int row = 0; row < image->height; ++row) {
    const uint8_t* line = image->pixels + (size_t)row * image->width * 3;
    for (int column = 0; column < width; ++column) {
      for (int channel = 0; channel < 3; ++channel) {
        *out++ = weighted(line + channel, 3, &windows[column]);
      }
    }
  }
  free(windows);
  return result;
}

static Image resize_rows(const Image* image, int height) {
  Window* windows = make_windows(image->height, height);
  const size_t line = (size_t)image->width * 3;
  Image result = {height, image->width, allocate(height * line, 1)};
  uint8_t* out = result.pixels;
  for (int row = 0; row < height; ++row) {
    for (size_t byte = 0; byte < line; ++byte) {
      *out++ = weighted(image->pixels + byte, line, &windows[row]);
    }
  }
  free(windows);
  return result;
}

Image resize(const Image* image, int height, int width) {
  const Image across = resize_columns(image, width);
  const Image result = resize_rows(&across, height);
  free(across.pixels);
  return result;
}
