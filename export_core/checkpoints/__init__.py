"""Checkpoints: bytes from anywhere to the arrays that a model expects, without running what is in them."""

from zooport.export_core.checkpoints.match import match_weights
from zooport.export_core.checkpoints.read import file_digest, read_weights
from zooport.export_core.checkpoints.weights import Weights

__all__ = ["Weights", "file_digest", "match_weights", "read_weights"]
