// Images as a network wants them: read from PPM, resized as Pillow does it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

struct Image {
  int height = 0;
  int width = 0;
  std::vector<uint8_t> pixels;  // height x width x 3, red first

  uint8_t at(int row, int column, int channel) const {
    return pixels[(static_cast<size_t>(row) * width + column) * 3 + channel];
  }
};

// Read a binary PPM (P6) with 8 bits per channel; throws std::runtime_error naming the file.
Image read_ppm(const std::string& path);

// Height and width with the shorter side at min_size and the longer one at most max_size; min_size 0 keeps
// the size. Sides are rounded once, at the end.
std::pair<int, int> shortest_edge(int height, int width, int min_size, int max_size);

// Resize with the triangle filter, which widens when shrinking (Pillow's BILINEAR): one pass along each axis,
// each rounded to 8 bits, weights in fixed point of 22 bits.
Image resize(const Image& image, int height, int width);
