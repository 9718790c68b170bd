// Detect objects with a TensorFlow artifact of zooport through TensorFlow's C API.
//
//   detect MODEL IMAGE.ppm [--min-size 800] [--max-size 1333] [--rgb] [--masks DIR]
//
// Prints one JSON object per detection, best first, in pixels of the image file. MODEL is the folder saved_model or
// the file model.pb of an artifact, one graph in two containers. Sizes and channel order are those under
// "preprocessing" in its model.json.
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "fail.h"
#include "image.h"
#include "masks.h"
#include "tensorflow/c/c_api.h"

// A serialized ConfigProto: intra_op_parallelism_threads (field 2) and inter_op_parallelism_threads (field 5) are 1.
static const uint8_t kOneThread[] = {2 << 3, 1, 5 << 3, 1};

typedef struct {
  const char *model, *image, *masks;
  int min_size, max_size;
  bool rgb;
} Options;

typedef struct {
  TF_Graph* graph;
  TF_Session* session;
} Model;

// What a model found in one image; masks is NULL where it makes none.
typedef struct {
  int64_t count;
  TF_Tensor *boxes, *scores, *classes, *masks;
} Found;

__attribute__((noreturn)) static void usage(const char* why) {
  fprintf(stderr, "%susage: detect MODEL IMAGE.ppm [--min-size N] [--max-size N] [--rgb] [--masks DIR]\n", why);
  exit(2);
}

static int size_of(const char* text) {
  char* end = NULL;
  const long value = text == NULL ? -1 : strtol(text, &end, 10);
  if (value < 0 || value > INT_MAX || end == text || *end != '\0') {
    usage("a size is a number; ");
  }
  return (int)value;
}

static Options parse(int count, char** words) {
  Options options = {.min_size = 800, .max_size = 1333};
  for (int index = 1; index < count; ++index) {
    const char* word = words[index];
    const char* next = words[index + 1];  // NULL behind the last one
    if (strcmp(word, "--rgb") == 0) {
      options.rgb = true;
    } else if (strcmp(word, "--min-size") == 0) {
      options.min_size = size_of(next);
      ++index;
    } else if (strcmp(word, "--max-size") == 0) {
      options.max_size = size_of(next);
      ++index;
    } else if (strcmp(word, "--masks") == 0 && next != NULL) {
      options.masks = next;
      ++index;
    } else if (word[0] == '-' || options.image != NULL) {
      usage("");
    } else if (options.model == NULL) {
      options.model = word;
    } else {
      options.image = word;
    }
  }
  if (options.image == NULL) {
    usage("");
  }
  return options;
}

// End the program where TensorFlow reports an error.
static void check(const TF_Status* status, const char* what) {
  if (TF_GetCode(status) != TF_OK) {
    fail("%s: %s", what, TF_Message(status));
  }
}

// The whole file; released with TF_DeleteBuffer.
static TF_Buffer* read_file(const char* path) {
  FILE* file = fopen(path, "rb");
  if (file == NULL) {
    fail("cannot read %s: %s", path, strerror(errno));
  }
  fseek(file, 0, SEEK_END);
  const long size = ftell(file);
  rewind(file);
  void* bytes = allocate(size > 0 ? (size_t)size : 0, 1);
  if (size < 0 || fread(bytes, 1, (size_t)size, file) != (size_t)size) {
    fail("cannot read %s", path);
  }
  fclose(file);
  TF_Buffer* buffer = TF_NewBufferFromString(bytes, (size_t)size);
  free(bytes);
  return buffer;
}

static TF_Session* load_saved_model(const char* folder, TF_Graph* graph, const TF_SessionOptions* options) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/saved_model.pb", folder);
  struct stat about;
  if (stat(path, &about) != 0) {
    fail("cannot read %s: %s", path, strerror(errno));
  }
  const char* tag = "serve";
  TF_Status* status = TF_NewStatus();
  TF_Session* session = TF_LoadSessionFromSavedModel(options, NULL, folder, &tag, 1, graph, NULL, status);
  check(status, path);
  TF_DeleteStatus(status);
  return session;
}

