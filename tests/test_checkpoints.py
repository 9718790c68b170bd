"""Checkpoints of every format are read to the same arrays, whatever they are wrapped in."""

import pickle
import struct
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zooport.export_core.checkpoints import file_digest, match_weights, read_weights
from zooport.export_core.checkpoints.numpy_pickle import CONTAINERS
from zooport.export_core.checkpoints.pickle_machine import PickleMachine
from zooport.export_core.failures import Failure

RNG = np.random.default_rng(3)
ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "backbone.stem.conv1.weight": RNG.standard_normal((4, 3, 7, 7)).astype(np.float32),
    "backbone.stem.conv1.norm.num_batches_tracked": np.array(7, np.int64),
    "head.bias": RNG.standard_normal(5).astype(np.float16),
    "head.weight": np.asfortranarray(RNG.standard_normal((5, 4))),
    "head.empty": np.zeros((0, 4), np.float32),
    "head.mask": np.array([True, False]),
}


def tensors(arrays: Any = ARRAYS) -> Any:
    return OrderedDict((name, torch.from_numpy(array)) for name, array in arrays.items())


def assert_same(weights: Any, arrays: Any = ARRAYS) -> None:
    assert set(weights.arrays) == set(arrays)
    for name, array in arrays.items():
        found = weights.arrays[name]
        assert (found.dtype, found.shape) == (array.dtype, array.shape), name
        assert np.array_equal(found, array), name


def saved(path: Path, contents: Any, **options: Any) -> Path:
    torch.save(contents, path, **options)
    return path


def pickled(path: Path, contents: Any, protocol: int) -> Path:
    path.write_bytes(pickle.dumps(contents, protocol))
    return path


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "model"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pth(tmp_path: Path, legacy: bool, wrapped: bool, protocol: int) -> None:
    contents = {"model": tensors(), "iteration": 3} if wrapped else tensors()
    path = saved(
        tmp_path / "model.pth",
        contents,
        _use_new_zipfile_serialization=not legacy,
        pickle_protocol=protocol,
    )
    weights = read_weights(path)
    assert_same(weights)
    assert weights.matching_heuristics
    assert weights.notes == ()


@pytest.mark.parametrize("protocol", range(6))
def test_pkl_of_the_zoo(tmp_path: Path, protocol: int) -> None:
    contents = {"model": ARRAYS, "__author__": "A trainer", "matching_heuristics": True}
    weights = read_weights(pickled(tmp_path / "model.pkl", contents, protocol))
    assert_same(weights)
    assert weights.matching_heuristics
    exact = {"model": ARRAYS, "__author__": "A trainer"}
    assert not read_weights(pickled(tmp_path / "exact.pkl", exact, protocol)).matching_heuristics


def test_safetensors(tmp_path: Path) -> None:
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors().items()}, tmp_path / "model.safetensors"
    )
    assert_same(read_weights(tmp_path / "model.safetensors"))


def test_a_file_is_known_by_its_contents(tmp_path: Path) -> None:
    assert_same(read_weights(pickled(tmp_path / "model.pth", {"model": ARRAYS}, 4)))
    assert_same(read_weights(saved(tmp_path / "model.pkl", {"model": tensors()})))
    assert_same(read_weights(saved(tmp_path / "weights", tensors())))


