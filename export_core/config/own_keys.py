"""Config nodes of zooport's own, for models that detectron2 describes in Python only (LazyConfig).

They are known everywhere, so that a wrong key in them is found, but a merged config holds such a node only
where the model uses it: dumps of all other models stay readable for detectron2.
"""

from __future__ import annotations

from typing import Any

OWN_KEYS: dict[str, Any] = {
    "MODEL": {
        "FCOS": {
            "NUM_CLASSES": 80,
            "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
            "NUM_CONVS": 4,
            "NORM": "GN",
            "SCORE_THRESH_TEST": 0.2,
            "TOPK_CANDIDATES_TEST": 1000,
            "NMS_THRESH_TEST": 0.6,
        },
        # RegNetX-4GF; widths as Radosavovic et al. 2020, equations 2 to 4, derive them from four numbers.
        "REGNETS": {
            "DEPTH": 23,
            "W_0": 96,
            "W_A": 38.65,
            "W_M": 2.43,
            "GROUP_WIDTH": 40,
            "SE_RATIO": 0.0,
            "STEM_OUT_CHANNELS": 32,
            "NORM": "FrozenBN",
            "OUT_FEATURES": ["s1", "s2", "s3", "s4"],
        },
    }
}


def drop_unused(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a merged tree without the own nodes that its model does not use."""
    model = tree["MODEL"]
    used = {
        "FCOS": model["META_ARCHITECTURE"] == "FCOS",
        "REGNETS": "regnet" in str(model["BACKBONE"]["NAME"]),
    }
    return {**tree, "MODEL": {name: node for name, node in model.items() if used.get(name, True)}}
