"""TensorFlow: a SavedModel and a frozen graph, translated from the model's settings and parameters."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zooport.export_core.failures import Failure, Stage
from zooport.export_core.formats.base import (
    AnyPredictor,
    Array,
    Entry,
    Format,
    FormatInfo,
    Tolerance,
    as_arrays,
)
from zooport.export_core.formats.batches import describe_batch
from zooport.export_core.outputs import IMAGE_INDEX, has_rows
from zooport.export_core.tensorflow.files import FROZEN, LITE, SAVED_MODEL
from zooport.export_core.threads import asked_threads

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zooport.export_core.config import Config
    from zooport.export_core.tensorflow.process import TensorFlowProcess

QUANTIZATIONS = ("dynamic",)
QUANTIZED_TOLERANCE = Tolerance(pixels=8.0, score=0.2, mask=0.5, relative=0.3, unmatched=0.3)

# Config key -> the values that are translated. What an extension registers under another name is not.
_TRANSLATED: Mapping[str, Sequence[str]] = {
    "META_ARCHITECTURE": (
        "GeneralizedRCNN",
        "PanopticFPN",
        "ProposalNetwork",
        "RetinaNet",
        "FCOS",
        "SemanticSegmentor",
    ),
    "BACKBONE.NAME": (
        "build_resnet_backbone",
        "build_resnet_fpn_backbone",
        "build_retinanet_resnet_fpn_backbone",
        "build_fcos_resnet_fpn_backbone",
        "build_regnet_backbone",
        "build_regnet_fpn_backbone",
    ),
    "ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "PROPOSAL_GENERATOR.NAME": ("RPN", "PrecomputedProposals"),
    "RPN.HEAD_NAME": ("StandardRPNHead",),
    "ROI_HEADS.NAME": ("StandardROIHeads", "CascadeROIHeads", "Res5ROIHeads"),
    "ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead",),
    "ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead",),
    "ROI_KEYPOINT_HEAD.NAME": ("KRCNNConvDeconvUpsampleHead",),
    "SEM_SEG_HEAD.NAME": ("SemSegFPNHead",),
}


class TensorFlow(Format):
    """``saved_model/`` and ``model.pb``: image -> the fields by name."""

    info = FormatInfo(
        name="tensorflow",
        summary="a SavedModel and a frozen graph for TensorFlow",
        main_file=f"{SAVED_MODEL}/saved_model.pb",
        call="outputs = tf.saved_model.load('saved_model').signatures['serving_default'](image=image)",
        requires_extra="tensorflow",
        tools=("tensorflow-cpu", "tensorflow"),
        # benchmarks/reservation.py; a graph of constants, as model.pb is, is held several times over.
        runtime_bytes=3 << 29,
        runtime_bytes_per_checkpoint_byte=10.0,
        # Convolutions add up in another order than torch's.
        tolerance=Tolerance(pixels=0.05, score=1e-3, mask=1e-3, relative=1e-3),
        options={
            "batch": "N: that many images of one size; default: one image (H, W, C)",
            "tflite": "true: model.tflite too, which is then what is verified; default: false",
            "quantize": "dynamic: weights of model.tflite in 8 bits; default: 32",
        },
    )

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse unknown options and values that they cannot have."""
        super().check_options(options)
        batch = options.get("batch", 1)
        if type(batch) is not int or batch < 1:
            raise _bad_option(
                "batch", batch, "is no positive integer", "leave it out for one image at a time"
            )
        if type(options.get("tflite", False)) is not bool:
            hint = "leave it out for false"
            raise _bad_option("tflite", options["tflite"], "is neither true nor false", hint)
        if "quantize" in options:
            if options["quantize"] not in QUANTIZATIONS:
                known = ", ".join(QUANTIZATIONS)
                raise _bad_option("quantize", options["quantize"], "is unknown", f"known: {known}")
            if not options.get("tflite"):
                why = "is for model.tflite, which was not asked for"
                raise _bad_option("quantize", options["quantize"], why, "add tflite: true, or leave it out")

    def requires(self, config: Config, options: Mapping[str, Any]) -> None:
        """Refuse modules that are not translated, and a machine without TensorFlow."""
        from zooport.export_core.tensorflow.installation import check_installed

        super().requires(config, options)
        for key in _keys_in_use(config.MODEL):
            value = config.lookup(f"MODEL.{key}", "")
            if value not in _TRANSLATED[key]:
                raise _unknown(f"MODEL.{key}", value, _TRANSLATED[key])
        for head in _heads_in_use(config.MODEL):
            if config.MODEL[head].POOLER_TYPE == "ROIPool":
                raise Failure(
                    "unsupported.combination",
                    f"MODEL.{head}.POOLER_TYPE = 'ROIPool' cannot be exported to TensorFlow, which has no"
                    " operator for it",
                    stage=Stage.PLAN,
                    hint="another format, such as onnx, takes this model",
                    details={"key": f"MODEL.{head}.POOLER_TYPE", "value": "ROIPool"},
                )
        check_installed()

    def export(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        fields: Sequence[str],
        directory: Path,
        options: Mapping[str, Any],
    ) -> None:
        """Write down what the model is made of, and have it translated in a process without torch."""
        from zooport.export_core.modeling.stages import stage_modules
        from zooport.export_core.tensorflow.blueprint import of_model, write_blueprint

        if (directory / SAVED_MODEL).exists():
            raise Failure(
                "export.failed",
                f"{directory / SAVED_MODEL} already exists",
                stage=Stage.EXPORT,
                hint="export into an empty directory",
            )
        with tempfile.TemporaryDirectory(dir=directory, prefix=".") as folder:
            description = Path(folder) / "blueprint.safetensors"
            write_blueprint(of_model(model), description)
            given = as_arrays(inputs)
            with _process() as process:
                sample = _as_tensorflow(given, options)
                self.remarks += process.convert(
                    description, directory, fields, list(stage_modules(model)), sample, options
                )
                # Verification meets one of the files; the others are compared here.
                for name in (FROZEN, SAVED_MODEL) if options.get("tflite") else (FROZEN,):
                    process.load(directory / name)
                    predictor = _Predictor(process, fields, options)
                    _compare(name, predictor, model, inputs, self.info.tolerance)

    def load(self, directory: Path, fields: Sequence[str], options: Mapping[str, Any]) -> AnyPredictor:
        """Load the SavedModel, or model.tflite, in a process that has TensorFlow and no torch."""
        process = _process()
        try:
            process.load(directory / (LITE if options.get("tflite") else SAVED_MODEL))
        except Failure:
            process.close()
            raise
        return _Predictor(process, fields, options)

    def inner_outputs(
        self,
        directory: Path,
        inputs: Mapping[str, Array],
        calls: Mapping[str, Sequence[Any]],
        options: Mapping[str, Any],
    ) -> Mapping[str, Sequence[Array]]:
        """Run the frozen graph once more; a batch and model.tflite have no such place."""
        if "batch" in options or options.get("tflite"):
            return {}
        with _process() as process:
            found = process.inner(directory / FROZEN, _as_tensorflow(inputs, options))
        return {name: [_channels_first(value) for value in values] for name, values in found.items()}

    def tolerance(self, options: Mapping[str, Any]) -> Tolerance:
        """Weights of 8 bits are judged by what they do to detections, not by digits."""
        return QUANTIZED_TOLERANCE if "quantize" in options else self.info.tolerance

    def describe_signature(
        self, inputs: list[Entry], outputs: list[Entry], options: Mapping[str, Any]
    ) -> tuple[list[Entry], list[Entry]]:
        """Say that the image's channels come last, and how a batch is laid out."""
        leading = [options["batch"]] if "batch" in options else []
        described = []
        for entry in inputs:
            shape = entry.get("shape", [])
            if entry["name"] == "image":
                shape = [*shape[1:], shape[0]]
            described.append({**entry, "shape": [*leading, *shape]})
        return described, describe_batch(outputs, leading[0]) if leading else outputs


