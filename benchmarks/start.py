"""How long it takes from ``zooport submit`` to the first job: handed to a worker, and begun in its process.

Counted from the start of Python on a machine that has the files in memory; the second time, the demo's
digests are known. ``python benchmarks/start.py [--repeats N]``
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from zooport.benchmarks.fleet import write_manifest
from zooport.jobs.registry import open_registry

RESULT = Path(__file__).parent / "start.json"
FORMATS = ("torchscript-trace",)


def main() -> None:
    """Submit several times, print a table and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZOOPORT_CACHE"] = f"{folder}/cache"
        manifest = write_manifest(Path(folder), FORMATS)
        runs = [submit_once(manifest, Path(folder, str(number))) for number in range(arguments.repeats)]
    middle = {name: median(run[name] for run in runs) for name in runs[0]}
    print(f"median of {len(runs)}: {row(middle)}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    RESULT.write_text(json.dumps({"median": middle, "runs": runs}, indent=1) + "\n", encoding="utf-8")


def submit_once(manifest: Path, folder: Path) -> dict[str, Any]:
    """Submit the manifest, wait for the first job's log and stop the run; return seconds."""
    folder.mkdir()
    registry, output = folder / "registry.db", folder / "artifacts"
    command = [sys.executable, "-m", "zooport.cli", "submit", str(manifest)]
    began = time.time()
    with (folder / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, "--registry", str(registry), "--output", str(output)], stdout=log, stderr=log
        )
        # The process of the first job opens its log as soon as it runs.
        while not list(output.glob(".logs/*/*/*.log")):
            if process.poll() is not None:
                raise SystemExit((folder / "log").read_text(encoding="utf-8"))
            time.sleep(0.01)
        begun = time.time() - began
        process.terminate()
        process.wait()
    ended = time.time() - began
    with open_registry(str(registry), create=False) as opened:
        created = datetime.fromisoformat(opened.run("latest").created).timestamp() - began
    result = {"planned_s": created, "begun_s": begun, "stopped_s": ended - begun}
    print(row(result))
    return result


def row(seconds: dict[str, Any]) -> str:
    """Return one row of the table."""
    return (
        f"planned and recorded after {seconds['planned_s']:.1f} s, the first job's process ran after"
        f" {seconds['begun_s']:.1f} s; stopping took {seconds['stopped_s']:.1f} s"
    )


if __name__ == "__main__":
    main()
