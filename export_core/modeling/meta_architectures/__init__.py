"""Meta architectures; importing the package registers those that zooport brings."""

from zooport.export_core.modeling.meta_architectures import dense_labels, fcos, generalized_rcnn, retinanet

__all__ = ["dense_labels", "fcos", "generalized_rcnn", "retinanet"]
