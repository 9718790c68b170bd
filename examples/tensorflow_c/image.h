// Images as a network wants them: read from PPM, resized as Pillow does it.
#ifndef IMAGE_H
#define IMAGE_H

#include <stdint.h>

typedef struct {
  int height;
  int width;
  uint8_t* pixels;  // height x width x 3, red first; released with free()
} Image;

// Read a binary PPM (P6) with 8 bits per channel; ends the program, naming the file, where it is none.
Image read_ppm(const char* path);

// Set height and width to those with the shorter side at min_size and the longer one at most max_size; min_size 0
// keeps the size. Sides are rounded once, at the end.
void shortest_edge(int* height, int* width, int min_size, int max_size);

// A new image, resized with the triangle filter, which widens when shrinking (Pillow's BILINEAR): one pass along each
// axis, each rounded to 8 bits, weights in fixed point of 22 bits.
Image resize(const Image* image, int height, int width);

#endif