def test_python_2_pickles(tmp_path: Path) -> None:
    """Protocol 2 from Python 2: text and array bytes are both byte strings, names of NumPy 1."""
    data = np.arange(6, dtype="<f4")
    raw = data.tobytes()
    state = (
        b"(K\x01(K\x02K\x03tcnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"I00\nU" + bytes([len(raw)]) + raw + b"t"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR" + state + b"b"
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02}U\x05blobs}U\x07conv1_w" + array + b"ss.")
    weights = read_weights(path)
    assert weights.era == "caffe2"
    assert np.array_equal(weights.arrays["conv1_w"], data.reshape(2, 3))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_when_it_is_matched(tmp_path: Path, half: torch.dtype) -> None:
    values = torch.tensor([[1.5, -2.25, 3e-5], [0.0, 1e4, -1.0]]).to(half)
    expected = values.float().numpy()
    for path in (
        saved(tmp_path / "zip.pth", {"a.w": values.t()}),
        saved(tmp_path / "legacy.pth", {"a.w": values.t()}, _use_new_zipfile_serialization=False),
    ):
        taken = match_weights({"a.w": (3, 2)}, read_weights(path), source="x")["a.w"]
        assert taken.dtype == np.float32
        assert np.array_equal(taken, expected.T)
    save_file({"a.w": values}, tmp_path / "model.safetensors")
    weights = read_weights(tmp_path / "model.safetensors")
    assert np.array_equal(match_weights({"a.w": (2, 3)}, weights, source="x")["a.w"], expected)


