"""Caffe2: a predict net and an init net that Caffe2's runtime and detectron2's loader accept."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooport.export_core.failures import Failure, Stage
from zooport.export_core.formats.base import AnyPredictor, Array, Entry, Format, FormatInfo, Tolerance
from zooport.export_core.formats.converter_errors import conversion_failure

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zooport.export_core.config import Config

MAIN_FILE = "model.pb"
DRAWING = "model.svg"
EXECUTOR = "ZOOPORT_CAFFE2_RUNTIME"
"""Environment variable that names what runs nets: ``caffe2``, or ``reference`` where it is not installed."""

_META_ARCHITECTURES = ("GeneralizedRCNN", "PanopticFPN", "ProposalNetwork", "RetinaNet", "SemanticSegmentor")
_SIDES = (96, 128)  # of the picture that is recorded; nothing of it gets into the net
_LARGEST = 2**31 - 1  # bytes of a protobuf message


class Caffe2(Format):
    """``model.pb`` and ``model_init.pb``: data and im_info -> the outputs of detectron2's Caffe2 models."""

    info = FormatInfo(
        name="caffe2",
        summary="Caffe2 nets for phones and servers that still run them",
        main_file=MAIN_FILE,
        call="outputs = Caffe2Model.load_protobuf(directory)([{'image': image}])",
        tools=("onnx",),
        # Caffe2 adds up in another order, which masks and heatmaps show most.
        tolerance=Tolerance(mask=5e-4),
    )

    def __init__(self) -> None:
        super().__init__()
        self._config: Config | None = None

    def requires(self, config: Config, options: Mapping[str, Any]) -> None:
        """Refuse what Caffe2 has no operators for."""
        super().requires(config, options)
        self._config = config
        model = config.MODEL
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

        assert self._config is not None  # noqa: S101 - requires() comes before export()
        with tempfile.TemporaryDirectory(dir=directory, prefix=".") as folder:
            recorded, names = _record(model, self._config.MODEL.META_ARCHITECTURE, Path(folder))
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
        self._draw(predict, parameters, directory)
        if _executor_name() == "reference":
            self.remarks.append(
                "verified by zooport's reference executor: zooport runtime install caffe2 brings the real one"
            )

    def _draw(self, predict: Any, parameters: Mapping[str, Array], directory: Path) -> None:
        """Draw the net; a drawing that cannot be made is no failure of the export."""
        from zooport.export_core.caffe2.drawing import NoLayout, draw

        try:
            draw(predict, parameters, directory / DRAWING)
        except NoLayout as error:
            self.remarks.append(f"{DRAWING} was not drawn: {error}")

    def load(self, directory: Path, fields: Sequence[str], options: Mapping[str, Any]) -> AnyPredictor:
        """Load the nets with Caffe2's runtime, or with the reference where it is not installed."""
        from zooport.export_core.caffe2.executors import choose_executor
        from zooport.export_core.caffe2.net_files import read_nets
        from zooport.export_core.formats.caffe2_results import Caffe2Predictor

        nets = read_nets(directory)
        executor = choose_executor(_executor_name())
        return Caffe2Predictor(executor.load(nets), nets.predict, fields)

    def describe_signature(
        self, inputs: list[Entry], outputs: list[Entry], options: Mapping[str, Any]
    ) -> tuple[list[Entry], list[Entry]]:
        """Say what the net itself takes and gives; the outputs are what a consumer makes of it."""
        size = "height and width before the padding, and a scale that changes nothing"
        data = {
            "name": "data",
            "dtype": "float32",
            "shape": [1, 3, "height", "width"],
            "meaning": f"{inputs[0]['meaning']}; zeros to its right and below, up to size_divisibility",
        }
        im_info = {"name": "im_info", "dtype": "float32", "shape": [1, 3], "meaning": size}
        return [data, im_info], outputs


def _executor_name() -> str:
    from zooport.export_core.caffe2.executors import default_executor

    return os.environ.get(EXECUTOR) or default_executor()


def _record(model: nn.Module, meta_architecture: str, folder: Path) -> tuple[Any, list[str]]:
    """Return the network as an ONNX model, and the names of its outputs; ``folder`` is for a while."""
    import onnx
    import torch

    from zooport.export_core.formats.caffe2_network import DATA, IM_INFO, NETWORKS
    from zooport.export_core.formats.caffe2_operators import DOMAIN, OPSET, recorded_as_caffe2

    network = NETWORKS[meta_architecture](model).eval()
    sample = torch.zeros(1, 3, *_SIDES), torch.tensor([[*map(float, _SIDES), 1.0]])
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


def _refused(key: str, value: Any, why: str) -> Failure:
    return Failure(
        "unsupported.combination",
        f"{key} = {value!r} cannot be exported to Caffe2: {why}",
        stage=Stage.PLAN,
        hint="another format, such as onnx, takes this model",
        details={"key": key, "value": value},
    )
