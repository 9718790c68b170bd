"""Projects on detectron2 that zooport does not implement, by the keys and values of their configs.

Single keys that a project adds beside known ones are kept. Whole nodes (``MODEL.POINT_HEAD``) need no entry
to be kept; they are here to be named.
"""

from __future__ import annotations

from collections.abc import Iterable

_KEYS: dict[str, tuple[str, ...]] = {
    "PointRend": (
        "INPUT.COLOR_AUG_SSD",
        "MODEL.IMPLICIT_POINTREND",
        "MODEL.POINT_HEAD",
        "MODEL.ROI_MASK_HEAD.FC_DIM",
        "MODEL.ROI_MASK_HEAD.IN_FEATURES",
        "MODEL.ROI_MASK_HEAD.NUM_FC",
        "MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION",
        "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON",
    ),
    "DensePose": (
        "BOOTSTRAP_DATASETS",
        "BOOTSTRAP_MODEL",
        "DENSEPOSE_EVALUATION",
        "INPUT.ROTATION_ANGLES",
        "MODEL.DENSEPOSE_ON",
        "MODEL.HRNET",
        "MODEL.ROI_DENSEPOSE_HEAD",
        "TEST.AUG.ROTATION_ANGLES",
    ),
    "PointSup": ("INPUT.POINT_SUP", "INPUT.SAMPLE_POINTS"),
    "TridentNet": ("MODEL.TRIDENT",),
    "TensorMask": ("MODEL.TENSOR_MASK",),
    "DeepLab": (
        "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA",
        "MODEL.RESNETS.RES4_DILATION",
        "MODEL.RESNETS.RES5_MULTI_GRID",
        "MODEL.RESNETS.STEM_TYPE",
        "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS",
        "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS",
        "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT",
        "MODEL.SEM_SEG_HEAD.LOSS_TYPE",
        "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS",
        "MODEL.SEM_SEG_HEAD.PROJECT_FEATURES",
        "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV",
        "SOLVER.POLY_LR_CONSTANT_ENDING",
        "SOLVER.POLY_LR_POWER",
    ),
    "Panoptic-DeepLab": (
        "INPUT.GAUSSIAN_SIGMA",
        "INPUT.IGNORE_CROWD_IN_SEMANTIC",
        "INPUT.IGNORE_STUFF_IN_OFFSET",
        "INPUT.SMALL_INSTANCE_AREA",
        "INPUT.SMALL_INSTANCE_WEIGHT",
        "MODEL.INS_EMBED_HEAD",
        "MODEL.PANOPTIC_DEEPLAB",
        "MODEL.SEM_SEG_HEAD.HEAD_CHANNELS",
        "MODEL.SEM_SEG_HEAD.LOSS_TOP_K",
        "SOLVER.OPTIMIZER",
    ),
}
_PROJECT_OF = {key: project for project, keys in _KEYS.items() for key in keys}

# Names that only these projects' configs hold, as values of keys of detectron2 such as MODEL.BACKBONE.NAME.
_NAMES: dict[str, tuple[str, ...]] = {
    "rotated boxes": ("RRPN", "RROIHeads", "RotatedAnchorGenerator", "ROIAlignRotated"),
    "TridentNet": (
        "build_trident_resnet_backbone",
        "TridentRPN",
        "TridentRes5ROIHeads",
        "TridentStandardROIHeads",
    ),
    "DensePose": ("DensePoseROIHeads", "build_hrfpn_backbone", "build_pose_hrnet_backbone"),
    "PointRend": (
        "PointRendROIHeads",
        "CoarseMaskHead",
        "PointRendMaskHead",
        "ImplicitPointRendMaskHead",
        "PointRendSemSegHead",
    ),
    "PointSup": ("MaskRCNNConvUpsamplePointSupHead",),
    "DeepLab": ("build_resnet_deeplab_backbone", "DeepLabV3Head", "DeepLabV3PlusHead"),
    "Panoptic-DeepLab": ("PanopticDeepLab", "PanopticDeepLabSemSegHead"),
    "TensorMask": ("TensorMask", "TensorMaskAnchorGenerator"),
    # Projects of others that build on detectron2.
    "ViTDet": ("SimpleFeaturePyramid", "ViT"),
    "MViTv2": ("MViT",),
    "AdelaiDet": ("OneStageDetector", "BlendMask", "CondInst", "SOLOv2", "MEInst"),
    "CenterNet2": ("CenterNet", "CenterNetDetector"),
    "Detic": ("DeticCascadeROIHeads",),
    "MaskFormer": ("MaskFormer", "MaskFormerHead", "D2SwinTransformer"),
    "Sparse R-CNN": ("SparseRCNN",),
    "DETR": ("Detr",),
    "VoVNet": ("build_vovnet_backbone", "build_vovnet_fpn_backbone", "build_fcos_vovnet_fpn_backbone"),
}
_PROJECT_OF_NAME = {name: project for project, names in _NAMES.items() for name in names}
_REPLACEMENTS = {
    "PointSup": "PointSup differs in training only: override MODEL.ROI_MASK_HEAD.NAME with"
    " MaskRCNNConvUpsampleHead"
}


def project_of(key: str) -> str | None:
    """Return the detectron2 project that adds this dotted key, None when it is nobody's that we know."""
    return _PROJECT_OF.get(key)


def projects_of(keys: Iterable[str]) -> tuple[str, ...]:
    """Return the projects that the unknown keys of a config belong to, without repetition, in order."""
    return tuple(dict.fromkeys(name for key in keys if (name := project_of(key)) is not None))


def project_of_name(value: object) -> str | None:
    """Return the project whose configs hold this value, such as "RRPN"; None for any other value."""
    return _PROJECT_OF_NAME.get(value) if isinstance(value, str) else None


def refusal_hint(project: str) -> str:
    """Return what somebody with a model of this project can do."""
    return _REPLACEMENTS.get(project, f"bring the modules of {project} as an extension (--import)")
