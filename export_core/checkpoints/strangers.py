"""Files that are often found where weights should be, by their first bytes."""

from __future__ import annotations

START = 64
"""How many of a file's first bytes are looked at."""

STRANGERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run git lfs pull"),
    (b"<", "a web page or XML, not weights", "the download probably failed; fetch the file again"),
    (b"\x1f\x8b", "compressed with gzip", "decompress it first"),
    (b"\xfd7zXZ", "compressed with xz", "decompress it first"),
    (b"BZh", "compressed with bzip2", "decompress it first"),
    (b"\x89HDF", "an HDF5 file (Keras or TensorFlow), not weights of detectron2", ""),
    (b"\x93NUMPY", "a single NumPy array, not a dictionary of weights", ""),
)
"""First bytes, what such a file is, and what to do."""

_ANSWERS = (
    (b"version https://git-lfs", "a Git LFS pointer"),
    (b"<", "a web page or XML"),
    (b"{", "a JSON document"),
)
_BLANK = b"\xef\xbb\xbf \t\r\n"


def answered_instead(start: bytes) -> str:
    """Return what a server sent in place of weights, "" for what may be weights.

    Args:
        start: the first bytes of the file; the length that begins a .safetensors file may look like ``<``,
            but it has zeros.
    """
    if not start:
        return "nothing"
    if b"\0" in start:
        return ""
    text = start.lstrip(_BLANK)
    return next((what for magic, what in _ANSWERS if text.startswith(magic)), "")
