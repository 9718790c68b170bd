"""Hostile and broken checkpoints, each with the code of failure that reading it must end with."""

import io
import os
import pickle
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

UNSAFE, CORRUPT = "checkpoint.unsafe", "checkpoint.corrupt"
CANARY = "zooport-canary"
STATE = {
    "model": {"a.weight": np.arange(64, dtype=np.float32).reshape(8, 8), "a.bias": np.ones(8, np.float32)}
}


class Call:
    """Pickles to a call of ``function(*arguments)``."""

    def __init__(self, function: Callable[..., Any], *arguments: object, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


class Made:
    """Pickles through ``__reduce_ex__(2)``: NEWOBJ and BUILD."""


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def in_model(value: bytes) -> bytes:
    """A pickle of {"model": {"a.weight": <value>}}."""
    return b"\x80\x04}" + text("model") + b"}" + text("a.weight") + value + b"ss."


def array(shape: bytes, data: bytes, dtype: str = "f4") -> bytes:
    """Operations that build an array of the declared shape over the given bytes."""
    made_dtype = (
        named("numpy", "dtype") + text(dtype) + b"\x89\x88\x87R(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xff"
    )
    made_dtype += b"J\xff\xff\xff\xffK\x00tb"
    empty = (
        named("numpy._core.multiarray", "_reconstruct") + named("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
    )
    payload = b"B" + struct.pack("<I", len(data)) + data
    return empty + b"(K\x01" + shape + made_dtype + b"\x89" + payload + b"tb"


def integer(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def calling(protocol: int) -> bytes:
    return pickle.dumps({"model": Call(os.system, f"touch {CANARY}")}, protocol)


def callers() -> dict[str, bytes]:
    """Pickles that call, reduce, build and look up, in every way that pickle knows."""
    write = f"open({CANARY!r}, 'w').close()"
    calls = {
        "eval": Call(eval, write),
        "exec": Call(exec, write),
        "popen": Call(subprocess.Popen, ["touch", CANARY]),
        "open": Call(open, CANARY, "w"),
        "getattr": Call(getattr, "x", "upper"),
        "import": Call(__import__, "antigravity"),
        "map": Call(map, print, [1]),
        "loads": Call(pickle.loads, calling(4)),
        "unlink": Call(os.unlink, "model.pkl"),
        "path": Path(CANARY),
        "partial": Call(__import__("functools").partial, os.system, CANARY),
        "attrgetter": Call(__import__("operator").attrgetter, "system"),
        "numpy load": Call(np.load, CANARY, None, True),
        "memmap": Call(np.memmap, CANARY, "u1", "w+", 0, 10),
        "fromfile": Call(np.fromfile, "/etc/hostname"),
        "load from bytes": Call(torch.storage._load_from_bytes, b""),
        "torch load": Call(torch.load, CANARY),
        "object": Made(),
        "module": torch.nn.Linear(2, 2),
        "subclass": np.ma.masked_array([1.0, 2.0]),
        "objects": np.array([{}, None], dtype=object),
        "function": os.system,
        "class": Made,
    }
    files = {name: pickle.dumps({"model": value}, 4) for name, value in calls.items()}
    files |= {f"protocol {protocol}": calling(protocol) for protocol in range(6)}
    command = text(f"touch {CANARY}")
    files |= {
        "inst": b"(" + b"S'touch zooport-canary'\nios\nsystem\n.",
        "obj": b"(" + named("os", "system") + command + b"o.",
        "newobj": b"\x80\x02" + b"cos\nsystem\n" + command + b"\x85\x81.",
        "newobj_ex": b"\x80\x04" + named("os", "system") + command + b"\x85}\x92.",
        "keywords": b"\x80\x04" + named("collections", "OrderedDict") + b")}" + text("a") + b"Ns\x92.",
        "dotted": b"\x80\x04" + named("collections", "OrderedDict.__init__.__globals__") + b".",
        "dotted module": b"\x80\x04" + named("numpy", "core.multiarray.sys.modules") + b".",
        "build a type": b"\x80\x04" + named("numpy", "ndarray") + b"}" + text("__doc__") + text("x") + b"sb.",
        "build a tuple": b"\x80\x04)}b.",
        "ext1": b"\x80\x02\x82\x01.",
        "ext2": b"\x80\x02\x83\x01\x00.",
        "ext4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "state setter": pickle.dumps(Call(Made, state=({}, {"x": 1})), 4),
        "two pickles": calling(2) + pickle.dumps(STATE, 4),
        "behind weights": pickle.dumps({**STATE, "x": Call(os.system, f"touch {CANARY}")}, 4),
        "object dtype": in_model(array(b"K\x01\x85", bytes(8), "O8")),
    }
    return files


def repeated(value: bytes, function: bytes, *more: bytes) -> bytes:
    """A call that copies one large value, many times over, by reference."""
    memo = value + b"\x940" + function + b"\x940" + b"".join(part + b"\x940" for part in more)
    arguments = b"(h\x00" + b"".join(b"h%c" % (2 + index) for index in range(len(more))) + b"t"
    return b"\x80\x04" + memo + b"](" + (b"h\x01" + arguments + b"R") * 50_000 + b"e."


def liars() -> dict[str, bytes]:
    """Pickles that declare sizes, nest, or loop."""
    many = 100_000
    laughs: list[Any] = []
    for _ in range(60):
        laughs = [laughs] * 10
    keyed = b"K\x00" + b"2\x86" * 60
    return {
        "bytes of 2**62": in_model(b"\x8e" + struct.pack("<Q", 2**62)),
        "bytes of 2**31": in_model(b"B" + struct.pack("<I", 2**31)),
        "bytearray of 2**60": in_model(b"\x96" + struct.pack("<Q", 2**60)),
        "text of 2**63": in_model(b"\x8d" + struct.pack("<Q", 2**63)),
        "frame of 2**60": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.",
        "integer of 2**31": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
        "integer of -1": b"\x80\x02\x8b" + struct.pack("<i", -1) + b".",
        "integer of 9999 digits": b"(I" + b"9" * 9999 + b"\n.",
        "line without end": b"(V" + b"x" * 200_000,
        "bytearray(10**12)": in_model(named("builtins", "bytearray") + integer(10**12) + b"\x85R"),
        "bytes(10**12)": in_model(named("builtins", "bytes") + integer(10**12) + b"\x85R"),
        "list(...)": in_model(named("builtins", "list") + integer(10**12) + b"\x85R"),
        "codec zip": in_model(
            named("_codecs", "encode")
            + text(zlib.compress(bytes(10)).decode("latin-1"))
            + text("zip")
            + b"\x86R"
        ),
        "shape 2**40": in_model(array(integer(2**40) + b"\x85", bytes(16))),
        "shape 2**60 x 2**60": in_model(array(integer(2**60) * 2 + b"\x86", bytes(16))),
        "shape 0 x 2**60": in_model(array(b"K\x00" + integer(2**60) + b"\x86", b"")),
        "shape -1": in_model(array(integer(-1) + b"\x85", bytes(16))),
        "33 dimensions": in_model(array(b"(" + b"K\x01" * 33 + b"t", bytes(4))),
        "shape of text": in_model(array(text("4") + b"\x85", bytes(16))),
        "dtype V2**31": in_model(array(b"K\x01\x85", bytes(16), "V2147483648")),
        "dtype U": in_model(array(b"K\x01\x85", bytes(16), "U4")),
        "dtype of fields": in_model(array(b"K\x01\x85", bytes(16), "f4,f4")),
        "dtype M8": in_model(array(b"K\x02\x85", bytes(16), "M8[ns]")),
        "unfinished array": in_model(
            named("numpy._core.multiarray", "_reconstruct")
            + named("numpy", "ndarray")
            + b"K\x00\x85C\x01b\x87R"
        ),
        "lists, deep": in_model(b"]" * many + b"a" * (many - 1)),
        "tuples, deep": in_model(b")" + b"\x85" * many),
        "dicts, deep": b"\x80\x02" + (b"}" + b"K\x00") * many + b"N" + b"s" * many + b".",
        "marks, deep": b"\x80\x02" + b"(" * many + b"t" * many + b".",
        "laughs": pickle.dumps({"model": {"a.weight": laughs}}, 4),
        "tuple as key": b"\x80\x02}" + keyed + b"Ns.",
        "colliding keys": b"\x80\x02}\x8a\x0f" + (7 * (2**61 - 1)).to_bytes(15, "little") + b"Ns.",
        "text again and again": repeated(text("x" * 100_000), named("_codecs", "encode"), text("latin1")),
        "list again and again": repeated(b"](" + b"\x88" * 9999 + b"e", named("builtins", "frozenset")),
        "pairs again and again": repeated(
            b"](" + b"(" + text("k") + b"Nt" + b"2" * 9999 + b"e", named("collections", "OrderedDict")
        ),
        "long name": b"\x80\x04T"
        + struct.pack("<I", 10**6)
        + bytes(10**6)
        + b"\x94}"
        + b"h\x00Ns" * 9
        + b".",
        "colliding floats": b"\x80\x02}G" + struct.pack(">d", 0.5) + b"Ns.",
        "set of a large integer": b"\x80\x02" + named("builtins", "set") + b"]" + integer(2**70) + b"a\x85R.",
        "set of a set": b"\x80\x04\x8f(\x8f\x90.",
        "contains itself": b"\x80\x02]q\x00h\x00a.",
        "empty sets": b"\x80\x04" + b"\x8f" * 400_000 + b".",
        "empty lists": b"\x80\x04" + b"]" * 1_500_000 + b".",
        "memo 2**32": b"\x80\x02}r\xff\xff\xff\xff.",
        "memo far away": b"}p999999999999999\n.",
        "unknown memo": b"\x80\x02h\x07.",
        "empty stack": b"\x80\x02.",
        "pop of nothing": b"\x80\x0200000.",
        "no mark": b"\x80\x02t.",
        "odd items": b"\x80\x02}(K\x00u.",
        "append to dict": b"\x80\x02}Na.",
        "call of a list": b"\x80\x02])R.",
        "persistent id": b"\x80\x02}Q.",
        "persistent line": b"(Pstorage\n.",
        "out of band": b"\x80\x05\x97.",
        "read only buffer": b"\x80\x05\x98.",
        "protocol 9": b"\x80\x09}.",
        "unknown operation": b"\x80\x02\xff.",
        "no dictionary": pickle.dumps([1, 2, 3]),
        "no weights": pickle.dumps({"model": {"a": "b"}}),
    }


def archive(pickled: bytes, storages: dict[str, bytes], **options: Any) -> bytes:
    """A file as torch.save lays it out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", options.get("compression", zipfile.ZIP_STORED)) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/byteorder", "little")
        for key, data in storages.items():
            file.writestr(f"archive/data/{key}", data)
        file.writestr("archive/version", "3\n")
    return buffer.getvalue()


def tensor(
    count: int,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    kind: str = "FloatStorage",
    key: str = "0",
) -> bytes:
    """{"a.weight": tensor} with whatever its parts declare."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(integer, values)) + b"t"

    storage = b"(" + text("storage") + named("torch", kind) + text(key) + text("cpu") + integer(count) + b"tQ"
    parts = (
        storage
        + integer(offset)
        + numbers(size)
        + numbers(stride)
        + b"\x89"
        + named("collections", "OrderedDict")
    )
    rebuilt = named("torch._utils", "_rebuild_tensor_v2") + b"(" + parts + b")RtR"
    return b"\x80\x04}" + text("a.weight") + rebuilt + b"s."


def overlapped() -> bytes:
    """Many directory entries for the same stored bytes: larger unpacked than packed, without compression."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", tensor(4, 0, (4,), (1,)))
        file.writestr("archive/data/0", bytes(100_000))
        first = file.getinfo("archive/data/0")
        for number in range(1, 500):
            info = zipfile.ZipInfo(f"archive/data/{number}")
            info.file_size = info.compress_size = first.file_size
            info.header_offset, info.CRC = first.header_offset, first.CRC
            file.filelist.append(info)
            file.NameToInfo[info.filename] = info
    return buffer.getvalue()


def twins() -> bytes:
    """Two entries of one name: readers differ in which they take."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", calling(2))
        file.writestr("archive/data.pk2", tensor(4, 0, (4,), (1,)))
        file.writestr("archive/data/0", bytes(16))
    return buffer.getvalue().replace(b"data.pk2", b"data.pkl")


def archives() -> dict[str, tuple[bytes, str]]:
    """torch's zip format, told lies."""
    storage = {"0": bytes(64)}
    good = archive(tensor(16, 0, (4, 4), (4, 1)), storage)
    directory = good.rfind(b"PK\x05\x06")
    huge = bytearray(good)
    struct.pack_into("<I", huge, directory + 12, 2**31)
    moved = bytearray(good)
    struct.pack_into("<I", moved, directory + 16, 2**31)
    elsewhere = good.replace(b"archive/data.pkl", b"archive/data.txt")
    lies = {
        "storage of 2**60": tensor(2**60, 0, (4,), (1,)),
        "storage of 17": tensor(17, 0, (4,), (1,)),
        "storage of -1": tensor(-1, 0, (4,), (1,)),
        "size 2**62": tensor(16, 0, (2**62,), (1,)),
        "size overflows": tensor(16, 0, (2**62, 2**62), (1, 1)),
        "size 17": tensor(16, 0, (17,), (1,)),
        "size -4": tensor(16, 0, (-4,), (1,)),
        "offset": tensor(16, 14, (4,), (1,)),
        "offset 2**62": tensor(16, 2**62, (4,), (1,)),
        "offset -1": tensor(16, -1, (4,), (1,)),
        "stride": tensor(16, 0, (4,), (6,)),
        "stride 2**62": tensor(16, 0, (4,), (2**62,)),
        "stride -1": tensor(16, 4, (4,), (-1,)),
        "expanded to 2**40": tensor(16, 0, (2**40,), (0,)),
        "expanded to 2**60": tensor(16, 0, (2**30, 2**30), (0, 0)),
        "empty and 2**60": tensor(16, 0, (0, 2**60), (1, 1)),
        "more strides": tensor(16, 0, (4,), (1, 1)),
        "missing storage": tensor(16, 0, (4,), (1,), key="7"),
        "path as key": tensor(16, 0, (4,), (1,), key="../../data.pkl"),
        "complex": tensor(8, 0, (4,), (1,), "ComplexFloatStorage"),
        "no storage type": tensor(16, 0, (4,), (1,), "Size"),
        "no pickle": b"",
        "truncated pickle": tensor(16, 0, (4, 4), (4, 1))[:-20],
    }
    files = {name: (archive(pickled, storage), CORRUPT) for name, pickled in lies.items()}
    files |= {f"call, protocol {n}": (archive(calling(n), {}), UNSAFE) for n in range(6)}
    files |= {
        "bomb": (
            archive(tensor(16, 0, (4,), (1,)), {"0": bytes(2**24)}, compression=zipfile.ZIP_DEFLATED),
            CORRUPT,
        ),
        "lzma bomb": (archive(calling(2), {"0": bytes(2**22)}, compression=zipfile.ZIP_LZMA), CORRUPT),
        "overlapped": (overlapped(), CORRUPT),
        "two data.pkl": (twins(), CORRUPT),
        "directory of 2**31": (bytes(huge), CORRUPT),
        "directory elsewhere": (bytes(moved), CORRUPT),
        "header elsewhere": (
            good.replace(b"PK\x03\x04", b"PK\x03\x05", 2).replace(b"PK\x03\x05", b"PK\x03\x04", 1),
            CORRUPT,
        ),
        "no data.pkl": (elsewhere, CORRUPT),
        "unknown global": (archive(tensor(16, 0, (4,), (1,), "NoStorage"), storage), UNSAFE),
        "only a magic": (b"PK\x03\x04", CORRUPT),
    }
    return files


def good_files() -> dict[str, bytes]:
    """One sound file of each format."""
    state = {name: torch.from_numpy(value) for name, value in STATE["model"].items()}
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"model": state}, zipped)
    torch.save({"model": state}, legacy, _use_new_zipfile_serialization=False)
    return {
        "zip.pth": zipped.getvalue(),
        "legacy.pth": legacy.getvalue(),
        "protocol0.pkl": pickle.dumps(STATE, 0),
        "protocol5.pkl": pickle.dumps(STATE, 5),
        "x.safetensors": save(STATE["model"]),
    }


