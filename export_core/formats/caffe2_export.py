"""Caffe2: a predict net and an init net that Caffe2's runtime and detectron2's loader accept."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooport.export_core.failures import Failure, Stage
from zooport.export_core.formats.base import (
    RUNTIME,
    AnyPredictor,
    Array,
    Entry,
    Format,
    FormatInfo,
    Tolerance,
)
from zooport.export_core.formats.converter_errors import conversion_failure

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zooport.export_core.config import Config

MAIN_FILE = "model.pb"
DRAWING = "model.svg"
EXECUTOR = "ZOOPORT_CAFFE2_RUNTIME"
"""Environment variable that names what runs nets where the option ``runtime`` does not."""
HEATMAP_MAX = "heatmap_max"
"""The option that lets the net find keypoints itself."""

_HEATMAPS = "pred_keypoint_heatmaps"
_META_ARCHITECTURES = ("GeneralizedRCNN", "PanopticFPN", "ProposalNetwork", "RetinaNet", "SemanticSegmentor")
_SIDES = (96, 128)  # of the picture that is recorded; nothing of it gets into the net
_LARGEST = 2**31 - 1  # bytes of a protobuf message
_RUNTIMES = ("caffe2", "reference")


class Caffe2(Format):
    """``model.pb`` and ``model_init.pb``: data and im_info -> the outputs of detectron2's Caffe2 models."""

    info = FormatInfo(
        name="caffe2",
        summary="Caffe2 nets for phones and servers that still run them",
        main_file=MAIN_FILE,
        call="outputs = Caffe2Model.load_protobuf(directory)([{'image': image}])",
        tools=("onnx",),
        options={
            HEATMAP_MAX: "keypoints are found inside the net, as keypoints_out in place of kps_score (false)",
            RUNTIME: "what verifies it: caffe2, or zooport's reference (caffe2 where it is installed)",
        },
        # Caffe2 adds up in another order, which masks and heatmaps show most.
        tolerance=Tolerance(mask=5e-4),
        runtimes=_RUNTIMES,
    )

    def __init__(self) -> None:
        super().__init__()
        self._config: Config | None = None

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse unknown options and values that they cannot have."""
        super().check_options(options)
        value = options.get(HEATMAP_MAX, False)
        if type(value) is not bool:
            raise Failure(
                "export.option",
                f"option {HEATMAP_MAX} of format caffe2 is {value!r}, neither true nor false",
                stage=Stage.PLAN,
                hint="leave it out for false",
            )

    def requires(self, config: Config, options: Mapping[str, Any]) -> None:
        """Refuse what Caffe2 has no operators for, and a runtime that is not here."""
        super().requires(config, options)
        self._config = config
        model = config.MODEL
        if options.get(HEATMAP_MAX) and not _finds_keypoints(config):
            why = f"{HEATMAP_MAX} is for models with a keypoint head"
            raise _refused("MODEL.KEYPOINT_ON", model.KEYPOINT_ON, why, "leave the option out")
        if options.get(RUNTIME) == "caffe2":
            from zooport.export_core.caffe2.runtime_environment import runtime_python

            runtime_python()  # dependency.missing now, not when all is done
        if model.META_ARCHITECTURE not in _META_ARCHITECTURES:
            known = ", ".join(_META_ARCHITECTURES)
            raise _refused(
                "MODEL.META_ARCHITECTURE", model.META_ARCHITECTURE, f"Caffe2 nets exist for {known}"
            )
        if any(model.RESNETS.DEFORM_ON_PER_STAGE):
            why = "Caffe2 has no deformable convolution on the CPU"
            raise _refused("MODEL.RESNETS.DEFORM_ON_PER_STAGE", model.RESNETS.DEFORM_ON_PER_STAGE, why)
        if model.META_ARCHITECTURE in {"RetinaNet", "SemanticSegmentor"}:
            return
        if model.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
            why = "a Caffe2 net takes an image and nothing else"
            raise _refused("MODEL.PROPOSAL_GENERATOR.NAME", model.PROPOSAL_GENERATOR.NAME, why)
        for head in ("ROI_BOX_HEAD", "ROI_MASK_HEAD", "ROI_KEYPOINT_HEAD"):
            if model[head].POOLER_TYPE == "ROIPool":
                raise _refused(f"MODEL.{head}.POOLER_TYPE", "ROIPool", "Caffe2 nets are made with RoIAlign")
        if model.META_ARCHITECTURE != "ProposalNetwork" and config.TEST.DETECTIONS_PER_IMAGE == 0:
            raise _refused("TEST.DETECTIONS_PER_IMAGE", 0, "Caffe2's BoxWithNMSLimit takes it for no limit")

    def export(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        fields: Sequence[str],
        directory: Path,
        options: Mapping[str, Any],
    ) -> None:
        """Record the network in ONNX, translate it into nets and write them; see Format.export."""
        from zooport.export_core.caffe2.arguments import make_argument
        from zooport.export_core.caffe2.convert import to_net
        from zooport.export_core.caffe2.net_files import write_nets
        from zooport.export_core.formats.caffe2_arguments import net_arguments
        from zooport.export_core.formats.caffe2_network import NETWORKS

        assert self._config is not None  # noqa: S101 - requires() comes before export()
        with tempfile.TemporaryDirectory(dir=directory, prefix=".") as folder:
            network = NETWORKS[self._config.MODEL.META_ARCHITECTURE](model)
            network.heatmap_max = bool(options.get(HEATMAP_MAX))
            recorded, names = _record(network.eval(), len(inputs["image"]), Path(folder))
        predict, parameters = to_net(recorded, "zooport_predict")
        del recorded  # as large as the parameters
        size = sum(array.nbytes * 5 // 4 for array in parameters.values())
        if size > _LARGEST:
            raise Failure(
                "export.failed",
                f"model_init.pb would have {size} bytes, a protobuf file holds {_LARGEST}",
                stage=Stage.EXPORT,
                hint="no Caffe2 runtime reads a larger one",
            )
        if self._config.MODEL.META_ARCHITECTURE == "RetinaNet":
            predict.external_output[:] = ["im_info", *names]
        arguments = net_arguments(model, self._config)
        predict.arg.extend(make_argument(name, value) for name, value in arguments.items())
        write_nets(directory, predict, parameters)
        self._draw(predict, parameters, len(inputs["image"]), directory)
        if RUNTIME not in options and _executor_name(options) == "reference":
            self.remarks.append(
                "verified by zooport's reference executor: zooport runtime install caffe2 brings the real one"
            )

    def _draw(self, predict: Any, parameters: Mapping[str, Array], channels: int, directory: Path) -> None:
        """Draw the net; a drawing that cannot be made is no failure of the export."""
        from zooport.export_core.caffe2.drawing import NoLayout, draw

        try:
            draw(predict, parameters, channels, directory / DRAWING)
        except NoLayout as error:
            self.remarks.append(f"{DRAWING} was not drawn: {error}")

    def load(self, directory: Path, fields: Sequence[str], options: Mapping[str, Any]) -> AnyPredictor:
        """Load the nets with what the options name, or Caffe2's runtime, or without it the reference."""
        from zooport.export_core.caffe2.executors import choose_executor
        from zooport.export_core.caffe2.net_files import read_nets
        from zooport.export_core.formats.caffe2_results import Caffe2Predictor

        nets = read_nets(directory)
        executor = choose_executor(_executor_name(options))
        self.runtime = executor.name
        kept = [name for name in fields if not (options.get(HEATMAP_MAX) and name == _HEATMAPS)]
        return Caffe2Predictor(executor.load(nets), nets.predict, kept, executor)

    def expected(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], options: Mapping[str, Any]
    ) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        """Return the keypoints that Caffe2's operator finds in the eager model's heatmaps, if it is to."""
        from zooport.export_core.formats.caffe2_results import highest_points

        if not options.get(HEATMAP_MAX):
            return inputs, outputs
        found = {**outputs, "pred_keypoints": highest_points(outputs[_HEATMAPS], outputs["pred_boxes"])}
        del found[_HEATMAPS]
        return inputs, found

    def describe_signature(
        self, inputs: list[Entry], outputs: list[Entry], options: Mapping[str, Any]
    ) -> tuple[list[Entry], list[Entry]]:
        """Say what the net itself takes and gives; the outputs are what a consumer makes of it."""
        size = "height and width before the padding, and a scale that changes nothing"
        data = {
            "name": "data",
            "dtype": "float32",
            "shape": [1, *inputs[0]["shape"]],
            "meaning": f"{inputs[0]['meaning']}; zeros to its right and below, up to size_divisibility",
        }
        im_info = {"name": "im_info", "dtype": "float32", "shape": [1, 3], "meaning": size}
        if options.get(HEATMAP_MAX):
            outputs = [entry for entry in outputs if entry["name"] != _HEATMAPS]
        return [data, im_info], outputs


