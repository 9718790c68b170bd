"""The nodes of a cluster before work begins: what they lack, and which files they do not see.

Every node is asked at once, by a function that needs nothing of zooport there. What makes all jobs of a node
fail ends the run here, in one line; input files that a node does not see are sent to it (see inputs.py). A
node that joins later is asked before it gets a job, and gets none where something is missing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
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
_LOOK = 2.0  # seconds between two looks for nodes that have joined
_NODE_LABEL = "ray.io/node-id"
_SELECTS = (2, 49)  # the first Ray that knows nodes by labels
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


class Nodes:
    """The nodes of a cluster that take this run's jobs: all that were asked and lack nothing.

    Args:
        plan: what is to be run.
        preload: modules that the run's fork servers import.
    """

    def __init__(self, plan: Plan, preload: Sequence[str]) -> None:
        roots = dict.fromkeys(output_root(job) for job in plan.to_run)
        jobs: list[Job] = [*plan.to_run, *plan.baselines]
        inputs = {
            str(path): stamp
            for job in jobs
            for unit in units_of(job)
            for path in unit
            if (stamp := stamp_of(path)) is not None
        }
        self._folders = [root for root in roots if isinstance(root, Path)]
        self._question = {
            "packages": list(dict.fromkeys(name.partition(".")[0] for name in ("zooport", *preload))),
            "distributions": _tools(plan),
            "inputs": [(path, *stamp) for path, stamp in inputs.items()],
            "addresses": [str(root) for root in roots if isinstance(root, RemotePath)],
        }
        self._fit: list[str] = []
        self._known: set[str] = set()
        self._put_off: set[str] = set()
        self._asked: dict[Any, tuple[_Node, float, ExitStack]] = {}
        self._looked = time.monotonic()
        self.unseen: set[str] = set()

    def check(self) -> None:
        """Ask every node at once.

        Raises:
            Failure: ``dependency.missing`` for a node without a package, ``output.unwritable`` where the
                output is not shared by the nodes or does not take files from one, ``cluster.unavailable`` for
                a node with another zooport or one that does not answer.
        """
        nodes = _nodes()
        with _tokens(self._folders) as tokens:
            answers = _ask(nodes, self._question | {"tokens": tokens})
        self._known.update(node.id for node in nodes)
        for node, answer in answers.items():
            self._take(node, answer)

    def placement(self) -> dict[str, Any]:
        """Return the options that let Ray place a worker on nodes that were asked, and on no other."""
        if not self._fit or not _can_select():
            return {}
        return {"label_selector": {_NODE_LABEL: f"in({','.join(self._fit)})"}}

    def cpus(self) -> int:
        """Return how many CPUs the nodes have that take jobs."""
        import ray

        alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        return sum(int(alive[name].get("CPU", 0)) for name in self._fit if name in alive)

    def newcomers(self) -> list[str]:
        """Ask nodes that have joined since, without waiting; return what there is to say of the answers.

        A node that lacks something gets no jobs, which is no reason to end the run: the others go on.
        """
        if time.monotonic() - self._looked < _LOOK:
            return []
        self._looked = time.monotonic()
        said = [self._ask_later(node) for node in _nodes() if node.id not in self._known]
        said += [self._hear(reference) for reference in list(self._asked)]
        return [each for each in said if each]

    def _ask_later(self, node: _Node) -> str:
        """Ask a node that has joined; return what keeps it from being asked, once."""
        stack = ExitStack()
        try:
            tokens = stack.enter_context(_tokens(self._folders))
        except Failure as failure:  # the output may take files again in a moment
            said = "" if node.id in self._put_off else f"{failure.code}: {failure.message}"
            self._put_off.add(node.id)
            return said and f"node {node.name} has joined and waits: {said}"
        self._known.add(node.id)
        (reference,) = _send([node], self._question | {"tokens": tokens})
        self._asked[reference] = node, time.monotonic() + _PATIENCE, stack
        return ""

    def _hear(self, reference: Any) -> str:
        """Return what a node that joined later has answered, in words; "" as long as it has not."""
        import ray

        node, deadline, stack = self._asked[reference]
        if ray.wait([reference], timeout=0)[0]:
            try:
                self._take(node, ray.get(reference))
                said = f"node {node.name} has joined"
            except Failure as failure:
                said = f"node {node.name} has joined and gets no jobs: {failure.code}: {failure.message}"
            except ray.exceptions.RayError as error:
                said = f"node {node.name} has joined and gets no jobs: {one_line(error)}"
        elif time.monotonic() > deadline:
            said = f"node {node.name} has joined and gets no jobs: no answer within {_PATIENCE:g} s"
        else:
            return ""
        stack.close()
        del self._asked[reference]
        return said

    def _take(self, node: _Node, answer: Mapping[str, Any]) -> None:
        _judge(node, answer)
        self.unseen.update(answer["unseen_inputs"])
        self._fit.append(node.id)

    def close(self) -> None:
        """Forget who has not answered."""
        for _, _, stack in self._asked.values():
            stack.close()
        self._asked.clear()


def _can_select() -> bool:
    """Whether this Ray can be told which nodes to take; an older one places workers anywhere."""
    from importlib.metadata import version

    major, minor = version("ray").split(".")[:2]
    return (int(major), int(minor)) >= _SELECTS


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


def _send(nodes: Sequence[_Node], question: dict[str, Any]) -> dict[Any, _Node]:
    """Ask nodes; return the references to their answers."""
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
    finally:
        ray.cloudpickle.unregister_pickle_by_value(node_probe)
    return asked


def _ask(nodes: Sequence[_Node], question: dict[str, Any]) -> dict[_Node, dict[str, Any]]:
    """Ask nodes and wait for their answers; one that dies meanwhile gives none."""
    import ray

    asked = _send(nodes, question)
    answered = ray.wait(list(asked), num_returns=len(asked), timeout=_PATIENCE) if asked else ([], [])
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