def truncated() -> dict[str, tuple[bytes, str]]:
    files = {}
    for name, data in good_files().items():
        for part in (0.05, 0.3, 0.6, 0.9, 0.99):
            files[f"{name} cut at {part}"] = (data[: int(len(data) * part)], CORRUPT)
        files[f"{name} without its last byte"] = (data[:-1], CORRUPT)
    return files


def legacy_liars() -> dict[str, tuple[bytes, str]]:
    """The format from before torch 1.6: a row of pickles and raw storages."""
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    system = pickle.dumps({"little_endian": True}, 2)
    keys, body = pickle.dumps(["0"], 2), struct.pack("<q", 16) + bytes(64)
    sound = tensor(16, 0, (4, 4), (4, 1))
    return {
        "legacy call": (head + system + calling(2), UNSAFE),
        "legacy call in system": (head + calling(2), UNSAFE),
        "legacy call in keys": (head + system + sound + calling(2), UNSAFE),
        "legacy protocol": (head[: len(head) - 4] + b"K\x02." + system, CORRUPT),
        "legacy storage of 2**60": (head + system + tensor(2**60, 0, (4,), (1,)) + keys + body, CORRUPT),
        "legacy other size": (head + system + sound + keys + struct.pack("<q", 15) + bytes(64), CORRUPT),
        "legacy unknown key": (head + system + sound + pickle.dumps(["9"], 2) + body, CORRUPT),
        "legacy keys": (head + system + sound + pickle.dumps("0", 2) + body, CORRUPT),
        "legacy without storages": (head + system + sound + pickle.dumps([], 2), CORRUPT),
    }


