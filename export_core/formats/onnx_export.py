"""ONNX: one file that ONNX Runtime runs with operators of the standard alone."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zooport.export_core.diagnosis import one_line
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.formats import onnx_file
from zooport.export_core.formats.base import AnyPredictor, Array, Entry, Format, FormatInfo, Tolerance
from zooport.export_core.formats.batches import describe_batch
from zooport.export_core.formats.converter_errors import conversion_failure
from zooport.export_core.formats.onnx_batch import over_images
from zooport.export_core.formats.onnx_flat import flat_module, has_own_network
from zooport.export_core.formats.onnx_half import to_half
from zooport.export_core.formats.onnx_operators import (
    DEFORMABLE_OPSET,
    HIGHEST_OPSET,
    LOWEST_OPSET,
    registered,
)
from zooport.export_core.formats.onnx_stages import run_tagged, untag
from zooport.export_core.outputs import FIELDS, IMAGE_INDEX, ROWS, Field, has_rows
from zooport.export_core.threads import asked_threads

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zooport.export_core.config import Config

DEFAULT_OPSET = HIGHEST_OPSET
DYNAMIC_BATCH = "dynamic"
# ONNX Runtime adds up in another order, which a mask head and its sigmoid show most.
TOLERANCE = Tolerance(mask=5e-4)
# Half precision has 11 bits: detections near a threshold come and go, the others stay where they are.
HALF_TOLERANCE = Tolerance(pixels=1.0, score=0.02, mask=0.1, relative=0.05, unmatched=0.1)

DYNAMIC = ("height", "width", *ROWS)  # those that differ from image to image


FRAME = "pixels of the original image: x to the right, y down, (0, 0) at the corner of the first pixel"
FRAMED = {
    "pred_masks": Field("bool", ("N", "image_height", "image_width"), "the pixels of each object", "mask"),
    "sem_seg": Field("int64", ("image_height", "image_width"), "the label of each pixel", "tensor"),
}
FRAME_INPUTS: Mapping[str, Entry] = {
    side: {"dtype": "int64", "shape": [], "meaning": f"{side} of the original image in pixels"}
    for side in ("height", "width")
}


class Onnx(Format):
    """``model.onnx``: the inputs by name -> the fields by name."""

    info = FormatInfo(
        name="onnx",
        summary="ONNX for ONNX Runtime, with operators of the standard alone",
        main_file=onnx_file.MAIN_FILE,
        call="outputs = onnxruntime.InferenceSession('model.onnx').run(None, {'image': image})",
        tools=("onnx", "onnxruntime"),
        tolerance=TOLERANCE,
        options={
            "batch": "N or dynamic: that many images of one size; default: one image (C, H, W)",
            "fp16": "true: weights and products in half precision; default: false",
            "postprocess": "true: takes height and width of the original image, results are in its frame",
            "opset": f"version of ONNX's operators, {LOWEST_OPSET} to {HIGHEST_OPSET} (the default)",
        },
    )

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse unknown options and values that they cannot have."""
        super().check_options(options)
        _check_opset(options.get("opset", DEFAULT_OPSET))
        _check_batch(options.get("batch", DYNAMIC_BATCH))
        for name in ("fp16", "postprocess"):
            if type(options.get(name, False)) is not bool:
                raise _bad_option(name, options[name], "is neither true nor false", "leave it out for false")

    def requires(self, config: Config, options: Mapping[str, Any]) -> None:
        """Refuse deformable convolution before the opset that has it."""
        super().requires(config, options)
        opset = options.get("opset", DEFAULT_OPSET)
        if any(config.MODEL.RESNETS.DEFORM_ON_PER_STAGE) and opset < DEFORMABLE_OPSET:
            raise Failure(
                "unsupported.combination",
                f"MODEL.RESNETS.DEFORM_ON_PER_STAGE needs DeformConv, which opset {opset} does not have",
                stage=Stage.PLAN,
                hint=f"opset {DEFORMABLE_OPSET} or later has it",
                details={"key": "MODEL.RESNETS.DEFORM_ON_PER_STAGE", "opset": opset},
            )

    def export(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        fields: Sequence[str],
        directory: Path,
        options: Mapping[str, Any],
    ) -> None:
        """Record one pass over the sample, write it in ONNX, simplify and check it; see Format.export."""
        with tempfile.TemporaryDirectory(dir=directory, prefix=".") as folder:
            raw, done = Path(folder) / "raw.onnx", Path(folder) / "done"
            framed = options.get("postprocess", False)
            flat = flat_module(model, tuple(inputs), tuple(fields), framed=framed)
            if framed:
                inputs = {**inputs, **_frame_of(inputs["image"])}
            whole = "batch" in options and has_own_network(model)
            if whole:
                inputs = {**inputs, "image": inputs["image"][None]}
            outputs = _convert(model, flat, inputs, fields, raw, options.get("opset", DEFAULT_OPSET))
            made = onnx_file.simplify(raw, Path(folder) / "simple.onnx")
            untag(made)
            onnx_file.name_lengths(made, {**_lengths(inputs), **_lengths(outputs)})
            if options.get("fp16"):
                to_half(made)
            if "batch" in options:
                count = "batch" if options["batch"] == DYNAMIC_BATCH else options["batch"]
                rows = [name for name in fields if has_rows(name)]
                made = over_images(made, count, rows, common=tuple(FRAME_INPUTS), whole=whole)
            done.mkdir()
            onnx_file.write(made, done)
            for path in done.iterdir():
                path.rename(directory / path.name)

    def annotate(self, directory: Path, description: Mapping[str, Any]) -> None:
        """Enter into the file what a consumer needs to know, as JSON where it is no plain text."""
        keys = ("name", "meta_architecture", "options", "inputs", "outputs", "preprocessing", "classes")
        entries = {f"zooport.{key}": description[key] for key in keys}
        digests = {key: description["source"][key] for key in ("config_sha256", "weights_sha256")}
        entries |= {"zooport.source": digests, "zooport.versions": description["versions"]}
        onnx_file.add_metadata(
            directory / onnx_file.MAIN_FILE,
            {key: value if isinstance(value, str) else json.dumps(value) for key, value in entries.items()},
        )

    def load(self, directory: Path, fields: Sequence[str], options: Mapping[str, Any]) -> AnyPredictor:
        """Load the artifact with ONNX Runtime alone."""
        path = directory / onnx_file.MAIN_FILE
        try:
            session = onnx_file.open_session(path, onnx_file.session_options(asked_threads()))
        except Exception as error:
            raise Failure(
                "artifact.unloadable",
                f"ONNX Runtime cannot read {path}: {one_line(error)}",
                stage=Stage.VERIFY,
                hint="export again; if it repeats, report it with the log",
            ) from error

        def predict(image: Array, **more: Array) -> dict[str, Array]:
            found = session.run(list(fields), {"image": image, **more})
            return dict(zip(fields, found, strict=True))

        if "batch" in options:
            predict = _last_of_a_batch(session, fields, options["batch"])
        return _Framed(predict) if options.get("postprocess") else predict

    def inner_outputs(
        self,
        directory: Path,
        inputs: Mapping[str, Array],
        calls: Mapping[str, Sequence[Any]],
        options: Mapping[str, Any],
    ) -> Mapping[str, Sequence[Array]]:
        """Run the graph once more with inner values as outputs; those of a batch are inside of a loop."""
        if "batch" in options:
            return {}
        return run_tagged(directory / onnx_file.MAIN_FILE, inputs, asked_threads())

    def expected(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], options: Mapping[str, Any]
    ) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        """Return results in the frame of an image half as large again, where the artifact gives such."""
        from zooport.export_core.evaluation.framing import in_image_frame

        if not options.get("postprocess"):
            return inputs, outputs
        _, height, width = inputs["image"].shape
        frame = height * 3 // 2, width * 3 // 2
        given = {**inputs, "height": np.array(frame[0]), "width": np.array(frame[1])}
        return given, in_image_frame(outputs, (height, width), frame)

    def tolerance(self, options: Mapping[str, Any]) -> Tolerance:
        """Half precision is judged by what it does to detections, not by digits."""
        return HALF_TOLERANCE if options.get("fp16") else self.info.tolerance

    def describe_signature(
        self, inputs: list[Entry], outputs: list[Entry], options: Mapping[str, Any]
    ) -> tuple[list[Entry], list[Entry]]:
        """Say how a batch is laid out."""
        frame: list[Entry] = []
        if options.get("postprocess"):
            frame = [{"name": name, **entry} for name, entry in FRAME_INPUTS.items()]
            outputs = [{**entry, **_framed_entry(entry["name"])} for entry in outputs]
        batch = options.get("batch")
        if batch is None:
            return [*inputs, *frame], outputs
        inputs = [*({**entry, "shape": [batch, *entry["shape"]]} for entry in inputs), *frame]
        return inputs, describe_batch(outputs, batch)


