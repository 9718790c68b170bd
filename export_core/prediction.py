"""Runs a finished artifact on image files: by its own runtime and what its model.json says."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zooport.export_core import formats
from zooport.export_core.artifacts import DESCRIPTION, file_sha256
from zooport.export_core.diagnosis import disk_failure, one_line
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.formats.base import RUNTIME, AnyPredictor, Array
from zooport.export_core.outputs import FIELDS
from zooport.export_core.samples import MADE_UP_INPUTS, made_up_inputs
from zooport.export_core.vocabulary import Vocabulary

if TYPE_CHECKING:
    from zooport.export_core.drawing import Mark, Picture
    from zooport.export_core.evaluation.findings import Finding

Report = Callable[[Stage], None]

NEWEST_SCHEMA = 1
NUMBERED = (
    "category ids are the model's own class numbers, from 0 on: it was exported without a dataset"
    " that has classes"
)


@dataclass(frozen=True)
class ImageJob:
    """One image to predict.

    Attributes:
        name: as the user called it.
        picture: where a PNG with what was found goes, None for nowhere.
    """

    name: str
    path: Path
    picture: Path | None = None


@dataclass(frozen=True)
class Selection:
    """What of the findings is kept: those with at least this score, and the best ``limit`` of them."""

    score_threshold: float = 0.0
    drawing_threshold: float = 0.5
    limit: int | None = None


@dataclass(frozen=True)
class Prepared:
    """An image as the artifact takes it: planes float32 (C, H, W), and the original, uint8 RGB."""

    planes: Array
    original: Picture


def predict_with_threads(
    threads: int,
    directory: Path,
    jobs: Sequence[ImageJob],
    selection: Selection,
    results: Path,
    report: Report,
) -> list[str]:
    """Predict as :func:`predict_stage`, in a process of its own, with so many compute threads.

    Runtimes read the variable when they are imported, which is after this.
    """
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    return predict_stage(directory, jobs, selection, results, report)


def predict_stage(
    directory: Path, jobs: Sequence[ImageJob], selection: Selection, results: Path, report: Report
) -> list[str]:
    """Predict images, one after the other, and write a line of JSON for each as soon as it is done.

    Lines: {"begins": index}; then {"index", "size": [H, W], "rows": [...]} or {"index", "failure": {...}}. An
    image that cannot be read, or on which the artifact fails, does not keep the others from being predicted.

    Args:
        directory: the artifact's.
        jobs: the images.
        selection: what is kept and drawn.
        results: the file that gets the lines.
        report: told each stage as it begins.

    Returns:
        Remarks for the user.

    Raises:
        Failure: ``artifact.missing``, ``artifact.foreign``, ``artifact.altered``, ``artifact.unloadable``,
            ``dependency.missing``, ``resource.disk``.
    """
    report(Stage.LOAD)
    artifact = Artifact.open(directory)
    predictor = artifact.load()
    report(Stage.EVALUATE)
    with results.open("a", encoding="utf-8", buffering=1) as lines:
        for index, job in enumerate(jobs):
            lines.write(json.dumps({"begins": index}) + "\n")
            try:
                row = _predict_one(artifact, predictor, job, selection)
            except Failure as failure:
                if failure.code == "resource.disk":
                    raise
                row = {"failure": failure.record().to_dict()}
            lines.write(json.dumps({"index": index, **row}) + "\n")
    return artifact.notes()


class Artifact:
    """An artifact's directory and what its model.json says.

    Attributes:
        description: content of model.json.
        format: the one that made it.
        vocabulary: names of classes and labels.
        made_up: what the model takes besides the image.
    """

    def __init__(self, directory: Path, description: Mapping[str, Any]) -> None:
        self.directory = directory
        self.description = description
        try:
            self.name: str = description["name"]
            self.vocabulary = Vocabulary.from_description(description)
            self.options: Mapping[str, Any] = description["options"]
            inputs = [entry["name"] for entry in description["inputs"]]
            self.made_up = tuple(name for name in inputs if name in MADE_UP_INPUTS)
            outputs = [entry["name"] for entry in description["outputs"]]
            self.fields: list[str] = description.get("fields") or [name for name in outputs if name in FIELDS]
            self.files: Mapping[str, str] = description.get("files") or {}
            self.channel_order: str = description["preprocessing"]["channel_order"]
            self.resize: Mapping[str, Any] | None = description["preprocessing"]["resize"]
            format_name, schema = description["format"], description["schema_version"]
            main_file = description["main_file"]
        except (KeyError, TypeError, ValueError) as error:
            raise _foreign(directory, f"its {DESCRIPTION} is not one of zooport's: {error!r}") from error
        if schema != NEWEST_SCHEMA:
            raise _foreign(
                directory, f"its {DESCRIPTION} has schema {schema}, this zooport reads {NEWEST_SCHEMA}"
            )
        if format_name not in formats.names():
            raise _foreign(directory, f"there is no format {format_name!r} in this zooport")
        self.format = formats.get(format_name)
        if not (directory / main_file).is_file():
            raise _missing(directory, main_file)

    @classmethod
    def open(cls, directory: Path) -> Artifact:
        """Read a directory's model.json and compare the files with it.

        Raises:
            Failure: ``artifact.missing``, ``artifact.foreign``, ``artifact.altered``.
        """
        path = directory / DESCRIPTION
        try:
            description = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            what = f"it has no {DESCRIPTION}" if directory.is_dir() else "there is no such directory"
            raise (_foreign if directory.is_dir() else _absent)(directory, what) from None
        except OSError as error:
            raise _foreign(directory, f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise _foreign(directory, f"{path} is not JSON: {error}") from error
        if not isinstance(description, dict):
            raise _foreign(directory, f"{path} holds no JSON object")
        artifact = cls(directory, description)
        artifact.check_files()
        return artifact

    def check_files(self) -> None:
        """Compare every file with its digest.

        Raises:
            Failure: ``artifact.missing``, ``artifact.altered`` naming the file.
        """
        for name, digest in self.files.items():
            try:
                found = file_sha256(self.directory / name)
            except OSError:
                raise _missing(self.directory, name) from None
            if found != digest:
                raise Failure(
                    "artifact.altered",
                    f"{self.directory / name} is not the file that was verified: its SHA-256 is another",
                    stage=Stage.LOAD,
                    hint="export it again, or bring back the original file",
                    details={"expected": digest, "found": found},
                )

    def load(self, runtime: str | None = None) -> AnyPredictor:
        """Return the artifact as a function of the image, and of height and width where it takes them.

        Its attribute ``close``, where it has one, ends what runs it.

        Args:
            runtime: of formats where there is a choice; None takes what there is, not what verified it.

        Raises:
            Failure: ``artifact.unloadable``, ``dependency.missing``, ``export.option``.
        """
        options = {name: value for name, value in self.options.items() if name != RUNTIME}
        if runtime is not None:
            self.format.check_runtime(runtime)
            options[RUNTIME] = runtime
        try:
            predictor = self.format.load(self.directory, self.fields, options)
        except ImportError as error:
            raise self._lacks(error) from error
        except Failure as failure:
            if isinstance(failure.__cause__, ImportError):
                raise self._lacks(failure.__cause__) from failure
            raise failure.at(Stage.LOAD) from None

        def predict(image: Array, **frame: Array) -> dict[str, Array]:
            return predictor(image, **made_up_inputs(image, self.made_up), **frame)

        predict.in_image_frame = getattr(predictor, "in_image_frame", False)  # type: ignore[attr-defined]
        predict.close = getattr(predictor, "close", None)  # type: ignore[attr-defined]
        return predict

    def prepare(self, path: Path) -> Prepared:
        """Read an image file and make of it what the artifact takes.

        Raises:
            Failure: ``dataset.invalid`` naming the file.
        """
        from zooport.export_core.evaluation import read_image

        return self.prepare_pixels(read_image(path, "RGB"), f"image {path}")

    def prepare_pixels(self, original: Picture, name: str) -> Prepared:
        """Make of an image, uint8 (H, W, 3), RGB, what the artifact takes; ``name`` is for messages.

        Raises:
            Failure: ``dataset.invalid``.
        """
        from PIL import Image

        from zooport.export_core.evaluation import resize_shortest_edge
        from zooport.export_core.evaluation.images import pixels_of

        pixels = original
        if self.channel_order != "RGB":
            pixels = pixels_of(Image.fromarray(original), self.channel_order)
        if self.resize is not None:
            sides = self.resize["shortest_edge"], self.resize["longest_edge"]
            try:
                pixels = resize_shortest_edge(pixels, *sides)
            except Failure as failure:
                raise Failure(failure.code, f"{name}: {failure.message}") from failure
        return Prepared(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32), original)

    def find(self, predictor: AnyPredictor, prepared: Prepared, name: str) -> list[Finding]:
        """Run the artifact on an image and return what it found, in the frame of the original.

        Raises:
            Failure: ``artifact.unloadable`` when it fails, ``artifact.mismatch``, ``accuracy.nonfinite``.
        """
        from zooport.export_core.evaluation.findings import find

        height, width = prepared.original.shape[:2]
        size = prepared.planes.shape[1], prepared.planes.shape[2]
        frame: dict[str, Array] = {}
        if getattr(predictor, "in_image_frame", False):
            frame = {"height": np.array(height), "width": np.array(width)}
            size = height, width
        try:
            outputs = predictor(prepared.planes, **frame)
        except Failure:
            raise
        except Exception as error:  # whatever the runtime of a format raises
            traceback.print_exc()
            message = f"the artifact fails on {name}: {one_line(error)}"
            raise Failure("artifact.unloadable", message, stage=Stage.EVALUATE) from error
        return find(outputs, name, size, (height, width), self.vocabulary)

    def notes(self) -> list[str]:
        """Return what the user should know of the results."""
        notes = []
        named = self.vocabulary.labels if self.fields == ["sem_seg"] else self.vocabulary.classes
        if named is None and "proposal_boxes" not in self.fields:
            notes.append(NUMBERED)
        if self.made_up:
            notes.append(f"{', '.join(self.made_up)} were made up: the model takes them besides the image")
        return notes

    def _lacks(self, error: ImportError) -> Failure:
        extra = self.format.info.requires_extra
        return Failure(
            "dependency.missing",
            f"{self.format.info.name} artifacts run with the package {error.name}, which is not installed",
            stage=Stage.LOAD,
            hint=f"pip install 'zooport[{extra}]'" if extra else f"pip install {error.name}",
        )


def marks_of(findings: Sequence[Finding], vocabulary: Vocabulary) -> list[Mark]:
    """Return what is to be drawn of findings."""
    from zooport.export_core.drawing import Mark, Region
    from zooport.export_core.evaluation.findings import Kind

    marks = []
    for one in findings:
        whole = one.kind in {Kind.THING, Kind.STUFF, Kind.LABEL}
        text = one.term.name if one.score is None else f"{one.term.name} {one.score:.2f}"
        unnumbered = one.kind in {Kind.STUFF, Kind.LABEL} and one.term.dataset_id is None
        marks.append(
            Mark(
                text,
                one.term.category_id + (_LABEL_COLOURS if unnumbered else 0),
                None if whole else one.box.tolist(),
                None if one.mask is None else Region(*one.mask),
                None if one.keypoints is None else one.keypoints[:, :2],
                vocabulary.skeleton,
            )
        )
    return marks


_LABEL_COLOURS = 1000  # labels without ids of their own do not share the colours of classes


def _predict_one(
    artifact: Artifact, predictor: AnyPredictor, job: ImageJob, selection: Selection
) -> dict[str, Any]:
    from zooport.export_core.evaluation.findings import coco_result

    prepared = artifact.prepare(job.path)
    height, width = prepared.original.shape[:2]
    found = artifact.find(predictor, prepared, job.name)
    kept = [one for one in found if one.confidence >= selection.score_threshold][: selection.limit]
    if job.picture is not None:
        seen = [one for one in kept if one.confidence >= selection.drawing_threshold]
        _save(prepared.original, marks_of(seen, artifact.vocabulary), job.picture)
    rows = [coco_result(one, job.name, (height, width)) for one in kept]
    return {"size": [height, width], "rows": rows}


def _save(picture: Picture, marks: Sequence[Mark], path: Path) -> None:
    from PIL import Image

    from zooport.export_core.drawing import draw

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(picture, marks)).save(path, format="PNG", compress_level=3)
    except OSError as error:
        raise disk_failure(error, Stage.EVALUATE, path) from None


def _foreign(directory: Path, why: str) -> Failure:
    return Failure(
        "artifact.foreign",
        f"{directory} is no artifact of zooport: {why}",
        stage=Stage.LOAD,
        hint="name the directory that a run or zooport export wrote",
    )


def _absent(directory: Path, why: str) -> Failure:
    return Failure("artifact.missing", f"{directory}: {why}", stage=Stage.LOAD, hint="see zooport list")


def _missing(directory: Path, name: str) -> Failure:
    return Failure(
        "artifact.missing",
        f"{directory / name} is not there, or cannot be read",
        stage=Stage.LOAD,
        hint="export it again, or bring back the original file",
    )
