"""Backbones; importing the package registers those that zooport brings."""

from zooport.export_core.modeling.backbones import fpn, regnet, resnet

__all__ = ["fpn", "regnet", "resnet"]
