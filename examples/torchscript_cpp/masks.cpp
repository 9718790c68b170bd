#include "masks.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <numeric>
#include <stdexcept>

namespace {

constexpr float kThreshold = 0.5f;

// Where one pixel lies between two cells; weights of cells outside the mask are zero.
struct Sample {
  int below, above;
  float weight_below, weight_above;
};

std::vector<Sample> samples(int first, int end, float low, float high, int size) {
  std::vector<Sample> result;
  for (int pixel = first; pixel < end; ++pixel) {
    const float normalised = (static_cast<float>(pixel) + 0.5f - low) / (high - low) * 2.0f - 1.0f;
    const float position = ((normalised + 1.0f) * static_cast<float>(size) - 1.0f) / 2.0f;
    const float floor = std::floor(position);
    const float fraction = position - floor;
    Sample sample{static_cast<int>(floor), static_cast<int>(floor) + 1, 1.0f - fraction, fraction};
    if (sample.below < 0 || sample.below >= size) {
      sample.below = 0;
      sample.weight_below = 0.0f;
    }
    if (sample.above < 0 || sample.above >= size) {
      sample.above = 0;
      sample.weight_above = 0.0f;
    }
    result.push_back(sample);
  }
  return result;
}

}  // namespace

int64_t Mask::area() const { return std::accumulate(pixels.begin(), pixels.end(), int64_t{0}); }

Mask paste(const float* cells, int size, const Box& box, int image_height, int image_width) {
  Mask mask;
  mask.top = std::max(static_cast<int>(std::floor(box.y1)) - 1, 0);
  mask.left = std::max(static_cast<int>(std::floor(box.x1)) - 1, 0);
  mask.height = std::min(static_cast<int>(std::ceil(box.y2)) + 1, image_height) - mask.top;
  mask.width = std::min(static_cast<int>(std::ceil(box.x2)) + 1, image_width) - mask.left;
  const auto rows = samples(mask.top, mask.top + mask.height, box.y1, box.y2, size);
  const auto columns = samples(mask.left, mask.left + mask.width, box.x1, box.x2, size);
  mask.pixels.reserve(rows.size() * columns.size());
  for (const Sample& row : rows) {
    for (const Sample& column : columns) {
      const auto mixed = [&](int cell) {  // of the two cells above and below each other
        return row.weight_below * cells[row.below * size + cell] + row.weight_above * cells[row.above * size + cell];
      };
      const float value = mixed(column.below) * column.weight_below + mixed(column.above) * column.weight_above;
      mask.pixels.push_back(value >= kThreshold ? 1 : 0);
    }
  }
  return mask;
}

void write_pgm(const Mask& mask, int image_height, int image_width, const std::string& path) {
  std::vector<char> canvas(static_cast<size_t>(image_height) * image_width, 0);
  for (int row = 0; row < mask.height; ++row) {
    for (int column = 0; column < mask.width; ++column) {
      const bool object = mask.pixels[static_cast<size_t>(row) * mask.width + column] != 0;
      canvas[static_cast<size_t>(mask.top + row) * image_width + mask.left + column] = object ? '\xff' : '\0';
    }
  }
  std::ofstream stream(path, std::ios::binary);
  stream << "P5\n" << image_width << ' ' << image_height << "\n255\n";
  stream.write(canvas.data(), static_cast<std::streamsize>(canvas.size()));
  if (!stream.flush()) {
    throw std::runtime_error("cannot write " + path);
  }
}
