// Masks of detections: a network gives M x M probabilities for each box; here they are pasted into the image.
#ifndef MASKS_H
#define MASKS_H

#include <stdint.h>

typedef struct {
  float x1, y1, x2, y2;  // pixels: x to the right, y down
} Box;

// The part of the image that a mask can touch; background everywhere else.
typedef struct {
  int top;
  int left;
  int height;
  int width;
  uint8_t* pixels;  // height x width, 0 or 1; released with free()
} Mask;

// Sample size x size probabilities bilinearly at the pixel centres of a box, zero outside of them, and keep what is
// at least one half.
Mask paste(const float* cells, int size, const Box* box, int image_height, int image_width);

// Number of the object's pixels.
int64_t area(const Mask* mask);

// Write the mask in an image of its own as PGM: 0 background, 255 object; ends the program where it cannot.
void write_pgm(const Mask* mask, int image_height, int image_width, const char* path);

#endif
