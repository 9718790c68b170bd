"""The nodes of a cluster before work begins: what they lack, and which files they do not see.

Every node is asked at once, by a function that needs nothing of zooport there. What makes all jobs of a node
fail ends the run here, in one line; input files that a node does not see are sent to it (see inputs.py).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zooport import __version__
from zooport.export_core import remote_artifacts as remote
from zooport.export_core.diagnosis import disk_failure, one_line
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.places import Place, RemotePath
from zooport.jobs.inputs import Job, stamp_of, units_of
from zooport.jobs.plan import Plan
from zooport.jobs.values import ExportJob

_PATIENCE = 90.0  # seconds for every node to answer; a package that is large takes long to import
_DEATH_KNOWN = 20.0  # seconds until a cluster knows that a node has died
_SHARED = "give --output an address such as s3://bucket/zoo, or a folder that every node mounts"


@dataclass(frozen=True)
class _Node:
    id: str
    name: str


def check_outputs(outputs: Sequence[Place]) -> None:
    """Try to write where artifacts are to go, if that is an address; local folders are tried by their jobs.

    Raises:
        Failure: ``output.unwritable``, ``dependency.missing``.
    """
    for root in dict.fromkeys(outputs):
        if isinstance(root, RemotePath):
            remote.check_writable(root)


def output_root(job: ExportJob) -> Place:
    """Return the output directory below which a job's artifact lies."""
    return job.output.parents[len(job.checkpoint.name.split("/"))]


def check_nodes(plan: Plan, preload: Sequence[str]) -> frozenset[str]:
    """Ask every node of the cluster that this process has joined; return the inputs that some do not see.

    Args:
        plan: what is to be run.
        preload: modules that the run's fork servers import.

    Raises:
        Failure: ``dependency.missing`` for a node without a package, ``output.unwritable`` where the output
            is not shared by the nodes or does not take files from one, ``cluster.unavailable`` for a node
            with another zooport or one that does not answer.
    """
    nodes = _nodes()
    roots = dict.fromkeys(output_root(job) for job in plan.to_run)
    folders = [root for root in roots if isinstance(root, Path)]
    jobs: list[Job] = [*plan.to_run, *plan.baselines]
    inputs = {
        str(path): stamp
        for job in jobs
        for unit in units_of(job)
        for path in unit
        if (stamp := stamp_of(path)) is not None
    }
    with _tokens(folders) as tokens:
        question = {
            "packages": list(dict.fromkeys(name.partition(".")[0] for name in ("zooport", *preload))),
            "distributions": _tools(plan),
            "tokens": tokens,
            "inputs": [(path, *stamp) for path, stamp in inputs.items()],
            "addresses": [str(root) for root in roots if isinstance(root, RemotePath)],
        }
        answers = _ask(nodes, question)
    unseen: set[str] = set()
    for node, answer in answers.items():
        _judge(node, answer)
        unseen.update(answer["unseen_inputs"])
    return frozenset(unseen)


def _nodes() -> list[_Node]:
    """Return the nodes on which a worker can be placed."""
    import ray

    return [
        _Node(node["NodeID"], f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})")
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
    ]


def _tools(plan: Plan) -> list[str]:
    """Return what formats of the plan need that is installed here: it has to be on the nodes as well."""
    from importlib.metadata import PackageNotFoundError, version

    from zooport.export_core import formats

    wanted = {job.format for job in plan.to_run}
    found = []
    for name in dict.fromkeys(
        tool for info in formats.describe() if info.name in wanted for tool in info.tools
    ):
        with suppress(PackageNotFoundError):
            version(name)
            found.append(name)
    return found


@contextmanager
def _tokens(folders: Sequence[Path]) -> Iterator[dict[str, str]]:
    """Write a file into each folder that every node has to see; yield path -> content."""
    text = secrets.token_hex(16)
    written: dict[str, str] = {}
    try:
        for folder in folders:
            path = folder / f".zooport-{text[:8]}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            except OSError as error:
                problem = f"cannot write to {folder}: {disk_failure(error).message}"
                raise Failure("output.unwritable", problem, hint=_SHARED) from None
            written[str(path)] = text
        yield written
    finally:
        for name in written:
            with suppress(OSError):
                Path(name).unlink()


def _ask(nodes: Sequence[_Node], question: dict[str, Any]) -> dict[_Node, dict[str, Any]]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from zooport.jobs import node_probe

    # By value: on a node without zooport a reference to the function could not be followed.
    ray.cloudpickle.register_pickle_by_value(node_probe)
    try:
        look = ray.remote(node_probe.look)
        asked = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            asked[look.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(question)] = node
        answered = ray.wait(list(asked), num_returns=len(asked), timeout=_PATIENCE) if asked else ([], [])
    finally:
        ray.cloudpickle.unregister_pickle_by_value(node_probe)
    done, waiting = answered
    silent = [asked[reference] for reference in waiting if not _has_died(asked[reference])]
    if silent:
        raise Failure(
            "cluster.unavailable",
            f"no answer within {_PATIENCE:g} s from node {', '.join(node.name for node in silent)}",
            hint="see ray status; a runtime environment that is set up there may take longer: try again",
        )
    answers = {}
    for reference in done:
        node = asked[reference]
        try:
            answers[node] = ray.get(reference)
        except ray.exceptions.RayError as error:
            if _has_died(node):
                continue  # its absence is no reason not to use the others
            problem = f"node {node.name} cannot run a task: {one_line(error)}"
            raise Failure("cluster.unavailable", problem, hint="see ray status and the node's logs") from None
    return answers


def _has_died(node: _Node) -> bool:
    """Whether the cluster says that a node is gone, which it may take some seconds to know."""
    deadline = time.monotonic() + _DEATH_KNOWN
    while node.id in {alive.id for alive in _nodes()}:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def _judge(node: _Node, answer: Mapping[str, Any]) -> None:
    if answer["missing"]:
        names = ", ".join(answer["missing"])
        raise Failure(
            "dependency.missing",
            f"node {node.name} lacks the package {names}",
            stage=Stage.PLAN,
            hint="install there what is installed here, or send it along with --runtime-env",
            details={"node": node.name, "packages": answer["missing"]},
        )
    if answer["zooport"] != __version__:
        raise Failure(
            "cluster.unavailable",
            f"node {node.name} has zooport {answer['zooport']}, and this is zooport {__version__}",
            hint="install the same version on every node",
        )
    for path in answer["unseen_tokens"]:
        folder = Path(path).parent
        problem = f"the output {folder} is not shared: node {node.name} does not see what is written here"
        raise Failure("output.unwritable", problem, stage=Stage.PLAN, hint=_SHARED)
    for problem in answer["refused"]:
        raise Failure(
            "output.unwritable",
            f"node {node.name} {problem}",
            stage=Stage.PLAN,
            hint="its credentials may be others than here: set them on the nodes, or with --runtime-env",
        )
