#!/bin/sh
# Build `detect` against the headers and libraries inside torch 1.10.2, the last torch that holds Caffe2.
#
#   ./build.sh [PYTHON] [OUTPUT]
#
# PYTHON has that torch; by default it is the environment of `zooport runtime install caffe2`. PROTOBUF names a
# folder with the headers of protobuf 3.13.0; without it pip fetches them once (2 MB) into PYTHON's environment.
# Needs g++ (Debian: apt-get install g++) of version 9 or newer, or clang++ named by CXX; no CMake, no protoc.
set -eu
PYTHON=${1:-${ZOOPORT_CACHE:-$HOME/.cache/zooport}/runtimes/caffe2/bin/python}
OUTPUT=${2:-detect}
CXX=${CXX:-g++}
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
fail() { echo "build.sh: $*" >&2; exit 1; }

command -v "$CXX" > /dev/null || fail "no C++ compiler: install g++ (Debian: apt-get install g++), or name one in CXX"
command -v "$PYTHON" > /dev/null || fail "there is no $PYTHON: zooport runtime install caffe2 makes the environment"
torch=$("$PYTHON" -c 'import importlib.util as u; s = u.find_spec("torch"); print(s.submodule_search_locations[0] if s else "")')
test -e "$torch/include/caffe2/core/workspace.h" || fail "$PYTHON has no torch with Caffe2: 1.10.2 is the last one"
abi=$("$PYTHON" -c 'import torch; print(int(torch.compiled_with_cxx11_abi()))')
headers=${PROTOBUF:-$("$PYTHON" -c 'import sys; print(sys.prefix)')/include/protobuf-3.13.0}

# Into a folder beside its place and then there, so that what is there is whole.
fetch_headers() {
  mkdir -p "$(dirname "$headers")"
  work=$(mktemp -d "$headers.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  set -- -m pip download --disable-pip-version-check --quiet --no-deps --no-binary :all: --no-build-isolation \
    --require-hashes --requirement "$here/protobuf_headers.txt" --dest "$work"
  if "$PYTHON" -c 'import pip, pkg_resources' 2> /dev/null; then
    "$PYTHON" "$@" || fail "pip could not fetch protobuf's headers; name a folder that has them in PROTOBUF"
  elif command -v uv > /dev/null; then  # an environment that uv made has no pip
    uv run --quiet --no-project --python "$PYTHON" --with pip --with 'setuptools<81' python "$@" \
      || fail "uv could not fetch protobuf's headers; name a folder that has them in PROTOBUF"
  else
    fail "$PYTHON has no pip to fetch protobuf's headers with; name a folder that has them in PROTOBUF"
  fi
  tar -xzf "$work"/grpcio-tools-*.tar.gz -C "$work" --strip-components=4 --wildcards '*/third_party/protobuf/src/google'
  rm "$work"/grpcio-tools-*.tar.gz
  chmod 755 "$work"
  test -d "$headers" || mv "$work" "$headers"
}
test -e "$headers/google/protobuf/message.h" || fetch_headers

# --no-as-needed: libtorch_cpu misses functions of MKL that lie in libtorch and what that loads.
"$CXX" -std=c++17 -O2 -D_GLIBCXX_USE_CXX11_ABI="$abi" -isystem "$torch/include" -isystem "$headers" \
  "$here/main.cpp" "$here/../torchscript_cpp/image.cpp" -o "$OUTPUT" \
  -L"$torch/lib" -Wl,-rpath,"$torch/lib" -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10
