"""ROI heads; importing the package registers those that zooport brings."""

from zooport.export_core.modeling.roi_heads import box_head, cascade, keypoint_head, mask_head, res5, standard

__all__ = ["box_head", "cascade", "keypoint_head", "mask_head", "res5", "standard"]