def strangers() -> dict[str, tuple[bytes, str]]:
    def header(text: str, body: bytes = b"") -> bytes:
        return struct.pack("<Q", len(text)) + text.encode() + body

    entry = '{"a": {"dtype": "F32", "shape": %s, "data_offsets": [0, %d]}}'
    contents = {
        "random": bytes(np.random.default_rng(0).integers(0, 255, 4096, np.uint8)),
        "zeros": bytes(4096),
        "one byte": b"\x80",
        "elf": b"\x7fELF" + bytes(60),
        "html": b"<html></html>",
        "png": b"\x89PNG\r\n\x1a\n" + bytes(20),
        "tar": bytes(257) + b"ustar" + bytes(250),
        "header of 2**40": struct.pack("<Q", 2**40) + b"{}",
        "header cut": struct.pack("<Q", 9999) + b'{"a": {}}',
        "shape 2**62": header(entry % ("[4611686018427387904]", 16), bytes(16)),
        "shape and offsets differ": header(entry % ("[5]", 16), bytes(16)),
        "offsets behind the end": header(entry % ("[4]", 16), bytes(8)),
        "no json": header("{" + "[" * 5000, bytes(8)),
        "unknown dtype": header(entry.replace("F32", "Q9") % ("[4]", 16), bytes(16)),
        "complex dtype": header(entry.replace("F32", "C64") % ("[2]", 16), bytes(16)),
    }
    return {name: (data, CORRUPT) for name, data in contents.items()}


def corpus() -> dict[str, tuple[bytes, str]]:
    """Name -> contents and the code that reading them must end with."""
    files = {f"calls: {name}": (data, UNSAFE) for name, data in callers().items()}
    files |= {f"lies: {name}": (data, CORRUPT) for name, data in liars().items()}
    for group, members in (
        ("zip", archives()),
        ("cut", truncated()),
        ("legacy", legacy_liars()),
        ("stranger", strangers()),
    ):
        files |= {f"{group}: {name}": contents for name, contents in members.items()}
    return files
