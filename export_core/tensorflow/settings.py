"""What TensorFlow is told by environment variables and calls, explicitly; import this before TensorFlow."""

from __future__ import annotations

import os
from typing import Any

THREADS = "OMP_NUM_THREADS"
VARIABLES = {
    "TF_CPP_MIN_LOG_LEVEL": "2",  # errors and warnings; not what processor it was built for
    "TF_ENABLE_ONEDNN_OPTS": "1",  # the kernels that are fast, and the only ones for grouped convolutions
    "CUDA_VISIBLE_DEVICES": "",  # verdicts come from CPUs
    # Python's protobuf in C: what converts graphs of hundreds of megabytes.
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "upb",
}


def environment(threads: int) -> dict[str, str]:
    """Return the variables of a process that runs TensorFlow with so many compute threads."""
    return {**os.environ, **VARIABLES, THREADS: str(threads)}


def import_tensorflow(threads: int) -> Any:
    """Import TensorFlow with this number of compute threads, on the CPU; the process is its own."""
    os.environ.update(VARIABLES)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.set_visible_devices([], "GPU")
    tf.get_logger().setLevel("ERROR")
    return tf
