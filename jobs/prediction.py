"""``zooport predict``: any artifact on image files, through its own runtime, in a disposable process."""

from __future__ import annotations

import glob
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooport.export_core.failures import CODES, Failure, Stage
from zooport.export_core.isolation import ForkServer, run_isolated
from zooport.export_core.places import Place, RemotePath, expanded
from zooport.export_core.prediction import ImageJob, Selection
from zooport.export_core.threads import asked_threads
from zooport.jobs.exit_codes import FAILED
from zooport.jobs.output import OutputFormat, cell, console, print_rows

if TYPE_CHECKING:
    from rich.console import RenderableType

#: What counts as an image in a folder; files that are named are read whatever their names.
IMAGE_SUFFIXES = (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
COLUMNS = ("image_id", "file_name", "category_id", "category", "kind", "score", "bbox")
DRAWN_ABOVE = 0.5
_LISTED = 10  # pictures that are named one by one
_STAGE = "zooport.export_core.prediction:predict_with_threads"
_LOOK = 0.2  # seconds between two looks at how far the process is


@dataclass(frozen=True)
class Order:
    """What is to be predicted, as it stands on the command line.

    Attributes:
        artifact: a directory, a file in one, or what ``zooport show`` takes.
        images: files, folders and patterns.
        out: folder of the pictures, None for none.
        score_threshold: the least score that is printed and drawn; None prints 0.5 and more in a table and
            everything as JSON or CSV, and draws 0.5 and more.
        limit: findings of an image at most.
        timeout, deadlines: seconds for everything and for its stages.
        registry: where an export's id is looked up.
    """

    artifact: str
    images: Sequence[str]
    out: Path | None = None
    score_threshold: float | None = None
    limit: int | None = None
    timeout: float | None = None
    deadlines: Mapping[str, float] = field(default_factory=dict)
    registry: str | None = None


@dataclass(frozen=True)
class _Results:
    rows: list[dict[str, Any]]
    failures: list[Failure]
    pictures: list[Path]
    unfinished: ImageJob | None  # the image that the process was at when it ended


def predict(order: Order, output: OutputFormat) -> int:
    """Predict, print and draw; return 0, or 1 when an image failed.

    Raises:
        Failure: ``artifact.missing``, ``artifact.foreign``, ``artifact.altered``, ``artifact.unloadable``,
            ``dependency.missing``; ``dataset.invalid`` when nothing is named; ``resource.*``,
            ``worker.crashed``.
    """
    jobs = plan_pictures(find_images(order.images), order.out)
    directory = find_artifact(order.artifact, order.registry)
    least = order.score_threshold
    selection = Selection(
        least if least is not None else DRAWN_ABOVE if output is OutputFormat.TABLE else 0.0,
        least if least is not None else DRAWN_ABOVE,
        order.limit,
    )
    folder = Path(tempfile.mkdtemp(prefix="zooport-predict-"))
    stopped: Failure | None = None
    notes: Sequence[str] = ()
    try:
        try:
            notes = _run(directory, jobs, selection, order, folder)
        except Failure as failure:
            stopped = failure
        results = _read(folder / "results", jobs)
        if stopped is not None and not results.rows and not results.failures:
            raise _located(stopped, results.unfinished)
        _print(results, output, order.out)
        for note in notes:
            _say(f"note: {note}")
        for each in results.failures:
            _say(f"{each.code}: {each.message}" + (f" ({each.hint})" if each.hint else ""))
        if stopped is not None:
            raise _located(stopped, results.unfinished)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return FAILED if results.failures else 0


def find_images(names: Sequence[str]) -> list[Path]:
    """Return the files that these names stand for, each once, those of a folder in the order of their names.

    Raises:
        Failure: ``dataset.invalid`` for a folder or pattern without images. A file that is not there is
            returned: that it cannot be read is found out with the others.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = expanded(name)
        if path.is_dir():
            files = sorted(_images_below(path))
        elif not path.exists() and glob.has_magic(name):
            matched = (Path(one) for one in glob.glob(str(path), recursive=True))  # noqa: PTH207  takes **
            files = sorted(one for one in matched if one.is_file())
        else:
            files = [path]
        if not files:
            what = "the folder holds no image" if path.is_dir() else "no file matches"
            raise Failure("dataset.invalid", f"{name}: {what}", hint="name files, folders or patterns")
        found |= dict.fromkeys(files)
    return list(found)


def _images_below(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield Path(root) / name


def plan_pictures(images: Sequence[Path], out: Path | None) -> list[ImageJob]:
    """Return the jobs, each with a picture ``<stem>.png`` in ``out``, numbered where names repeat.

    Raises:
        Failure: ``output.occupied`` when a picture would replace one of the images.
    """
    if out is None:
        return [ImageJob(str(path), path.absolute()) for path in images]
    out = expanded(out).absolute()
    sources = {path.resolve() for path in images}
    taken: set[str] = set()
    jobs = []
    for path in images:
        name, number = f"{path.stem}.png", 1
        while name in taken:
            number += 1
            name = f"{path.stem}-{number}.png"
        taken.add(name)
        if (out / name).resolve() in sources:
            raise Failure(
                "output.occupied",
                f"{out / name} is one of the images, so it is not replaced",
                hint="name another folder with --out",
            )
        jobs.append(ImageJob(str(path), path.absolute(), out / name))
    return jobs


def find_artifact(name: str, registry: str | None) -> Path:
    """Return the directory of an artifact.

    Args:
        name: the directory, a file in it, or an export as ``zooport show`` takes it.
        registry: where exports are looked up.

    Raises:
        Failure: ``artifact.missing``; ``registry.*`` for a registry that cannot be read.
    """
    path = expanded(name)
    if path.is_dir():
        return path.absolute()
    if path.is_file():
        return path.absolute().parent
    from zooport.jobs.queries import ask

    try:
        detail = ask(registry, lambda opened: opened.export(name))
    except Failure as failure:
        if failure.code not in {"registry.missing", "registry.unknown"}:
            raise
        message = f"{name} is neither a directory nor a file, and {_lowered(failure.message)}"
        raise Failure("artifact.missing", message, hint="see zooport list") from None
    if detail.artifact is None:
        why = f": {detail.row.code}" if detail.row.code else ""
        raise Failure(
            "artifact.missing",
            f"export {detail.row.id} has no artifact, it is {detail.row.status}{why}",
            hint=f"zooport show {detail.row.id}",
        )
    return _on_this_machine(detail.artifact.path, detail.row.id)


def _on_this_machine(place: Place, export: str) -> Path:
    if isinstance(place, RemotePath):
        raise Failure(
            "artifact.missing",
            f"the artifact of export {export} is at {place}, not on this machine",
            hint="copy the directory here and name it",
        )
    if not place.is_dir():
        raise Failure(
            "artifact.missing",
            f"the artifact of export {export} is not at {place} any more",
            hint="zooport verify tells what else is not there",
        )
    return place


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]


def _run(
    directory: Path, jobs: Sequence[ImageJob], selection: Selection, order: Order, folder: Path
) -> Sequence[str]:
    """Predict in a disposable process, whose server imports nothing that the artifact does not need."""
    server = ForkServer(preload=())
    try:
        with _progress(folder / "results", len(jobs)) as on_stage:
            notes: Sequence[str] = run_isolated(
                _STAGE,
                # Several threads only if asked for: sums then differ in their last digits from the verified.
                asked_threads(),
                directory,
                jobs,
                selection,
                folder / "results",
                timeout=order.timeout,
                log=folder / "log",
                on_stage=on_stage,
                server=server,
                deadlines=order.deadlines,
                stage=Stage.LOAD,
            )
    except Failure as failure:
        if failure.code in {"worker.crashed", "worker.error"}:
            failure.details["log_tail"] = (folder / "log").read_text(errors="replace").splitlines()[-20:]
        raise
    finally:
        server.close()
    return notes


@contextmanager
def _progress(results: Path, total: int) -> Iterator[Callable[[Stage], None]]:
    """Show on a terminal how many images are done."""
    if not sys.stderr.isatty():
        yield lambda stage: None
        return
    over = threading.Event()
    with console(stderr=True).status("starting") as status:
        stage_of: list[Stage] = []

        def watch() -> None:
            done, offset = 0, 0
            while not over.wait(_LOOK):
                if results.exists():
                    with results.open("rb") as file:
                        file.seek(offset)
                        new = file.read()
                    offset += len(new)
                    done += new.count(b'\n{"index"')
                doing = f"{done} of {total} images" if stage_of[-1:] == [Stage.EVALUATE] else "loading"
                status.update(doing)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield stage_of.append
        finally:
            over.set()
            watcher.join()


def _read(results: Path, jobs: Sequence[ImageJob]) -> _Results:
    """Return what the process has left, all of it or what it came to."""
    rows: list[dict[str, Any]] = []
    failures, pictures = [], []
    current: int | None = None
    lines = results.read_text(encoding="utf-8").split("\n") if results.exists() else []
    for line in lines[:-1]:  # what follows the last line break is not whole
        entry = json.loads(line)
        current = entry.get("begins")
        if "failure" in entry:
            failures.append(_failure(entry["failure"]))
        elif "rows" in entry:
            rows += entry["rows"]
            picture = jobs[entry["index"]].picture
            pictures += [] if picture is None else [picture]
    return _Results(rows, failures, pictures, None if current is None else jobs[current])


def _failure(record: Mapping[str, Any]) -> Failure:
    code = record["code"] if record["code"] in CODES else "worker.error"
    return Failure(code, record["message"], hint=record["hint"], details=record["details"])


def _located(failure: Failure, job: ImageJob | None) -> Failure:
    """Return a failure that names the image at which the process ended."""
    if job is None or job.name in failure.message:
        return failure
    message = f"{failure.message}, at image {job.name}"
    return Failure(failure.code, message, stage=failure.stage, hint=failure.hint, details=failure.details)


def _print(results: _Results, output: OutputFormat, out: Path | None) -> None:
    print_rows(results.rows, COLUMNS, output, lambda _: _table(results))
    if out is None:
        return
    pictures = results.pictures
    if len(pictures) <= _LISTED:
        for picture in pictures:
            _say(f"drawn: {picture}")
    else:
        _say(f"drawn: {len(pictures)} pictures in {pictures[0].parent}")


def _table(results: _Results) -> RenderableType:
    from rich.text import Text

    from zooport.jobs.lines import Lines

    if not results.rows:
        return Text("nothing was found")
    numbers = ("score", "x1", "y1", "x2", "y2")
    lines = Lines("image", "class", *numbers, right=numbers, above="image")
    for row in results.rows:
        x, y, width, height = row["bbox"]
        score = f"{row['score']:.2f}" if "score" in row else ""
        sides = (f"{side:.0f}" for side in (x, y, x + width, y + height))
        lines.add(cell(row["file_name"]), cell(row["category"]), score, *sides)
    return lines


def _say(message: str) -> None:
    sys.stderr.write(" ".join(message.split()) + "\n")
    sys.stderr.flush()
