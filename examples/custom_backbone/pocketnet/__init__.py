"""PocketNet, a small backbone of one's own: importing this package makes it known to zooport."""

from zooport.export_core.config import declare_defaults

# Keys of one's own stand in a node of their own; a config may then change them, and a misspelt one is found.
declare_defaults({"MODEL": {"POCKETNET": {"WIDTHS": [16, 24, 32, 48], "BLOCKS": 1, "NORM": "BN"}}})

from . import backbone  # noqa: E402  registers the builder

__all__ = ["backbone"]
