"""How long the registry takes to answer when a million attempts are in it.

Two histories are made up: ``deep``, one zoo of 10,000 exports that ran a hundred times, and ``wide``, a
million exports that ran once each; the last run of both is going on. Every question is a command, asked in
this process as a user asks it, its output printed to nowhere; Python's start is not counted. The median of
several times counts.
``python benchmarks/registry.py [--attempts N] [--registry URL]``; an empty PostgreSQL database works, too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import Connection, func, insert, select

from zooport import cli
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.drivers import Driver
from zooport.jobs.registry.records import job_to_dict
from zooport.jobs.registry.schema import artifacts, attempts, checkpoints, exports, failures, metrics, runs
from zooport.tests.registry_support import make_job

RESULT = Path(__file__).parent / "registry.json"
ALLOWED = 0.150  # seconds
REPEATS = 9
FORMATS = ("torchscript-trace", "torchscript-script", "onnx", "onnx-raw", "openvino")
MODELS = 2000  # of one run; times the formats that is 10,000 exports
CODES = ("resource.timeout", "resource.memory", "checkpoint.nonfinite", "export.failed", "accuracy.drift")
QUESTIONS = {
    "deep": (
        "list --status failed",
        "list --status failed -o json",
        "list --run {old} --status failed",
        "list --code 'resource.*' --format onnx",
        "list --model 'team-1/model-*7' --format onnx",
        "list --model team-0/model-0 --all",
        "list --all --code checkpoint.nonfinite -n 50",
        "list -n 50",
        "status",
        "status {old}",
        "show {export}",
        "show {short}",
        "show team-0/model-0/onnx",
        "runs -n 20",
        "runs",
    ),
    "wide": (
        "list --status failed -n 50",
        "list --code 'resource.*' -n 50",
        "list --format onnx --status unsupported -n 50",
        "list --model 'team-1/model-*7' --format onnx -n 50",
        "list --run {old} --status failed",
        "list --status running",
        "status",
        "show {export}",
        "show {short}",
        "show team-0/model-0/onnx",
    ),
}


def main() -> None:
    """Make both histories, ask, print a table and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--attempts", type=int, default=1_000_000)
    parser.add_argument("--registry", help="in place of an SQLite file that is thrown away")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for shape, questions in QUESTIONS.items():
            if shape == "wide" and arguments.registry:
                continue
            url = arguments.registry or f"sqlite:///{folder}/{shape}.db"
            began = time.monotonic()
            names = fill(url, arguments.attempts, wide=shape == "wide")
            print(f"{shape}: {names['attempts']} attempts, made in {time.monotonic() - began:.0f} s")
            results += [ask(shape, url, question, names) for question in questions]
    slow = [each for each in results if each["median_s"] > ALLOWED]
    busy = os.getloadavg()[0]
    fine = f"{len(results) - len(slow)} of {len(results)} within {ALLOWED * 1000:.0f} ms"
    print(f"{fine}; load {busy:.1f} on {os.cpu_count()} CPUs")
    report = {"attempts": arguments.attempts, "load": busy, "allowed_s": ALLOWED, "questions": results}
    RESULT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def ask(shape: str, url: str, question: str, names: dict[str, str]) -> dict[str, Any]:
    """Ask one question several times, print and return how long it took."""
    words = [word.format(**names) for word in shlex.split(question)]
    walls, processor, printed = [], [], ""
    for _ in range(REPEATS + 1):
        output = io.StringIO()
        began, used = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(output):
            code = cli.run([*words, "--registry", url])
        walls.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
        printed = output.getvalue()
        if code:
            raise SystemExit(f"{question}: exit code {code}")
    # The first one has imported modules; the processor's time tells what a busy machine adds.
    wall, cpu = median(walls[1:]), median(processor[1:])
    lines = printed.count("\n")
    verdict = "" if wall <= ALLOWED else "  too slow"
    print(f"  {question:58}{lines:7} lines{wall * 1000:7.0f} ms{cpu * 1000:7.0f} ms CPU{verdict}")
    return {"history": shape, "question": question, "lines": lines, "median_s": wall, "cpu_s": cpu}