class _Framed:
    """Runs an artifact that takes the size of the original image too."""

    in_image_frame = True

    def __init__(self, predict: AnyPredictor) -> None:
        self.predict = predict

    def __call__(self, image: Array, **more: Array) -> dict[str, Array]:
        fields = dict(self.predict(image, **more))
        return fields | {
            name: np.expand_dims(fields[name], axis)
            for name, axis in (("pred_masks", 1), ("sem_seg", 0))
            if name in fields
        }


def _framed_entry(name: str) -> Entry:
    if name in FRAMED:
        field = FRAMED[name]
        return {"dtype": field.dtype, "shape": list(field.shape), "meaning": field.meaning, "frame": FRAME}
    return {"frame": FRAME} if name in FIELDS and FIELDS[name].kind in {"pixels", "keypoints"} else {}


def _frame_of(image: Tensor) -> dict[str, Tensor]:
    """Return the size of an original image that the sample could have been made from."""
    import torch

    return {side: torch.tensor(image.shape[axis] * 3 // 2) for side, axis in (("height", 1), ("width", 2))}


def _last_of_a_batch(session: Any, fields: Sequence[str], batch: int | str) -> AnyPredictor:
    """Return a predictor that puts the image last in a batch, behind neighbours unlike it."""
    count = 2 if batch == DYNAMIC_BATCH else int(batch)
    rows = [name for name in fields if has_rows(name)]

    def predict(image: Array, **more: Array) -> dict[str, Array]:
        inputs = {
            name: value if name in FRAME_INPUTS else np.stack([value] * count) for name, value in more.items()
        }
        inputs["image"] = np.stack([np.flip(image, -1)] * (count - 1) + [image])
        names = [*fields, IMAGE_INDEX] if rows else list(fields)
        found = dict(zip(names, session.run(names, inputs), strict=True))
        own = found[IMAGE_INDEX] == count - 1 if rows else None
        return {name: found[name][own] if name in rows else found[name][-1] for name in fields}

    return predict


def _bad_option(name: str, value: Any, why: str, hint: str) -> Failure:
    return Failure("export.option", f"onnx: {name} = {value!r} {why}", stage=Stage.PLAN, hint=hint)


def _check_batch(batch: Any) -> None:
    if batch != DYNAMIC_BATCH and (type(batch) is not int or batch < 1):
        why = f"is neither a positive integer nor {DYNAMIC_BATCH!r}"
        raise _bad_option("batch", batch, why, "leave it out for one image at a time")


def _check_opset(opset: Any) -> None:
    if type(opset) is not int:
        why = "is no whole number"
    elif opset < LOWEST_OPSET:
        why = f"cannot be exact: RoiAlign has no half-pixel mode before opset {LOWEST_OPSET}"
    elif opset > HIGHEST_OPSET:
        why = f"is later than the last that torch's converter writes, {HIGHEST_OPSET}"
    else:
        return
    hint = f"{LOWEST_OPSET} to {HIGHEST_OPSET}; leave it out for {DEFAULT_OPSET}"
    raise _bad_option("opset", opset, why, hint)


def _convert(
    model: nn.Module,
    flat: nn.Module,
    inputs: Mapping[str, Tensor],
    fields: Sequence[str],
    path: Path,
    opset: int,
) -> dict[str, Tensor]:
    """Write the model as torch converts it; return what it gives for the inputs."""
    import torch

    from zooport.export_core.formats.onnx_stand_ins import stand_ins

    with warnings.catch_warnings(), torch.no_grad(), stand_ins(model), registered(opset):
        warnings.simplefilter("ignore")
        try:
            outputs = dict(zip(fields, flat(*inputs.values()), strict=False))
            tags: dict[str, int] = flat.tags  # type: ignore[assignment]
            torch.onnx.export(
                flat,
                tuple(inputs.values()),
                str(path),
                dynamo=False,
                opset_version=opset,
                input_names=list(inputs),
                output_names=[*fields, *tags],
                dynamic_axes={
                    **{
                        name: {axis: length for axis, length in enumerate(lengths) if isinstance(length, str)}
                        for name, lengths in {**_lengths(inputs), **_lengths(outputs)}.items()
                    },
                    **{name: {axis: f"{name}_{axis}" for axis in range(rank)} for name, rank in tags.items()},
                },
            )
        except Exception as error:
            raise conversion_failure(error, "ONNX") from error
    return outputs


def _lengths(values: Mapping[str, Tensor]) -> dict[str, list[int | str]]:
    """Return the length of each dimension, or its name if it differs from image to image.

    All of those of an unknown field are taken to differ.
    """
    lengths: dict[str, list[int | str]] = {}
    for name, value in values.items():
        if name == "image":
            lengths[name] = [*value.shape[:-2], "height", "width"]
        elif name in FRAMED and not value.is_floating_point():
            lengths[name] = list(FRAMED[name].shape)
        elif name in FRAME_INPUTS:
            lengths[name] = []
        elif name in FIELDS:
            pairs = zip(FIELDS[name].shape, value.shape, strict=True)
            lengths[name] = [known if known in DYNAMIC else length for known, length in pairs]
        else:
            lengths[name] = [f"{name}_{axis}" for axis in range(value.dim())]
    return lengths