def _keys_in_use(model: Any) -> list[str]:
    """Return the keys of a config's node MODEL that name parts which the model has."""
    keys = ["META_ARCHITECTURE", "BACKBONE.NAME"]
    architecture = model.META_ARCHITECTURE
    if architecture in {"GeneralizedRCNN", "PanopticFPN", "ProposalNetwork"}:
        keys.append("PROPOSAL_GENERATOR.NAME")
        if model.PROPOSAL_GENERATOR.NAME == "RPN":
            keys += ["RPN.HEAD_NAME", "ANCHOR_GENERATOR.NAME"]
    if architecture == "RetinaNet":
        keys.append("ANCHOR_GENERATOR.NAME")
    if architecture in {"GeneralizedRCNN", "PanopticFPN"}:
        keys += ["ROI_HEADS.NAME", *(f"{head}.NAME" for head in _heads_in_use(model))]
        if model.ROI_HEADS.NAME == "Res5ROIHeads":
            keys.remove("ROI_BOX_HEAD.NAME")
    if architecture in {"PanopticFPN", "SemanticSegmentor"}:
        keys.append("SEM_SEG_HEAD.NAME")
    return keys


def _heads_in_use(model: Any) -> list[str]:
    """Return the nodes of the ROI heads that a model has."""
    if model.META_ARCHITECTURE not in {"GeneralizedRCNN", "PanopticFPN"}:
        return []
    used = {"ROI_BOX_HEAD": True, "ROI_MASK_HEAD": model.MASK_ON, "ROI_KEYPOINT_HEAD": model.KEYPOINT_ON}
    return [head for head, present in used.items() if present]


