"""Functions that tests run as jobs with a process of TensorFlow."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from zooport.export_core.evaluation.costs import peak_memory
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.isolation.memory import held
from zooport.export_core.tensorflow.process import TensorFlowProcess

Report = Callable[[Stage], None]


def family(*, report: Report) -> dict[str, Any]:
    """Return who is whose, and how long TensorFlow took to be there."""
    begun = time.perf_counter()
    before = peak_memory()
    with TensorFlowProcess() as process:
        seconds = time.perf_counter() - begun
        return {
            "pid": process.pid,
            "server": psutil.Process(process.pid).ppid(),
            "job's server": os.getppid(),
            "seconds": seconds,
            "more at peak": peak_memory() - before,
            "held": held(process.pid),
            "has torch": "libtorch" in Path(f"/proc/{process.pid}/maps").read_text(),
        }


def hang(pid_file: str, *, report: Report) -> None:
    """Start TensorFlow and wait for ever."""
    process = TensorFlowProcess()
    Path(pid_file).write_text(str(process.pid))
    report(Stage.EXPORT)
    time.sleep(600)


def crash(*, report: Report) -> str:
    """Let TensorFlow die; return what is said of it."""
    process = TensorFlowProcess()
    os.kill(process.pid, signal.SIGKILL)
    try:
        process.load(Path("nowhere"))
    except Failure as failure:
        return f"{failure.code}: {failure.message}"
    return ""
