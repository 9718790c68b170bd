// Detect objects with an artifact of zooport: torchscript-trace or torchscript-script, told apart by itself.
//
//   detect MODEL.ts IMAGE.ppm OPERATORS.so [--min-size 800] [--max-size 1333] [--rgb] [--masks DIR]
//
// Prints one JSON object per detection, in pixels of the image file. Sizes and channel order are those under
// "preprocessing" in the artifact's model.json. OPERATORS is torchvision's own shared library.
#include <dlfcn.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>

#include "image.h"
#include "masks.h"

namespace {

struct Options {
  std::string model, image, operators, masks;
  int min_size = 800;
  int max_size = 1333;
  bool rgb = false;
};

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using Fields = std::map<std::string, at::Tensor>;

Options parse(int count, char** words) {
  Options options;
  std::vector<std::string> positional;
  for (int index = 1; index < count; ++index) {
    const std::string word = words[index];
    const auto value = [&]() -> std::string {
      if (index + 1 == count) {
        throw UsageError(word + " needs a value");
      }
      return words[++index];
    };
    if (word == "--min-size") {
      options.min_size = std::stoi(value());
    } else if (word == "--max-size") {
      options.max_size = std::stoi(value());
    } else if (word == "--masks") {
      options.masks = value();
    } else if (word == "--rgb") {
      options.rgb = true;
    } else {
      positional.push_back(word);
    }
  }
  if (positional.size() != 3) {
    throw UsageError(
        "usage: detect MODEL.ts IMAGE.ppm OPERATORS.so [--min-size N] [--max-size N] [--rgb] [--masks DIR]");
  }
  options.model = positional[0];
  options.image = positional[1];
  options.operators = positional[2];
  return options;
}

// Operators such as torchvision::nms register themselves when their library is loaded.
void load_operators(const std::string& path) {
  if (dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    throw std::runtime_error("cannot load operators: " + std::string(dlerror()));
  }
}

// float32 (3, H, W), 0-255.
at::Tensor network_input(const Image& image, bool rgb) {
  const auto pixels = torch::from_blob(
      const_cast<uint8_t*>(image.pixels.data()), {image.height, image.width, 3}, torch::kUInt8);
  const auto ordered = rgb ? pixels : pixels.flip(2);
  return ordered.permute({2, 0, 1}).to(torch::kFloat32).contiguous();
}

// A traced artifact returns a tuple in alphabetical order of the fields, and last the size of its input.
Fields run_traced(torch::jit::Module& model, const at::Tensor& input) {
  const auto outputs = model.forward({input}).toTuple();
  const auto& elements = outputs->elements();
  std::vector<std::string> names = {"pred_boxes", "pred_classes", "pred_masks", "scores"};
  if (elements.size() == 4) {
    names = {"pred_boxes", "pred_classes", "scores"};
  } else if (elements.size() != 5) {
    throw std::runtime_error("this model returns neither boxes nor boxes and masks");
  }
  Fields fields;
  for (size_t index = 0; index < names.size(); ++index) {
    fields[names[index]] = elements[index].toTensor();
  }
  return fields;
}

// A scripted artifact takes and returns one dictionary for each image.
Fields run_scripted(torch::jit::Module& model, const at::Tensor& input) {
  c10::Dict<std::string, at::Tensor> inputs;
  inputs.insert("image", input);
  c10::List<c10::Dict<std::string, at::Tensor>> batch;
  batch.push_back(inputs);
  const c10::IValue first = model.forward({batch}).toList().get(0);
  Fields fields;
  for (const auto& entry : first.toGenericDict()) {
    fields[entry.key().toStringRef()] = entry.value().toTensor();
  }
  return fields;
}

Fields run(torch::jit::Module& model, const at::Tensor& input) {
  const torch::NoGradGuard no_grad;
  const auto& arguments = model.get_method("forward").function().getSchema().arguments();
  const bool scripted = arguments.at(1).type()->kind() == c10::TypeKind::ListType;  // 0 is the module itself
  return scripted ? run_scripted(model, input) : run_traced(model, input);
}

// From pixels of the network's input to pixels of the image file.
Box to_image(const float* corners, const Image& image, int network_height, int network_width) {
  const auto scale_x = static_cast<float>(static_cast<double>(image.width) / network_width);
  const auto scale_y = static_cast<float>(static_cast<double>(image.height) / network_height);
  const auto clip = [](float value, int limit) { return std::min(std::max(value, 0.0f), static_cast<float>(limit)); };
  return {clip(corners[0] * scale_x, image.width), clip(corners[1] * scale_y, image.height),
          clip(corners[2] * scale_x, image.width), clip(corners[3] * scale_y, image.height)};
}

at::Tensor field(const Fields& fields, const std::string& name) {
  const auto found = fields.find(name);
  if (found == fields.end()) {
    throw std::runtime_error("this model returns no " + name);
  }
  return found->second.contiguous();
}

void print(const Fields& fields, const Options& options, const Image& image, int height, int width) {
  const at::Tensor boxes = field(fields, "pred_boxes");
  const at::Tensor scores = field(fields, "scores");
  const at::Tensor classes = field(fields, "pred_classes");
  const bool has_masks = fields.count("pred_masks") != 0;
  const at::Tensor masks = has_masks ? field(fields, "pred_masks") : at::Tensor();
  for (int64_t index = 0; index < boxes.size(0); ++index) {
    const Box box = to_image(boxes.const_data_ptr<float>() + index * 4, image, height, width);
    if (box.x2 <= box.x1 || box.y2 <= box.y1) {
      continue;
    }
    std::printf("{\"class\": %lld, \"score\": %.9g, \"box\": [%.9g, %.9g, %.9g, %.9g]",
                static_cast<long long>(classes.const_data_ptr<int64_t>()[index]),
                scores.const_data_ptr<float>()[index], box.x1, box.y1, box.x2, box.y2);
    if (has_masks) {
      const int size = static_cast<int>(masks.size(-1));
      const float* cells = masks.const_data_ptr<float>() + index * size * size;
      const Mask mask = paste(cells, size, box, image.height, image.width);
      std::printf(", \"mask_area\": %lld", static_cast<long long>(mask.area()));
      if (!options.masks.empty()) {
        write_pgm(mask, image.height, image.width, options.masks + "/" + std::to_string(index) + ".pgm");
      }
    }
    std::printf("}\n");
  }
}

}  // namespace

int main(int count, char** words) {
  try {
    const Options options = parse(count, words);
    const Image image = read_ppm(options.image);
    load_operators(options.operators);
    // Shapes change with every image: such graphs are interpreted faster than they are optimised anew.
    torch::jit::getExecutorMode() = false;
    torch::jit::getProfilingMode() = false;
    torch::jit::Module model = torch::jit::load(options.model, torch::kCPU);
    model.eval();
    const auto [height, width] = shortest_edge(image.height, image.width, options.min_size, options.max_size);
    const Fields fields = run(model, network_input(resize(image, height, width), options.rgb));
    print(fields, options, image, height, width);
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
