#include "masks.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"

static const float kThreshold = 0.5f;

// Where one pixel lies between two cells; weights of cells outside the mask are zero.
typedef struct {
  int below, above;
  float weight_below, weight_above;
} Sample;

static void drop_outside(int* cell, float* weight, int size) {
  if (*cell < 0 || *cell >= size) {
    *cell = 0;
    *weight = 0.0f;
  }
}

static Sample* make_samples(int first, int count, float low, float high, int size) {
  Sample* samples = allocate(count, sizeof(Sample));
  for (int index = 0; index < count; ++index) {
    const float normalised = ((float)(first + index) + 0.5f - low) / (high - low) * 2.0f - 1.0f;
    const float position = ((normalised + 1.0f) * (float)size - 1.0f) / 2.0f;
    const float below = floorf(position);
    Sample* sample = &samples[index];
    *sample = (Sample){(int)below, (int)below + 1, 1.0f - (position - below), position - below};
    drop_outside(&sample->below, &sample->weight_below, size);
    drop_outside(&sample->above, &sample->weight_above, size);
  }
  return samples;
}

static int at_least(int value, int limit) { return value < limit ? limit : value; }
static int at_most(int value, int limit) { return value > limit ? limit : value; }

Mask paste(const float* cells, int size, const Box* box, int image_height, int image_width) {
  Mask mask = {0};
  mask.top = at_least((int)floorf(box->y1) - 1, 0);
  mask.left = at_least((int)floorf(box->x1) - 1, 0);
  mask.height = at_most((int)ceilf(box->y2) + 1, image_height) - mask.top;
  mask.width = at_most((int)ceilf(box->x2) + 1, image_width) - mask.left;
  Sample* rows = make_samples(mask.top, mask.height, box->y1, box->y2, size);
  Sample* columns = make_samples(mask.left, mask.width, box->x1, box->x2, size);
  mask.pixels = allocate((size_t)mask.height * mask.width, 1);
  uint8_t* pixel = mask.pixels;
  for (const Sample* row = rows; row < rows + mask.height; ++row) {
    const float* upper = cells + row->below * size;
    const float* lower = cells + row->above * size;
    for (const Sample* column = columns; column < columns + mask.width; ++column) {
      const float left = row->weight_below * upper[column->below] + row->weight_above * lower[column->below];
      const float right = row->weight_below * upper[column->above] + row->weight_above * lower[column->above];
      *pixel++ = left * column->weight_below + right * column->weight_above >= kThreshold;
    }
  }
  free(rows);
  free(columns);
  return mask;
}

int64_t area(const Mask* mask) {
  int64_t sum = 0;
  for (size_t index = 0; index < (size_t)mask->height * mask->width; ++index) {
    sum += mask->pixels[index];
  }
  return sum;
}

void write_pgm(const Mask* mask, int image_height, int image_width, const char* path) {
  const size_t count = (size_t)image_height * image_width;
  uint8_t* canvas = allocate(count, 1);
  const uint8_t* pixel = mask->pixels;
  for (int row = 0; row < mask->height; ++row) {
    for (int column = 0; column < mask->width; ++column) {
      canvas[(size_t)(mask->top + row) * image_width + mask->left + column] = *pixel++ ? 255 : 0;
    }
  }
  FILE* file = fopen(path, "wb");
  if (file == NULL) {
    fail("cannot write %s: %s", path, strerror(errno));
  }
  fprintf(file, "P5\n%d %d\n255\n", image_width, image_height);
  const size_t written = fwrite(canvas, 1, count, file);
  if (fclose(file) != 0 || written != count) {
    fail("cannot write %s", path);
  }
  free(canvas);
}
