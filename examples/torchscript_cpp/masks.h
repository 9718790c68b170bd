// Masks of detections: a network gives M x M probabilities for each box; here they are pasted into the image.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct Box {
  float x1, y1, x2, y2;  // pixels: x to the right, y down
};

// The part of the image that a mask can touch; background everywhere else.
struct Mask {
  int top = 0;
  int left = 0;
  int height = 0;
  int width = 0;
  std::vector<uint8_t> pixels;  // height x width, 0 or 1

  int64_t area() const;
};

// Sample size x size probabilities bilinearly at the pixel centres of a box, zero outside of them, and keep
// what is at least one half.
Mask paste(const float* cells, int size, const Box& box, int image_height, int image_width);

// Write the mask in an image of its own as PGM: 0 background, 255 object.
void write_pgm(const Mask& mask, int image_height, int image_width, const std::string& path);
