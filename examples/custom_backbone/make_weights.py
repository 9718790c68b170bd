"""Write model_final.pth: the example's weights, drawn from a seed instead of trained.

python make_weights.py [--seed 0] [--output model_final.pth]
"""

import argparse
import math
from pathlib import Path

import torch

from zooport.export_core import extensions
from zooport.export_core.config import load_config
from zooport.export_core.modeling.build import build_skeleton

HERE = Path(__file__).resolve().parent


def make_weights(seed: int) -> dict[str, torch.Tensor]:
    """Return a state dict for config.yaml: every parameter of the model by name, drawn from the seed."""
    extensions.load([extensions.locate("./pocketnet", HERE)])
    model = build_skeleton(load_config(HERE / "config.yaml"))
    generator = torch.Generator().manual_seed(seed)
    return {name: draw(name, value, generator) for name, value in model.state_dict().items()}


def draw(name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return weights scaled to keep variances (He et al. 2015), norms that do nothing, biases of zero."""
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    if like.ndim > 1:
        scale = math.sqrt(2.0 / like[0].numel())
        # Small corrections of anchors, so that boxes stay boxes, and classes that are not certain.
        scale *= 0.1 if any(part in name for part in ("anchor_deltas", "bbox_pred", "cls_score")) else 1.0
        return torch.randn(like.shape, generator=generator) * scale
    is_scale = name.endswith(("norm.weight", "running_var"))
    return torch.ones(like.shape) if is_scale else torch.zeros(like.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the example's weights.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE / "model_final.pth")
    arguments = parser.parse_args()
    torch.save({"model": make_weights(arguments.seed)}, arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
