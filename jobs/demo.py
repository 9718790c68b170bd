"""``zooport demo``: the embedded demo zoo through the code of ``zooport submit``, then what to type next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from zooport.export_core import demo, formats
from zooport.export_core.failures import Failure
from zooport.jobs.output import print_text
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import ExportFilter, ExportRow
from zooport.jobs.submission import Request, submit
from zooport.jobs.values import Status


def run_demo(output: Path) -> int:
    """Export the demo zoo into a folder of the user's, print the table, and explain refusals in it.

    The zoo itself is read where it is installed, which may be read-only; a second call finds everything done.

    Args:
        output: folder of the artifacts and the registry; made when it is not there.

    Returns:
        The exit code of the run: 0 where nothing failed; what is unsupported, or needs a package that is left
        to choice, has not failed.

    Raises:
        Failure: ``resource.disk`` when the folder cannot be made, and what a submission raises.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(
            "resource.disk",
            f"cannot make the folder {output}: {error.strerror}",
            hint="name another one with --output",
        ) from error
    registry = output / "zooport.db"
    exit_code = submit(demo.MANIFEST, Request(registry=str(registry)), output / "artifacts")
    with open_registry(str(registry), create=False) as opened:
        refused = opened.exports(ExportFilter(statuses=(str(Status.UNSUPPORTED),)))
        failed = opened.exports(ExportFilter(statuses=(str(Status.FAILED),)))
    lacking = [row for row in failed if row.code == "dependency.missing"]
    told = explanation(refused), what_to_install(lacking), next_steps(registry)
    print_text("\n" + "\n\n".join(filter(None, told)))
    return 0 if lacking and len(lacking) == len(failed) else exit_code


def what_to_install(lacking: Sequence[ExportRow]) -> str:
    """Return how formats come to work whose packages are not here; "" for none."""
    extras = {info.name: info.requires_extra for info in formats.describe()}
    names = sorted({row.format for row in lacking})
    return "\n".join(
        f"{name} needs packages that are not installed: pip install 'zooport[{extras[name]}]'"
        for name in names
    )


def explanation(refused: Sequence[ExportRow]) -> str:
    """Return what refusals in the table mean, for somebody who sees them for the first time; "" for none."""
    if not refused:
        return ""
    names = ", ".join(f"{row.model} in {row.format}" for row in refused)
    return (
        f"unsupported, {names}: no failure, but an answer.\n"
        "A format that cannot express a model says so before any work, and names the config key."
    )


def next_steps(registry: Path) -> str:
    """Return commands that look at what the demo left, and where the manifest is to start from."""
    zooport, option = _program(), f"--registry {shlex.quote(_short(registry))}"
    steps = {
        f"{zooport} list {option}": "every export and how its AP moved",
        f"{zooport} show mask_rcnn_fpn/torchscript-trace {option}": "one of them in full",
        f"{zooport} rerun --failed {option}": "only what failed, again",
    }
    width = max(map(len, steps))
    lines = [f"{command:<{width}}  # {purpose}" for command, purpose in steps.items()]
    return "\n".join([*lines, f"the manifest, to start your own from: {_short(demo.MANIFEST)}"])


def _program() -> str:
    """Return what starts zooport in this shell: its name, or its path where that is not searched."""
    called = Path(sys.argv[0])
    if called.name != "zooport" or shutil.which("zooport") is not None:
        return "zooport"
    return shlex.quote(_short(called))


def _short(path: Path) -> str:
    """Return the path as one would type it here."""
    absolute = path.absolute()
    return os.path.relpath(absolute) if absolute.is_relative_to(Path.cwd()) else str(absolute)