def fill(url: str, wanted: int, *, wide: bool) -> dict[str, str]:
    """Make a history of as many attempts; return names of what is in it."""
    count = max(2, wanted // (MODELS * len(FORMATS)))
    with open_registry(url) as registry:
        for number in range(count):
            with registry._database.writing() as connection:
                add_run(connection, number, count, wide=wide)
            sys.stderr.write(f"\r{number + 1} of {count} runs ")
        sys.stderr.write("\n")
        with registry._database.writing() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("ANALYZE")
            attempts_made = connection.execute(select(func.count()).select_from(attempts)).scalar_one()
    old = run_name(count // 2)
    return {
        "old": old,
        "export": f"{old}.77",
        "short": f"{old[-4:]}.77",
        "attempts": str(attempts_made),
    }


def run_name(number: int) -> str:
    """Return the id of the run of this number."""
    return f"r-2026{1 + number // 28:02}{1 + number % 28:02}-120000-{number:04}"


def add_run(connection: Connection, number: int, count: int, *, wide: bool) -> None:
    """Add one run of 10,000 exports; the last one is going on."""
    run, dice, last = run_name(number), random.Random(number), number == count - 1
    driver = Driver.current()
    connection.execute(
        insert(runs).values(
            id=run,
            number=number + 1,
            kind="submit",
            status="running" if last else "failed",
            manifest_path="/zoo/zoo.yaml",
            manifest_text="models: ...",
            host=driver.host,
            pid=driver.pid,
            process=driver.process,
            created_at=moment(number, 0),
            finished_at=None if last else moment(number, 9000),
            heartbeat_at=moment(number, 9000),
            activity=[],
        )
    )
    rows: dict[Any, list[dict[str, Any]]] = {
        table: [] for table in (checkpoints, exports, attempts, artifacts, metrics, failures)
    }
    for index, (model, format_) in enumerate(pairs(number, wide=wide)):
        add_export(rows, number, index, model, format_, run, dice, wide=wide, last=last)
    if not wide and number:
        connection.execute(exports.update().where(exports.c.latest).values(latest=False))
    for table, values in rows.items():
        if values:
            connection.execute(insert(table), values)


def pairs(number: int, *, wide: bool) -> Iterator[tuple[int, str]]:
    """Yield the models and formats of a run."""
    first = number * MODELS if wide else 0
    for model in range(first, first + MODELS):
        for format_ in FORMATS:
            yield model, format_


def add_export(
    rows: dict[Any, list[dict[str, Any]]],
    number: int,
    index: int,
    model: int,
    format_: str,
    run: str,
    dice: random.Random,
    *,
    wide: bool,
    last: bool,
) -> None:
    """Add one export with what came of it."""
    pk = number * MODELS * len(FORMATS) + index + 1
    name = f"team-{model % 7}/model-{model}"
    job = make_job(run, index + 1, name, format_)
    if format_ == FORMATS[0] and (wide or number == 0):
        rows[checkpoints].append(
            {
                "id": model + 1,
                "digest": f"{model:064x}",
                "name": name,
                "config": str(job.checkpoint.config),
                "weights": str(job.checkpoint.weights),
                "overrides": {},
                "imports": [],
            }
        )
    status, code = outcome(dice, index, last=last)
    attempt = 1 if wide else number + 1
    rows[exports].append(
        {
            "pk": pk,
            "id": job.id,
            "run_id": run,
            "checkpoint_id": model + 1,
            "model": name,
            "format": format_,
            "content_key": f"{pk:064x}",
            "target": f"{model:060x}{FORMATS.index(format_):04}",
            "latest": True,
            "status": status,
            "attempt": attempt if status != "pending" else attempt - 1,
            "job": job_to_dict(job),
            "created_at": moment(number, 0),
            "code": code,
        }
    )
    if status == "pending":
        return
    key = {"export_pk": pk, "number": attempt}
    over = status != "running"
    rows[attempts].append(
        key
        | {
            "status": status,
            "worker": "host/1",
            "log": str(job.log),
            "started_at": moment(number, index / 2),
            "finished_at": moment(number, index / 2 + 12) if over else None,
            "seconds": 12.5 if over else None,
            "stages": {"load": 1.0, "export": 5.0, "verify": 2.0, "evaluate": 4.0} if over else {},
            "notes": [],
            "command": f"zooport export --name {name}" if code else None,
        }
    )
    if status == "succeeded":
        digests = {"model.ts": f"{pk:064x}", "model.json": f"{pk:064x}"}
        product = {"path": str(job.output), "main_file": "model.ts", "sha256": f"{pk:064x}", "bytes": 10**8}
        rows[artifacts].append(key | product | {"files": digests})
        for metric, value in (("bbox/AP", 41.0), ("bbox/AP50", 61.0)):
            measured = {"name": metric, "baseline": value, "exported": value - 0.01, "delta": -0.01}
            rows[metrics].append(key | measured)
    elif code:
        rows[failures].append(
            key
            | {
                "code": code,
                "stage": "export",
                "message": "what happened, to which file, key or operator, in one line",
                "hint": "what to do next",
                "retryable": False,
                "details": {},
                "recorded_at": moment(number, index / 2 + 12),
            }
        )


def outcome(dice: random.Random, index: int, *, last: bool) -> tuple[str, str | None]:
    """Return the status and the failure's code of an export."""
    if last and index > 7016:
        return "pending", None
    if last and index > 7000:
        return "running", None
    chance = dice.random()
    if chance < 0.05:
        return "failed", dice.choice(CODES)
    return ("unsupported", "unsupported.operator") if chance < 0.1 else ("succeeded", None)


def moment(day: int, seconds: float) -> str:
    """Return a time of the run of this day."""
    at = time.gmtime(1_767_268_800 + day * 86_400 + seconds)
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", at)


if __name__ == "__main__":
    main()
