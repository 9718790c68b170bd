// Detect objects with a Caffe2 artifact of zooport on Caffe2 itself, without Python.
//
//   detect ARTIFACT IMAGE.ppm [--min-size 800] [--max-size 1333] [--rgb]
//
// Prints x1 y1 x2 y2 score class of one detection per line, best first, in pixels of the image file. ARTIFACT is
// the folder with model.pb and model_init.pb; sizes and channel order are those under "preprocessing" in its
// model.json. The nets are those of R-CNN models: bbox_nms, score_nms and class_nms come out of them.
// torch was built with MKL, whose headers its package does not bring; nothing here needs them.
#include <caffe2/core/macros.h>
#undef CAFFE2_USE_MKL

#include <caffe2/core/init.h>
#include <caffe2/core/workspace.h>
#include <caffe2/utils/proto_utils.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "../torchscript_cpp/image.h"

namespace {

struct Options {
  std::string artifact, image;
  int min_size = 800;
  int max_size = 1333;
  bool rgb = false;
};

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

Options parse(int count, char** words) {
  const UsageError usage("usage: detect ARTIFACT IMAGE.ppm [--min-size N] [--max-size N] [--rgb]");
  Options options;
  std::vector<std::string> positional;
  for (int index = 1; index < count; ++index) {
    const std::string word = words[index];
    if (word == "--rgb") {
      options.rgb = true;
    } else if (word == "--min-size" || word == "--max-size") {
      if (++index == count) {
        throw UsageError(word + " needs a value");
      }
      int& size = word == "--min-size" ? options.min_size : options.max_size;
      try {
        size = std::stoi(words[index]);
      } catch (const std::logic_error&) {
        throw UsageError(word + " needs a number, not " + words[index]);
      }
    } else {
      positional.push_back(word);
    }
  }
  if (positional.size() != 2) {
    throw usage;
  }
  options.artifact = positional[0];
  options.image = positional[1];
  return options;
}

std::shared_ptr<caffe2::NetDef> read_net(const std::string& path) {
  if (!std::ifstream(path)) {
    throw std::runtime_error("cannot read " + path);
  }
  auto net = std::make_shared<caffe2::NetDef>();
  if (!caffe2::ReadProtoFromBinaryFile(path, net.get()) || net->op_size() == 0) {
    throw std::runtime_error(path + " is no Caffe2 net, or truncated");
  }
  return net;
}

// The memory of a float tensor of this shape in a blob, which is made if it is not there.
float* feed(caffe2::Workspace& workspace, const std::string& name, const std::vector<int64_t>& shape) {
  caffe2::Tensor* tensor = caffe2::BlobGetMutableTensor(workspace.CreateBlob(name), caffe2::CPU);
  tensor->Resize(shape);
  return tensor->mutable_data<float>();
}

// data (1, 3, H, W): 0-255, zeros at the right and bottom up to multiples of the divisibility; im_info (1, 3):
// height and width before the padding, and a scale.
void feed_image(caffe2::Workspace& workspace, const Image& image, int divisibility, bool rgb) {
  const int step = std::max(1, divisibility);
  const int height = (image.height + step - 1) / step * step;
  const int width = (image.width + step - 1) / step * step;
  float* data = feed(workspace, "data", {1, 3, height, width});
  std::fill(data, data + size_t{3} * height * width, 0.0f);
  for (int channel = 0; channel < 3; ++channel) {
    for (int row = 0; row < image.height; ++row) {
      float* line = data + (static_cast<size_t>(channel) * height + row) * width;
      for (int column = 0; column < image.width; ++column) {
        line[column] = image.at(row, column, rgb ? channel : 2 - channel);
      }
    }
  }
  float* im_info = feed(workspace, "im_info", {1, 3});
  im_info[0] = image.height;
  im_info[1] = image.width;
  im_info[2] = 1.0f;
}

const caffe2::Tensor& fetch(const caffe2::Workspace& workspace, const std::string& name) {
  if (!workspace.HasBlob(name)) {
    throw std::runtime_error("this net makes no " + name + ": it is not that of an R-CNN model");
  }
  return workspace.GetBlob(name)->Get<caffe2::Tensor>();
}

// Boxes go from pixels of the network's input to pixels of the image file; what has no area there is left out.
void print(const caffe2::Workspace& workspace, const Image& image, const Image& resized) {
  const caffe2::Tensor& found = fetch(workspace, "score_nms");
  const float* boxes = fetch(workspace, "bbox_nms").data<float>();
  const float* classes = fetch(workspace, "class_nms").data<float>();
  const float* scores = found.data<float>();
  std::vector<size_t> order(found.numel());
  std::iota(order.begin(), order.end(), 0);
  // The net gives them class by class.
  std::stable_sort(order.begin(), order.end(), [&](size_t one, size_t other) { return scores[one] > scores[other]; });
  const double scale_x = static_cast<double>(image.width) / resized.width;
  const double scale_y = static_cast<double>(image.height) / resized.height;
  for (const size_t index : order) {
    const float* box = boxes + index * 4;
    if (box[2] > box[0] && box[3] > box[1]) {
      std::printf("%.6f %.6f %.6f %.6f %.8f %d\n", box[0] * scale_x, box[1] * scale_y, box[2] * scale_x,
                  box[3] * scale_y, scores[index], static_cast<int>(classes[index]));
    }
  }
}

// Caffe2 prints warnings about the processor, and each error that it throws as well, unless it is told not to.
void initialise() {
  std::string program = "detect", quiet = "--caffe2_log_level=3";
  char* words[] = {program.data(), quiet.data()};
  char** all = words;
  int count = 2;
  caffe2::GlobalInit(&count, &all);
}

void detect(const Options& options) {
  const Image image = read_ppm(options.image);
  const auto init = read_net(options.artifact + "/model_init.pb");
  const std::shared_ptr<const caffe2::NetDef> predict = read_net(options.artifact + "/model.pb");
  const auto [height, width] = shortest_edge(image.height, image.width, options.min_size, options.max_size);
  const Image resized = resize(image, height, width);

  caffe2::Workspace workspace;
  CAFFE_ENFORCE(workspace.RunNetOnce(*init), "the parameters could not be made");
  const int divisibility = caffe2::ArgumentHelper(*predict).GetSingleArgument<int>("size_divisibility", 0);
  feed_image(workspace, resized, divisibility, options.rgb);
  // The net is there until the workspace goes: for more images, feed and run again.
  CAFFE_ENFORCE(workspace.CreateNet(predict), "the net could not be made");
  CAFFE_ENFORCE(workspace.RunNet(predict->name()), "the net failed");
  print(workspace, image, resized);
}

}  // namespace

int main(int count, char** words) {
  try {
    const Options options = parse(count, words);
    initialise();
    detect(options);
  } catch (const c10::Error& error) {
    std::cerr << "detect: " << error.what_without_backtrace() << '\n';
    return 1;
  } catch (const UsageError& error) {
    std::cerr << error.what() << '\n';
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "detect: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
