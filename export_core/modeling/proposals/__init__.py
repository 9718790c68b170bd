"""Proposal generators; importing the package registers those that zooport brings."""

from zooport.export_core.modeling.proposals import rpn

__all__ = ["rpn"]