static TF_Session* load_frozen_graph(const char* path, TF_Graph* graph, const TF_SessionOptions* options) {
  TF_Status* status = TF_NewStatus();
  TF_Buffer* definition = read_file(path);
  TF_ImportGraphDefOptions* import = TF_NewImportGraphDefOptions();
  TF_GraphImportGraphDef(graph, definition, import, status);
  check(status, path);
  TF_DeleteImportGraphDefOptions(import);
  TF_DeleteBuffer(definition);
  TF_Session* session = TF_NewSession(graph, options, status);
  check(status, path);
  TF_DeleteStatus(status);
  return session;
}

// The operator that makes one of the model's inputs or outputs.
static TF_Output named(const Model* model, const char* name) {
  return (TF_Output){TF_GraphOperationByName(model->graph, name), 0};
}

// The program gives one image and nothing else: end it where the model takes something else.
static void check_inputs(const Model* model, const char* path) {
  const TF_Output image = named(model, "image");
  if (image.oper == NULL) {
    fail("%s is no model of zooport: its graph has no input image", path);
  }
  TF_Status* status = TF_NewStatus();
  const int rank = TF_GraphGetTensorNumDims(model->graph, image, status);
  check(status, path);
  TF_DeleteStatus(status);
  if (rank != 3) {
    fail("%s takes a batch of images: export it without the option batch", path);
  }
  size_t position = 0;
  for (TF_Operation* each; (each = TF_GraphNextOperation(model->graph, &position)) != NULL;) {
    if (strcmp(TF_OperationOpType(each), "Placeholder") == 0 && each != image.oper) {
      fail("%s takes %s as well as an image", path, TF_OperationName(each));
    }
  }
}

static Model load(const char* path) {
  struct stat about;
  if (stat(path, &about) != 0) {
    fail("cannot read %s: %s", path, strerror(errno));
  }
  TF_Status* status = TF_NewStatus();
  TF_SessionOptions* options = TF_NewSessionOptions();
  TF_SetConfig(options, kOneThread, sizeof kOneThread, status);
  check(status, "session options");
  Model model = {TF_NewGraph(), NULL};
  model.session = S_ISDIR(about.st_mode) ? load_saved_model(path, model.graph, options)
                                         : load_frozen_graph(path, model.graph, options);
  TF_DeleteSessionOptions(options);
  TF_DeleteStatus(status);
  check_inputs(&model, path);
  return model;
}

static void unload(Model* model) {
  TF_Status* status = TF_NewStatus();
  TF_CloseSession(model->session, status);
  TF_DeleteSession(model->session, status);
  TF_DeleteGraph(model->graph);
  TF_DeleteStatus(status);
}

// float32 (height, width, 3), 0-255.
static TF_Tensor* network_input(const Image* image, bool rgb) {
  const int64_t shape[] = {image->height, image->width, 3};
  const size_t pixels = (size_t)image->height * image->width;
  TF_Tensor* tensor = TF_AllocateTensor(TF_FLOAT, shape, 3, pixels * 3 * sizeof(float));
  if (tensor == NULL) {
    fail("out of memory");
  }
  float* values = TF_TensorData(tensor);
  for (size_t pixel = 0; pixel < pixels; ++pixel) {
    for (int channel = 0; channel < 3; ++channel) {
      values[pixel * 3 + channel] = image->pixels[pixel * 3 + (rgb ? channel : 2 - channel)];
    }
  }
  return tensor;
}

static void check_output(const TF_Tensor* tensor, const char* name, TF_DataType type, int rank, int64_t count) {
  if (TF_TensorType(tensor) != type || TF_NumDims(tensor) != rank || TF_Dim(tensor, 0) != count) {
    fail("%s is of another type or shape than zooport's", name);
  }
}