def _executor_name(options: Mapping[str, Any]) -> str:
    from zooport.export_core.caffe2.executors import default_executor

    named: str = options.get(RUNTIME) or os.environ.get(EXECUTOR) or default_executor()
    if named not in _RUNTIMES:
        raise Failure(
            "export.option",
            f"{EXECUTOR}={named} names no runtime of Caffe2 nets",
            hint=f"there are {' and '.join(_RUNTIMES)}",
        )
    return named


def _finds_keypoints(config: Config) -> bool:
    return bool(config.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and config.MODEL.KEYPOINT_ON)


def _record(network: Any, channels: int, folder: Path) -> tuple[Any, list[str]]:
    """Return a network as an ONNX model, and the names of its outputs; ``folder`` is for a while."""
    import onnx
    import torch

    from zooport.export_core.formats.caffe2_network import DATA, IM_INFO
    from zooport.export_core.formats.caffe2_operators import DOMAIN, OPSET, recorded_as_caffe2

    sample = torch.zeros(1, channels, *_SIDES), torch.tensor([[*map(float, _SIDES), 1.0]])
    path = folder / "recorded.onnx"
    with warnings.catch_warnings(), torch.no_grad(), recorded_as_caffe2():
        warnings.simplefilter("ignore")
        try:
            network(*sample)
            names = list(network.names)
            torch.onnx.export(
                network,
                sample,
                str(path),
                dynamo=False,
                opset_version=OPSET,
                custom_opsets={DOMAIN: 1},
                input_names=[DATA, IM_INFO],
                output_names=names,
                dynamic_axes={DATA: {2: "height", 3: "width"}},
            )
        except Exception as error:
            raise conversion_failure(error, "Caffe2") from error
    return onnx.load(path), names


def _refused(
    key: str, value: Any, why: str, hint: str = "another format, such as onnx, takes this model"
) -> Failure:
    return Failure(
        "unsupported.combination",
        f"{key} = {value!r} cannot be exported to Caffe2: {why}",
        stage=Stage.PLAN,
        hint=hint,
        details={"key": key, "value": value},
    )