def test_views_of_one_storage_keep_their_place(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {"a.w": base[1:3, ::2], "b.w": base.t(), "c.w": base[0, 0].expand(3), "d.w": base[:, :1]}
    for legacy in (False, True):
        path = saved(tmp_path / f"{legacy}.pth", state, _use_new_zipfile_serialization=not legacy)
        found = read_weights(path).arrays
        assert all(np.array_equal(found[name], tensor.numpy()) for name, tensor in state.items())


def test_a_whole_training_checkpoint(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.ones(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    contents = {
        "model": module.state_dict(),
        "parameters": list(module.parameters()),
        "optimizer": optimizer.state_dict(),
        "scheduler": {"base_lrs": [0.1], "milestones": {3: 1}, "best": np.float64(0.5)},
        "shape": torch.Size([3, 4]),
        "dtype": torch.float32,
        "iteration": 9,
    }
    for legacy in (False, True):
        path = saved(tmp_path / f"{legacy}.pth", contents, _use_new_zipfile_serialization=not legacy)
        assert_same(read_weights(path), {name: value.numpy() for name, value in module.state_dict().items()})


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_left_out(tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in tensors().items()}
    weights = read_weights(saved(tmp_path / "model.pth", {"state_dict": state, "epoch": 1}))
    assert_same(weights)
    assert any(prefix in note for note in weights.notes)


def test_the_plain_weights_are_used_unless_there_is_only_an_average(tmp_path: Path) -> None:
    average = {name: tensor * 2 for name, tensor in tensors().items()}
    both = read_weights(saved(tmp_path / "both.pth", {"model": tensors(), "model_ema": average}))
    assert_same(both)
    assert any("not the moving average" in note for note in both.notes)
    doubled = {name: array * 2 for name, array in ARRAYS.items()}
    for key, state in (("ema_state", average), ("model_ema", {"state_dict": average}), ("ema", average)):
        only = read_weights(saved(tmp_path / f"{key}.pth", {key: state, "iteration": 3}))
        assert_same(only, {name: only.arrays[name].dtype.type(0) + array for name, array in doubled.items()})
        assert any(key in note for note in only.notes)


def test_an_average_among_the_plain_weights_is_left_out(tmp_path: Path) -> None:
    state = {"model." + name: tensor for name, tensor in tensors().items()}
    mixed = state | {"model_ema." + name: tensor * 2 for name, tensor in tensors().items()}
    weights = read_weights(saved(tmp_path / "model.pth", {"state_dict": mixed}))
    assert_same(weights)
    assert len(weights.notes) == 2


def test_entries_that_are_no_arrays_are_reported(tmp_path: Path) -> None:
    contents = {"model": {**tensors(), "head._extra_state": None, "head.name": "x"}}
    weights = read_weights(saved(tmp_path / "model.pth", contents))
    assert_same(weights)
    assert "2 entries are no arrays" in weights.notes[0]


@pytest.mark.parametrize("members", [{1, 2}, {-1, 0.5, True}, {(1, 2.5), ("a", (2,))}, {"a", None, 3}])
@pytest.mark.parametrize("protocol", [2, 4])
def test_sets_beside_the_weights_are_passed_over(tmp_path: Path, members: set[Any], protocol: int) -> None:
    contents = {"model": tensors(), "frozen": members}
    assert_same(read_weights(saved(tmp_path / "model.pth", contents, pickle_protocol=protocol)))
    contents = {"model": ARRAYS, "frozen": [members, frozenset(members)]}
    assert_same(read_weights(pickled(tmp_path / "model.pkl", contents, protocol)))


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"cbuiltins\nset\n](", b"e\x85R."), (b"\x8f(", b"\x90.")],
    ids=["call", "own operation"],
)
def test_members_of_a_set_cannot_be_chosen_to_collide(before: bytes, after: bytes) -> None:
    """hash(-1) is hash(-2), so all of these tuples have one hash: hashing them would take a minute."""
    many = [tuple(-1 - (number >> bit & 1) for bit in range(15)) for number in range(2**15)]
    assert len(set(map(hash, many))) == 1
    numbers = {each: b"J" + struct.pack("<i", each) for each in (-1, -2)}
    members = b"".join(b"(" + b"".join(map(numbers.__getitem__, each)) + b"t" for each in many)
    started = time.monotonic()
    found, _ = PickleMachine(memoryview(b"\x80\x04" + before + members + after), CONTAINERS).load()
    assert len(found) == 2**15
    assert time.monotonic() - started < 10


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pth", tensors())
    code = (
        "import sys\nfrom pathlib import Path\nfrom zooport.export_core.checkpoints import read_weights\n"
        "read_weights(Path(sys.argv[1]))\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 0


def test_the_demo_zoo_reads_as_torch_and_pickle_read_it(demo_zoo: Path) -> None:
    paths = sorted(demo_zoo.glob("*/model_final.*"))
    assert len(paths) >= 8
    for path in paths:
        if path.suffix == ".pth":
            state = torch.load(path, weights_only=True)["model"]
            assert_same(read_weights(path), {name: tensor.numpy() for name, tensor in state.items()})
        else:
            assert_same(read_weights(path), pickle.loads(path.read_bytes())["model"])


def failure(path: Path) -> Failure:
    with pytest.raises(Failure) as caught:
        read_weights(path)
    assert str(path) in caught.value.message
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_file_that_cannot_be_read_is_missing(tmp_path: Path) -> None:
    assert failure(tmp_path / "gone.pth").code == "checkpoint.missing"
    assert failure(tmp_path).code == "checkpoint.missing"
    assert failure(Path("/dev/null")).code == "checkpoint.missing"
    with pytest.raises(Failure) as caught:
        file_digest(tmp_path / "gone.pth")
    assert caught.value.code == "checkpoint.missing"


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (b"\x93NUMPY\x01\x00", "NumPy array"),
        (b"", "empty"),
    ],
)
def test_what_is_often_found_instead_of_weights_is_named(tmp_path: Path, contents: Any, said: str) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(contents)
    assert failure(path).code == "checkpoint.corrupt"
    assert said in str(failure(path))


def test_other_archives_are_named(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pth")
    assert "TorchScript" in failure(tmp_path / "script.pth").message
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    assert "NumPy archive" in failure(tmp_path / "arrays.npz").message


@pytest.mark.parametrize(
    "contents",
    [
        {"model": {}},
        {"iteration": 3},
        [1, 2],
        {"model": {"a": [1]}},
        {"model": {"a.w": torch.ones(2).to_sparse()}},
    ],
    ids=["empty", "no weights", "list", "no arrays", "sparse"],
)
def test_a_file_without_weights_is_corrupt(tmp_path: Path, contents: Any) -> None:
    assert failure(saved(tmp_path / "model.pth", contents)).code == "checkpoint.corrupt"


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert (
        file_digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
