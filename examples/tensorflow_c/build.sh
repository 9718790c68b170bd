#!/bin/sh
# Build `detect` with one compiler line, against the headers and libraries inside the installed tensorflow package.
#
#   ./build.sh [PYTHON] [OUTPUT]
#
# PYTHON has the package tensorflow-cpu or tensorflow. Needs gcc (Debian: apt-get install gcc), or a compiler named by
# CC; no CMake, no Bazel, no CUDA.
set -eu
PYTHON=${1:-python3}
OUTPUT=${2:-detect}
CC=${CC:-gcc}
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
fail() { echo "build.sh: $*" >&2; exit 1; }

command -v "$CC" > /dev/null || fail "no C compiler: install gcc (Debian: apt-get install gcc), or name one in CC"
command -v "$PYTHON" > /dev/null || fail "there is no $PYTHON"
# Found, not imported: that takes seconds.
tensorflow=$("$PYTHON" -c 'import importlib.util as u; s = u.find_spec("tensorflow"); print(s.submodule_search_locations[0] if s else "")')
test -e "$tensorflow/include/tensorflow/c/c_api.h" || fail "$PYTHON has no TensorFlow: pip install tensorflow-cpu"
test -e "$tensorflow/libtensorflow_cc.so.2" || fail "the TensorFlow of $PYTHON has no libtensorflow_cc.so.2"

# Names as they are: there is no libtensorflow_cc.so in the package.
"$CC" -std=gnu11 -O2 -Wall -Wextra -isystem "$tensorflow/include" \
  "$here/detect.c" "$here/image.c" "$here/masks.c" -o "$OUTPUT" \
  -L"$tensorflow" -Wl,-rpath,"$tensorflow" -l:libtensorflow_cc.so.2 -l:libtensorflow_framework.so.2 -lm