class _Predictor:
    """Runs a SavedModel on one image, as a batch with the image last where it takes batches."""

    def __init__(self, process: TensorFlowProcess, fields: Sequence[str], options: Mapping[str, Any]) -> None:
        self._process = process
        self._fields = list(fields)
        self._options = options

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def __call__(self, image: Array, **more: Array) -> dict[str, Array]:
        """Return the fields for an image, float32 (C, H, W)."""
        found = self._process.run(_as_tensorflow({"image": image, **more}, self._options))
        if "batch" not in self._options:
            return {name: found[name] for name in self._fields}
        last = self._options["batch"] - 1
        own = found[IMAGE_INDEX] == last if IMAGE_INDEX in found else None
        return {name: found[name][own] if has_rows(name) else found[name][last] for name in self._fields}


def _compare(
    name: str, predictor: _Predictor, model: nn.Module, inputs: Mapping[str, Tensor], tolerance: Tolerance
) -> None:
    """Compare a file with the eager model on the sample.

    Raises:
        Failure: ``artifact.mismatch``.
    """
    import torch

    from zooport.export_core.samples import Sample
    from zooport.export_core.verification import verify

    with torch.no_grad():
        outputs = as_arrays(model([dict(inputs)])[0])
    verify(predictor, [Sample(f"of {name}", as_arrays(inputs), outputs)], tolerance)


def _as_tensorflow(inputs: Mapping[str, Array], options: Mapping[str, Any]) -> dict[str, Array]:
    """Return inputs as the graph takes them; in a batch the image is last, behind its mirror images."""
    given = dict(inputs)
    image = np.ascontiguousarray(given["image"].transpose(1, 2, 0))
    if "batch" not in options:
        return {**given, "image": image}
    count = options["batch"]
    stacked = {name: np.stack([value] * count) for name, value in given.items() if name != "image"}
    return {"image": np.stack([np.flip(image, 1)] * (count - 1) + [image]), **stacked}


def _channels_first(value: Array) -> Array:
    """Return maps (N, H, W, C) as torch has them."""
    return np.ascontiguousarray(value.transpose(0, 3, 1, 2)) if value.ndim == 4 else value


def _process() -> TensorFlowProcess:
    from zooport.export_core.tensorflow.process import TensorFlowProcess

    return TensorFlowProcess(asked_threads())


def _bad_option(name: str, value: Any, why: str, hint: str) -> Failure:
    return Failure("export.option", f"tensorflow: {name} = {value!r} {why}", stage=Stage.PLAN, hint=hint)


def _unknown(key: str, value: Any, known: Sequence[str]) -> Failure:
    return Failure(
        "unsupported.architecture",
        f"{key} = {value!r}: no TensorFlow graph is known for it",
        stage=Stage.PLAN,
        hint=f"known: {', '.join(known)}; other formats, such as onnx, take modules of your own",
        details={"key": key, "value": value},
    )
