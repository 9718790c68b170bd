"""A cache directory in which nothing can be looked up costs time, and what has to be fetched into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from zooport.export_core.checkpoints.fetch import cache_path
from zooport.export_core.sources import CheckpointSource
from zooport.jobs import official
from zooport.jobs.digests import DigestCache, default_cache
from zooport.jobs.fetching import fetch_weights
from zooport.jobs.output import OutputFormat
from zooport.jobs.values import ExportTarget


@pytest.fixture(autouse=True)
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that the system refuses to look into: its name is too long, as rights do not stop root."""
    cache = tmp_path / ("closed" * 50)
    monkeypatch.setenv("ZOOPORT_CACHE", str(cache))
    with pytest.raises(OSError, match="too long"):
        cache.stat()
    return cache


def test_digests_are_worked_out_anew(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    digests = DigestCache(default_cache())
    assert digests.file(tmp_path / "file").startswith("ba7816bf")
    digests.remember("x", [tmp_path / "file"], "y")
    digests.save()


def test_weights_by_address_fail_typed_and_others_do_not(tmp_path: Path) -> None:
    (tmp_path / "here.pth").write_bytes(b"weights")
    address = "https://127.0.0.1:1/there.pth"
    weights = [tmp_path / "here.pth", cache_path(address)]
    targets = [ExportTarget(CheckpointSource("m", tmp_path / "c.yaml", each), "onnx") for each in weights]
    local, by_address = fetch_weights(targets, {weights[1]: address}, base=0.0)
    assert local.refusal is None
    assert by_address.refusal is not None
    assert by_address.refusal.code == "resource.disk"
    assert str(weights[1]) in by_address.refusal.message


def test_an_official_model_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    official.print_model("Misc/cascade_mask_rcnn_R_50_FPN_1x", OutputFormat.JSON)
    assert '"cached": false' in capsys.readouterr().out
