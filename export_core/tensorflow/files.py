"""The names of an artifact's files; free of TensorFlow, for those who only look for them."""

SAVED_MODEL, FROZEN, LITE = "saved_model", "model.pb", "model.tflite"
