"""Artifacts appear whole or not at all, replace only artifacts, and are recognised when they change."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from zooport.export_core import artifacts
from zooport.export_core.artifacts import discard, is_intact, measure, publish, staged, staging_path
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.isolation import ForkServer, run_isolated


def write(directory: Path, content: str = "one") -> None:
    (directory / "model.ts").write_text(content)
    (directory / "model.json").write_text("{}")
    (directory / "extra").mkdir()
    (directory / "extra" / "file").write_text(content)


def make(final: Path, content: str = "one") -> artifacts.Published:
    with staged(final, "t") as staging:
        write(staging, content)
        return publish(staging, final)


def names(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*")}


def test_an_artifact_is_published_with_the_digests_of_its_files(tmp_path: Path) -> None:
    final = tmp_path / "out" / "model" / "format"
    published = make(final)
    assert names(final) == {"model.ts", "model.json", "extra", "extra/file"}
    assert published.size == len("one" + "{}" + "one")
    sums = subprocess.run(["sha256sum", final / "model.ts"], capture_output=True, text=True, check=True)
    assert published.files["model.ts"] == sums.stdout.split()[0]
    assert [path.name for path in final.parent.iterdir()] == ["format"]


def test_what_only_verification_needs_is_dropped(tmp_path: Path) -> None:
    final = tmp_path / "artifact"
    with staged(final, "t") as staging:
        write(staging)
        (staging / ".reference.npz").write_text("hidden")
        (staging / ".more").mkdir()
        published = publish(staging, final)
    assert not any(name.startswith(".") for name in names(final))
    assert not any(name.startswith(".") for name in published.files)


def test_nothing_is_seen_before_it_is_published(tmp_path: Path) -> None:
    final = tmp_path / "artifact"
    with staged(final, "t") as staging:
        write(staging)
        assert staging.parent == final.parent  # the same file system, so that a rename can publish
        assert staging.name.startswith(".")
        assert not final.exists()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_attempt_do_not_get_into_the_next(tmp_path: Path) -> None:
    final = tmp_path / "artifact"
    staging_path(final, "t").mkdir()
    (staging_path(final, "t") / "half-written").write_text("")
    make(final)
    assert "half-written" not in names(final)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_an_earlier_artifact_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(artifacts, "_exchange", lambda *_: False)
    final = tmp_path / "artifact"
    before = make(final)
    (final / "only_before").write_text("")
    after = make(final, "two")
    assert "only_before" not in names(final)
    assert is_intact(final, after.files)
    assert not is_intact(final, before.files)
    assert list(tmp_path.iterdir()) == [final]


def test_the_exchange_is_one_step_on_linux(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "was_a").write_text("")
    assert artifacts._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "was_a").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_not_an_artifact_is_never_replaced(tmp_path: Path, kind: str) -> None:
    final = tmp_path / "mine"
    if kind == "file":
        final.write_text("precious")
    elif kind == "folder":
        final.mkdir()
        (final / "precious").write_text("precious")
    else:
        final.symlink_to(tmp_path)
    with pytest.raises(Failure) as caught:
        make(final)
    assert caught.value.code == "output.occupied"
    assert str(final) in caught.value.message
    assert final.exists()
    assert kind != "folder" or (final / "precious").read_text() == "precious"


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    make(tmp_path / "artifact")
    assert (tmp_path / "artifact" / "model.ts").exists()


@pytest.mark.parametrize("harm", ["altered", "missing", "gone"])
def test_harm_is_noticed(tmp_path: Path, harm: str) -> None:
    final = tmp_path / "artifact"
    published = make(final)
    assert is_intact(final, published.files)
    if harm == "altered":
        (final / "extra" / "file").write_text("One")
    elif harm == "missing":
        (final / "model.json").unlink()
    else:
        final.rename(tmp_path / "elsewhere")
    assert not is_intact(final, published.files)


def test_an_artifact_without_files_is_not_intact(tmp_path: Path) -> None:
    assert not is_intact(tmp_path, {})


def test_a_process_that_goes_on_after_its_work_was_discarded_publishes_nothing(tmp_path: Path) -> None:
    final = tmp_path / "artifact"
    make(final)
    with staged(final, "t") as staging:
        write(staging, "two")
        discard(final, "t")
        with pytest.raises(Failure) as caught:
            publish(staging, final)
    assert caught.value.code == "resource.disk"
    assert (final / "model.ts").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_nothing_is_published_without_permission(tmp_path: Path) -> None:
    final = tmp_path / "artifact"
    make(final)

    def refuse() -> None:
        raise Failure("run.cancelled", "the driver is gone")

    with staged(final, "t") as staging:
        write(staging, "two")
        with pytest.raises(Failure, match="gone"):
            publish(staging, final, refuse)
    assert (final / "model.ts").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_what_was_moved_aside_when_the_power_went_comes_back(tmp_path: Path) -> None:
    final = tmp_path / "artifact"
    make(final)
    staging = staging_path(final, "t")
    staging.mkdir()
    write(staging, "two")
    final.rename(staging.with_name(staging.name + artifacts.OLD))
    discard(final, "t")
    assert (final / "model.ts").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_files_are_flushed_before_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr(artifacts, "_flush", lambda path: steps.append(path.name))
    move = artifacts._move

    def noted_move(staging: Path, final: Path) -> None:
        steps.append("move")
        move(staging, final)

    monkeypatch.setattr(artifacts, "_move", noted_move)
    make(tmp_path / "artifact")
    moved = steps.index("move")
    assert {"model.ts", "model.json", "file", "extra", ".artifact.t.staging"} == set(steps[:moved])
    above = [parent.name for parent in tmp_path.parents]
    assert steps[moved + 1 :] == [tmp_path.name, *above[:2]]


def test_a_directory_that_cannot_be_made_is_a_disk_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure) as caught:
        make(tmp_path / "file" / "model" / "format")
    assert caught.value.code == "resource.disk"
    assert str(tmp_path / "file") in caught.value.message
    assert caught.value.stage is Stage.PUBLISH


def publish_as_nobody(final: str, *, report: Any) -> None:
    if os.getuid() == 0:
        os.setresuid(65534, 65534, 65534)
    make(Path(final))


def test_a_directory_without_permission_is_a_disk_failure() -> None:
    server = ForkServer(preload=())
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "log").touch()
        (Path(folder) / "log").chmod(0o666)
        closed = Path(folder) / "closed"
        closed.mkdir(mode=0o555)
        with pytest.raises(Failure) as caught:
            run_isolated(
                "zooport.tests.test_artifacts:publish_as_nobody",
                str(closed / "model"),
                timeout=60,
                log=Path(folder) / "log",
                server=server,
            )
    server.close()
    assert caught.value.code == "resource.disk"
    assert "permission denied" in caught.value.message
    assert str(closed) in caught.value.message


def test_a_full_disk_leaves_the_earlier_artifact_and_no_rest(small_disk: Path) -> None:
    final = small_disk / "artifact"
    before = make(final)
    with pytest.raises(OSError, match="No space left") as caught, staged(final, "t") as staging:
        (staging / "model.ts").write_bytes(b"x" * 1_000_000)
    assert caught.value.errno == errno.ENOSPC
    assert is_intact(final, before.files)
    assert list(small_disk.iterdir()) == [final]


def test_a_disk_error_while_flushing_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(artifacts, "_flush", full)
    with pytest.raises(Failure) as caught:
        make(tmp_path / "artifact")
    assert caught.value.code == "resource.disk"
    assert "artifact" in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_measure_reads_what_publish_wrote(tmp_path: Path) -> None:
    published = make(tmp_path / "artifact")
    assert measure(tmp_path / "artifact") == published
