#!/bin/sh
# Build `detect` against the headers and libraries inside the installed torch package.
#
#   ./build.sh [PYTHON] [OUTPUT]
#
# Needs g++ (Debian: apt-get install g++) of version 11 or newer, or clang++ named by CXX; no CMake, no CUDA.
set -eu
PYTHON=${1:-python3}
OUTPUT=${2:-detect}
CXX=${CXX:-g++}
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
command -v "$CXX" > /dev/null || { echo "build.sh: no C++ compiler: install g++ (Debian: apt-get install g++), or name one in CXX" >&2; exit 1; }
torch=$("$PYTHON" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
abi=$("$PYTHON" -c 'import torch; print(int(torch.compiled_with_cxx11_abi()))')

# torchvision 0.29's operators name libtorch_python.so, of which they use nothing. An empty library of that name,
# beside the program, takes its place, so that no Python is needed.
empty=$(dirname -- "$OUTPUT")/libtorch_python.so
echo | "$CXX" -shared -x c++ - -o "$empty" -Wl,-soname,libtorch_python.so

# --no-as-needed: torchvision's operators, which are loaded while running, want all of libtorch beside them.
"$CXX" -std=c++20 -O2 -Wl,--no-as-needed -D_GLIBCXX_USE_CXX11_ABI="$abi" \
  -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include" \
  "$here/detect.cpp" "$here/image.cpp" "$here/masks.cpp" "$empty" -o "$OUTPUT" \
  -L"$torch/lib" -Wl,-rpath,"\$ORIGIN:$torch/lib" -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10 -ldl
