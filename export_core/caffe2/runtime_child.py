"""The child's side of the real runtime: takes nets and arrays from a socket, runs Caffe2, answers.

Runs as a script under CPython 3.8 or 3.9 with torch 1.10.2 and numpy alone, so it imports nothing of zooport.
Its one argument is the descriptor of a socket. A message is the length of a JSON header (4 bytes,
big-endian), the header, and the bytes of the arrays that its ``arrays`` describe, one after the other.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import struct
import sys
from typing import Any

LENGTH = struct.Struct("!I")


def describe(arrays: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a header says of arrays: name, dtype with byte order, shape."""
    return [{"name": name, "dtype": a.dtype.str, "shape": list(a.shape)} for name, a in arrays.items()]


class Channel:
    """Messages over a socket."""

    def __init__(self, connection: socket.socket, numpy: Any) -> None:
        self._connection = connection
        self._numpy = numpy

    def receive(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return (header, arrays by name).

        Raises:
            EOFError: the other side is gone.
        """
        (size,) = LENGTH.unpack(self._read(LENGTH.size))
        header = json.loads(self._read(size).decode())
        arrays = {}
        for one in header["arrays"]:
            array = self._numpy.empty(one["shape"], one["dtype"])
            self._read_into(memoryview(array.reshape(-1).view("u1")))
            arrays[one["name"]] = array
        return header, arrays

    def send(self, header: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Send one message."""
        # Not ascontiguousarray, which makes a scalar an array of one.
        whole = {name: self._numpy.asarray(array, order="C") for name, array in arrays.items()}
        encoded = json.dumps(dict(header, arrays=describe(whole))).encode()
        self._connection.sendall(LENGTH.pack(len(encoded)) + encoded)
        for array in whole.values():
            self._connection.sendall(memoryview(array.reshape(-1).view("u1")))

    def _read(self, size: int) -> bytes:
        buffer = bytearray(size)
        self._read_into(memoryview(buffer))
        return bytes(buffer)

    def _read_into(self, view: memoryview) -> None:
        while view:
            count = self._connection.recv_into(view)
            if not count:
                raise EOFError
            view = view[count:]


class Runtime:
    """The nets that were loaded, each with its blobs in a workspace of its own."""

    def __init__(self) -> None:
        from caffe2.proto import caffe2_pb2
        from caffe2.python import workspace

        self._messages = caffe2_pb2
        self._workspace = workspace
        workspace.GlobalInit(["caffe2", "--caffe2_log_level=2"])
        self._names: dict[str, str] = {}

    def operators(self, header: dict[str, Any], arrays: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the names of all operators that the runtime has."""
        return sorted(self._workspace.RegisteredOperators()), {}

    def fill(self, header: dict[str, Any], arrays: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Run a part of an init net, from its bytes."""
        self._workspace.SwitchWorkspace(header["net"], True)
        self._workspace.RunNetOnce(arrays.pop("init").tobytes())
        return None, {}

    def feed(self, header: dict[str, Any], arrays: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Make parameters of arrays; one of hundreds of megabytes takes several times that as a net."""
        self._workspace.SwitchWorkspace(header["net"], True)
        while arrays:
            self._workspace.FeedBlob(*arrays.popitem())
        return None, {}

    def load(self, header: dict[str, Any], arrays: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Create the predict net, from its bytes, where its parameters are."""
        key = header["net"]
        predict = self._messages.NetDef()
        predict.ParseFromString(arrays["predict"].tobytes())
        predict.name = key  # nets of one process share their names
        self._workspace.SwitchWorkspace(key, True)
        for name in predict.external_input:
            self._workspace.CreateBlob(name)
        self._workspace.CreateNet(predict.SerializeToString())
        self._names[key] = predict.name
        return None, {}

    def run(self, header: dict[str, Any], arrays: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Feed arrays, run a net, return the blobs that the header names."""
        key = header["net"]
        self._workspace.SwitchWorkspace(key)
        for name, array in arrays.items():
            self._workspace.FeedBlob(name, array)
        self._workspace.RunNet(self._names[key])
        return None, {name: self._fetch(name) for name in header["fetch"]}

    def _fetch(self, name: str) -> Any:
        blob = self._workspace.FetchBlob(name)
        if getattr(blob, "dtype", None) is None or blob.dtype.hasobject:
            raise TypeError(f"the blob {name!r} is no array of numbers: {str(blob)[:200]}")
        return blob

    def drop(self, header: dict[str, Any], arrays: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Forget a net and its blobs."""
        key = header["net"]
        self._workspace.SwitchWorkspace(key)
        self._workspace.ResetWorkspace()
        del self._names[key]
        return None, {}


def serve(descriptor: int) -> None:
    """Answer requests until the other side closes the socket."""
    import numpy as np

    channel = Channel(socket.socket(fileno=descriptor), np)
    runtime = Runtime()
    known = (runtime.operators, runtime.fill, runtime.feed, runtime.load, runtime.run, runtime.drop)
    calls = {call.__name__: call for call in known}
    channel.send({"ok": True, "value": {"python": sys.version.split()[0]}}, {})
    while True:
        try:
            header, arrays = channel.receive()
        except EOFError:
            return
        try:
            value, made = calls[header["call"]](header, arrays)
            answer = {"ok": True, "value": value}
        except Exception as error:  # whatever the runtime raises is the answer
            answer, made = {"ok": False, "error": f"{type(error).__name__}: {error}"}, {}
        channel.send(answer, made)


def main() -> None:
    """Serve the socket that the command line names; everything printed goes to standard error."""
    os.dup2(2, 1)
    faulthandler.enable(file=2, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's affair
    serve(int(sys.argv[1]))


if __name__ == "__main__":
    main()
