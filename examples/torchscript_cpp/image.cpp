#include "image.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <fstream>
#include <limits>
#include <stdexcept>

namespace {

constexpr int kFixedPointBits = 22;
constexpr int kMaxSide = 1 << 16;

// The weights with which input pixels [first, first + weights.size()) make one output pixel.
struct Window {
  int first;
  std::vector<int> weights;
};

std::vector<Window> windows(int in_size, int out_size) {
  const double scale = static_cast<double>(in_size) / out_size;
  const double reach = std::max(scale, 1.0);
  std::vector<Window> result(out_size);
  for (int out = 0; out < out_size; ++out) {
    const double centre = (out + 0.5) * scale;
    const int first = std::max(static_cast<int>(centre - reach + 0.5), 0);
    const int end = std::min(static_cast<int>(centre + reach + 0.5), in_size);
    std::vector<double> weights;
    double sum = 0.0;
    for (int in = first; in < end; ++in) {
      const double distance = std::abs((in - centre + 0.5) / reach);
      weights.push_back(distance < 1.0 ? 1.0 - distance : 0.0);
      sum += weights.back();
    }
    result[out].first = first;
    for (double weight : weights) {
      result[out].weights.push_back(static_cast<int>(0.5 + weight / sum * (1 << kFixedPointBits)));
    }
  }
  return result;
}

uint8_t rounded(int64_t value) {
  return static_cast<uint8_t>(std::clamp<int64_t>(value >> kFixedPointBits, 0, 255));
}

// The weighted sums of neighbouring columns.
Image resize_columns(const Image& image, int width) {
  const std::vector<Window> all = windows(image.width, width);
  Image result{image.height, width, std::vector<uint8_t>(static_cast<size_t>(image.height) * width * 3)};
  for (int row = 0; row < image.height; ++row) {
    for (int column = 0; column < width; ++column) {
      const Window& window = all[column];
      for (int channel = 0; channel < 3; ++channel) {
        int64_t sum = int64_t{1} << (kFixedPointBits - 1);
        for (size_t k = 0; k < window.weights.size(); ++k) {
          sum += int64_t{image.at(row, window.first + static_cast<int>(k), channel)} * window.weights[k];
        }
        result.pixels[(static_cast<size_t>(row) * width + column) * 3 + channel] = rounded(sum);
      }
    }
  }
  return result;
}

Image resize_rows(const Image& image, int height) {
  const std::vector<Window> all = windows(image.height, height);
  Image result{height, image.width, std::vector<uint8_t>(static_cast<size_t>(height) * image.width * 3)};
  for (int row = 0; row < height; ++row) {
    const Window& window = all[row];
    for (int column = 0; column < image.width; ++column) {
      for (int channel = 0; channel < 3; ++channel) {
        int64_t sum = int64_t{1} << (kFixedPointBits - 1);
        for (size_t k = 0; k < window.weights.size(); ++k) {
          sum += int64_t{image.at(window.first + static_cast<int>(k), column, channel)} * window.weights[k];
        }
        result.pixels[(static_cast<size_t>(row) * image.width + column) * 3 + channel] = rounded(sum);
      }
    }
  }
  return result;
}

// The next number of a PPM header; a "#" begins a comment that ends with its line.
int header_number(std::istream& stream) {
  while (true) {
    const int next = stream.peek();
    if (next == '#') {
      stream.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    } else if (next != EOF && std::isspace(next)) {
      stream.get();
    } else {
      break;
    }
  }
  int number = -1;
  stream >> number;
  return stream ? number : -1;
}

}  // namespace

Image read_ppm(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) {
    throw std::runtime_error("cannot read " + path);
  }
  char magic[2] = {};
  stream.read(magic, 2);
  Image image;
  image.width = header_number(stream);
  image.height = header_number(stream);
  const int largest = header_number(stream);
  stream.get();  // the one white space before the pixels
  if (magic[0] != 'P' || magic[1] != '6' || largest != 255) {
    throw std::runtime_error(path + " is not a binary PPM (P6) with 8 bits per channel");
  }
  if (image.width < 1 || image.height < 1 || image.width > kMaxSide || image.height > kMaxSide) {
    throw std::runtime_error(path + " has no usable size");
  }
  image.pixels.resize(static_cast<size_t>(image.height) * image.width * 3);
  stream.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
  if (!stream) {
    throw std::runtime_error(path + " is truncated");
  }
  return image;
}

std::pair<int, int> shortest_edge(int height, int width, int min_size, int max_size) {
  if (min_size == 0) {
    return {height, width};
  }
  const double scale = static_cast<double>(min_size) / std::min(height, width);
  double new_height = height < width ? min_size : scale * height;
  double new_width = height < width ? scale * width : min_size;
  const double longest = std::max(new_height, new_width);
  if (longest > max_size) {
    new_height *= max_size / longest;
    new_width *= max_size / longest;
  }
  return {static_cast<int>(new_height + 0.5), static_cast<int>(new_width + 0.5)};
}

Image resize(const Image& image, int height, int width) {
  const Image across = width == image.width ? image : resize_columns(image, width);
  return height == across.height ? across : resize_rows(across, height);
}