static Found run(const Model* model, TF_Tensor* image) {
  enum { kBoxes, kScores, kClasses, kMasks };
  const char* names[] = {"pred_boxes", "scores", "pred_classes", "pred_masks"};
  const TF_Output input = named(model, "image");
  TF_Output outputs[4];
  for (int index = kBoxes; index <= kMasks; ++index) {
    outputs[index] = named(model, names[index]);
    if (outputs[index].oper == NULL && index != kMasks) {
      fail("this model returns no %s", names[index]);
    }
  }
  const int count = outputs[kMasks].oper == NULL ? kMasks : kMasks + 1;
  TF_Tensor* values[4] = {NULL};
  TF_Status* status = TF_NewStatus();
  TF_SessionRun(model->session, NULL, &input, &image, 1, outputs, values, count, NULL, 0, NULL, status);
  check(status, "the model failed");
  TF_DeleteStatus(status);

  const Found found = {TF_Dim(values[kBoxes], 0), values[kBoxes], values[kScores], values[kClasses], values[kMasks]};
  check_output(found.boxes, names[kBoxes], TF_FLOAT, 2, found.count);
  check_output(found.scores, names[kScores], TF_FLOAT, 1, found.count);
  check_output(found.classes, names[kClasses], TF_INT64, 1, found.count);
  if (found.masks != NULL) {
    check_output(found.masks, names[kMasks], TF_FLOAT, 4, found.count);
  }
  return found;
}

static float clip(float value, int limit) { return value < 0.0f ? 0.0f : value > (float)limit ? (float)limit : value; }

// From pixels of the network's input to pixels of the image file.
static Box to_image(const float* corners, const Image* image, const Image* resized) {
  const float scale_x = (float)((double)image->width / resized->width);
  const float scale_y = (float)((double)image->height / resized->height);
  return (Box){clip(corners[0] * scale_x, image->width), clip(corners[1] * scale_y, image->height),
               clip(corners[2] * scale_x, image->width), clip(corners[3] * scale_y, image->height)};
}

static void print_mask(const Found* found, int64_t index, const Box* box, const Image* image, const char* folder) {
  const int size = (int)TF_Dim(found->masks, 3);
  const float* cells = (const float*)TF_TensorData(found->masks) + index * size * size;
  Mask mask = paste(cells, size, box, image->height, image->width);
  printf(", \"mask_area\": %lld", (long long)area(&mask));
  if (folder != NULL) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%lld.pgm", folder, (long long)index);
    write_pgm(&mask, image->height, image->width, path);
  }
  free(mask.pixels);
}

static void print(const Found* found, const Image* image, const Image* resized, const char* folder) {
  const float* boxes = TF_TensorData(found->boxes);
  const float* scores = TF_TensorData(found->scores);
  const int64_t* classes = TF_TensorData(found->classes);
  for (int64_t index = 0; index < found->count; ++index) {
    const Box box = to_image(boxes + index * 4, image, resized);
    if (box.x2 <= box.x1 || box.y2 <= box.y1) {
      continue;
    }
    printf("{\"class\": %lld, \"score\": %.9g, \"box\": [%.9g, %.9g, %.9g, %.9g]", (long long)classes[index],
           scores[index], box.x1, box.y1, box.x2, box.y2);
    if (found->masks != NULL) {
      print_mask(found, index, &box, image, folder);
    }
    printf("}\n");
  }
}

int main(int count, char** words) {
  const Options options = parse(count, words);
  Image image = read_ppm(options.image);
  int height = image.height, width = image.width;
  shortest_edge(&height, &width, options.min_size, options.max_size);
  if (height < 1 || width < 1) {
    fail("%s is too elongated for --min-size %d and --max-size %d", options.image, options.min_size, options.max_size);
  }
  Image resized = resize(&image, height, width);
  Model model = load(options.model);
  TF_Tensor* input = network_input(&resized, options.rgb);
  const Found found = run(&model, input);  // for more images: make an input and run again
  print(&found, &image, &resized, options.masks);

  TF_Tensor* tensors[] = {input, found.boxes, found.scores, found.classes, found.masks};
  for (size_t index = 0; index < sizeof tensors / sizeof *tensors; ++index) {
    TF_DeleteTensor(tensors[index]);
  }
  unload(&model);
  free(resized.pixels);
  free(image.pixels);
  return 0;
}
