"""A function runs in a process of its own; whatever it does there ends as a value or a typed failure."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from zooport.export_core.failures import Failure, Stage
from zooport.export_core.isolation import Cancellation, ForkServer, run_isolated
from zooport.export_core.isolation import server as protocol
from zooport.export_core.isolation.memory import held
from zooport.tests import isolated_functions as functions
from zooport.tests.patience import gone, wait_until
from zooport.tests.stopped_clock import StoppedClock

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """A server that has imported nothing, so that these tests start at once."""
    server = ForkServer(preload=())
    yield server
    server.close()


@pytest.fixture
def run(server: ForkServer, tmp_path: Path) -> Callable[..., Any]:
    def call(function: Any, *args: Any, timeout: float | None = 60, **options: Any) -> Any:
        return run_isolated(function, *args, timeout=timeout, log=tmp_path / "log", server=server, **options)

    return call


def failure_of(call: Callable[[], Any]) -> Failure:
    with pytest.raises(Failure) as caught:
        call()
    return caught.value


def wait_for(path: Path) -> str:
    wait_until(lambda: path.exists() and path.read_text() != "")
    return path.read_text()


def test_the_value_comes_back(run: Callable[..., Any]) -> None:
    value = {"metrics": {"bbox/AP": float("inf")}, "path": Path("x"), "none": None}
    assert run(functions.echo, value) == value


def test_a_function_can_be_named_without_importing_it(run: Callable[..., Any]) -> None:
    assert run("zooport.tests.isolated_functions:echo", 3) == 3
    assert failure_of(lambda: run("zooport.no_such_module:f")).code == "worker.error"


@pytest.mark.parametrize("size", [1 << 16, 30_000_001])
def test_large_values_travel_both_ways(run: Callable[..., Any], size: int) -> None:
    assert run(functions.big, size) == b"x" * size
    assert run(functions.echo, b"z" * size) == b"z" * size


def test_the_process_is_on_its_own(run: Callable[..., Any]) -> None:
    facts = run(functions.facts)
    assert facts["pid"] != os.getpid()
    assert facts["pid"] == facts["group"] == facts["session"]
    assert facts["stdin"] == os.devnull
    assert facts["read"] == ""
    assert facts["system_threads"] == 1
    assert facts["directory"] == str(Path.cwd())
    assert run(functions.facts)["pid"] != facts["pid"]


def test_no_descriptor_of_another_job_is_inherited(run: Callable[..., Any], tmp_path: Path) -> None:
    alone = run(functions.facts)["descriptors"]
    cancellation = Cancellation()
    hanging = lambda: run(  # noqa: E731
        functions.mark_and_hang, str(tmp_path / "pid"), cancellation=cancellation
    )
    thread = threading.Thread(target=lambda: failure_of(hanging))
    thread.start()
    wait_for(tmp_path / "pid")
    beside = run(functions.facts)["descriptors"]
    cancellation.set()
    thread.join()
    assert len(beside) == len(alone)


def test_everything_it_prints_is_in_the_log(run: Callable[..., Any], tmp_path: Path) -> None:
    run(functions.speak)
    run(functions.speak)
    log = (tmp_path / "log").read_text()
    for words in ("from python", "to the error stream", "from a child"):
        assert log.count(words) == 2


def test_stages_are_reported_as_they_begin(run: Callable[..., Any]) -> None:
    seen: list[Stage] = []
    assert run(functions.stages, "load", "export", on_stage=seen.append) == "done"
    assert seen == [Stage.LOAD, Stage.EXPORT]


def test_a_segmentation_fault_names_the_signal_and_leaves_a_trace(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    failure = failure_of(lambda: run(functions.segfault))
    assert failure.code == "worker.crashed"
    assert "SIGSEGV" in failure.message
    assert failure.stage is Stage.EXPORT
    assert failure.retryable
    assert str(tmp_path / "log") in failure.hint
    assert "in segfault" in (tmp_path / "log").read_text()


def test_an_exit_names_the_code(run: Callable[..., Any]) -> None:
    failure = failure_of(lambda: run(functions.leave, 3))
    assert failure.code == "worker.crashed"
    assert "exit code 3" in failure.message
    assert failure.details["exit_code"] == 3
    assert failure.details["log_tail"][-1] == "last words"


def test_an_exit_with_zero_is_no_success(run: Callable[..., Any]) -> None:
    assert failure_of(lambda: run(functions.leave, 0)).code == "worker.crashed"


def test_sys_exit_is_an_error_and_not_the_end_of_the_caller(run: Callable[..., Any]) -> None:
    failure = failure_of(lambda: run(functions.leave_by_exit))
    assert failure.code == "worker.error"
    assert "SystemExit" in failure.message


def test_a_kill_is_a_crash(run: Callable[..., Any]) -> None:
    failure = failure_of(lambda: run(functions.die_by, int(signal.SIGKILL)))
    assert failure.code == "worker.crashed"
    assert failure.details["signal"] == "SIGKILL"


def test_a_kill_while_memory_ran_out_is_lack_of_memory(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter((4, 5))
    monkeypatch.setattr("zooport.export_core.isolation.out_of_memory_kills", lambda: next(counts))
    assert failure_of(lambda: run(functions.die_by, int(signal.SIGKILL))).code == "resource.memory"


@pytest.mark.parametrize("function", [functions.hang, functions.hang_holding_the_interpreter])
def test_a_hang_is_stopped_at_its_deadline(
    run: Callable[..., Any], tmp_path: Path, clock: StoppedClock, function: Callable[..., Any]
) -> None:
    failure = failure_of(lambda: run(function, timeout=0.5, on_stage=lambda _: clock.go()))
    assert failure.code == "resource.timeout"
    assert failure.stage is not None
    assert "0.5 s" in failure.message
    assert str(failure.stage) in failure.message
    assert f"in {function.__name__}" in (tmp_path / "log").read_text()  # where it hung


@pytest.mark.parametrize("seconds", [0.0, 0.4])  # that the first stage takes
def test_a_stage_has_a_deadline_of_its_own(run: Callable[..., Any], seconds: float) -> None:
    deadlines = {"load": 60.0, "export": 0.3, "verify": 0.1}
    failure = failure_of(
        lambda: run(functions.dawdle_in, "load", "export", (seconds, 600), deadlines=deadlines)
    )
    assert failure.code == "resource.timeout"
    assert failure.stage is Stage.EXPORT
    assert "deadline of 0.3 s for stage export" in failure.message


def test_stages_within_their_deadlines_are_not_summed(run: Callable[..., Any], clock: StoppedClock) -> None:
    clock.go()
    stages, deadlines = ("load", "export"), {"load": 60.0, "export": 60.0}
    taking = {"deadlines": deadlines, "on_stage": lambda _: clock.skip(40)}
    assert run(functions.dawdle_in, *stages, (0, 0), timeout=200, **taking) == "done"
    failure = failure_of(lambda: run(functions.dawdle_in, *stages, (0, 600), timeout=60, **taking))
    assert "deadline of 60 s in stage export" in failure.message


def test_a_process_that_does_not_run_when_its_time_is_up_still_tells_where_it_was(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zooport.export_core.isolation.process._SIGNAL_TIME", 60.0)
    marker = tmp_path / "pid"

    def go_on(process: psutil.Process) -> None:
        wait_until(lambda: is_pending(process.pid, signal.SIGUSR1))
        time.sleep(0.6)
        process.resume()

    def stop(_: Stage) -> None:
        process = psutil.Process(int(marker.read_text()))
        process.suspend()
        threads.append(threading.Thread(target=go_on, args=(process,)))
        threads[0].start()

    threads: list[threading.Thread] = []
    failure = failure_of(
        lambda: run(functions.mark_and_hang_in_export, str(marker), deadlines={"export": 0.2}, on_stage=stop)
    )
    threads[0].join()
    assert failure.code == "resource.timeout"
    assert "in mark_and_hang_in_export" in (tmp_path / "log").read_text()


def is_pending(pid: int, number: signal.Signals) -> bool:
    (line,) = re.findall(r"ShdPnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(line, 16) & 1 << (number - 1))


def test_a_function_that_reports_nothing_is_in_the_stage_it_began_in(run: Callable[..., Any]) -> None:
    pid = "/dev/null"
    failure = failure_of(lambda: run(functions.mark_and_hang, pid, deadlines={"load": 0.3}, stage=Stage.LOAD))
    assert (failure.code, failure.stage) == ("resource.timeout", Stage.LOAD)


class TestMemory:
    """A process is stopped at its limit, long before the kernel would look for somebody to kill."""

    LIMIT = 200 << 20

    @pytest.mark.parametrize("function", [functions.leak, functions.leak_in_a_child])
    def test_a_leak_is_stopped_with_its_numbers(
        self, run: Callable[..., Any], tmp_path: Path, function: Callable[..., Any]
    ) -> None:
        failure = failure_of(lambda: run(function, 4 << 20, 3 * self.LIMIT, memory=self.LIMIT))
        assert failure.code == "resource.memory"
        assert failure.retryable
        assert "its limit is 200 MiB" in failure.message
        assert failure.details["limit_bytes"] == self.LIMIT
        assert self.LIMIT < failure.details["held_bytes"] < 4 * self.LIMIT
        assert f"in {function.__name__}" in (tmp_path / "log").read_text()

    def test_mapped_files_do_not_count(self, run: Callable[..., Any], tmp_path: Path) -> None:
        assert run(functions.map_a_file, str(tmp_path / "large"), 3 * self.LIMIT, memory=self.LIMIT) == 0

    def test_what_stays_below_is_not_disturbed(self, run: Callable[..., Any]) -> None:
        assert len(run(functions.big, self.LIMIT // 8, memory=self.LIMIT)) == self.LIMIT // 8

    def test_a_process_that_ends_while_it_is_looked_at_holds_nothing(self) -> None:
        for _ in range(300):
            process = subprocess.Popen(["/bin/true"])
            reaper = threading.Thread(target=process.wait)
            reaper.start()
            while reaper.is_alive():
                held(process.pid)
            assert held(process.pid) == 0


@pytest.mark.parametrize("mode", ["group", "session", "crash"])
def test_what_a_job_started_is_gone_with_it(run: Callable[..., Any], tmp_path: Path, mode: str) -> None:
    file = tmp_path / "pid"
    if mode == "crash":
        failure_of(lambda: run(functions.leave_children, str(file), mode))
    else:
        run(functions.leave_children, str(file), mode)
    assert gone(int(file.read_text()))


def test_a_typed_failure_arrives_as_it_was(run: Callable[..., Any]) -> None:
    failure = failure_of(lambda: run(functions.raise_failure))
    assert failure.code == "checkpoint.mismatch"
    assert failure.message == "three are missing"
    assert failure.hint == "look"
    assert failure.details == {"missing": ["a"]}
    assert failure.stage is Stage.LOAD


@pytest.mark.parametrize(("stage", "code"), [("export", "export.failed"), ("verify", "worker.error")])
def test_an_unforeseen_error_is_one_line_and_its_trace_is_in_the_log(
    run: Callable[..., Any], tmp_path: Path, stage: str, code: str
) -> None:
    failure = failure_of(lambda: run(functions.raise_error, stage))
    assert failure.code == code
    assert failure.message == "ValueError: first line second line"
    assert "in raise_error" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("function", [functions.raise_memory_error, functions.allocate_with_torch])
def test_a_failed_allocation_is_lack_of_memory(run: Callable[..., Any], function: Callable[..., Any]) -> None:
    assert failure_of(lambda: run(function)).code == "resource.memory"


def test_a_full_disk_is_named_with_the_path(run: Callable[..., Any]) -> None:
    failure = failure_of(lambda: run(functions.raise_disk_full, "/some/file"))
    assert failure.code == "resource.disk"
    assert "/some/file" in failure.message
    assert "no space left" in failure.message


@pytest.mark.parametrize("function", [functions.return_unpicklable, functions.raise_unpicklable])
def test_what_cannot_travel_is_a_typed_error(run: Callable[..., Any], function: Callable[..., Any]) -> None:
    assert failure_of(lambda: run(function)).code == "worker.error"


def test_a_crash_after_much_output_does_not_block(run: Callable[..., Any]) -> None:
    failure = failure_of(lambda: run(functions.flood_then_crash))
    assert failure.details["signal"] == "SIGABRT"


def test_a_log_that_cannot_be_written_is_a_disk_failure(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = tmp_path / "file" / "log"
    failure = failure_of(lambda: run_isolated(functions.facts, timeout=60, log=log, server=server))
    assert failure.code == "resource.disk"
    assert str(tmp_path) in failure.message


def test_a_log_that_is_a_directory_is_a_typed_failure(server: ForkServer, tmp_path: Path) -> None:
    failure = failure_of(lambda: run_isolated(functions.facts, timeout=60, log=tmp_path, server=server))
    assert failure.code == "resource.disk"
    assert str(tmp_path) in failure.message


def test_many_at_once_do_not_disturb_each_other(server: ForkServer, tmp_path: Path) -> None:
    results: dict[int, Any] = {}

    def one(number: int) -> None:
        function = functions.segfault if number % 4 == 0 else functions.echo
        args = () if number % 4 == 0 else (number,)
        log = tmp_path / f"{number}.log"
        try:
            results[number] = run_isolated(function, *args, timeout=60, log=log, server=server)
        except Failure as failure:
            results[number] = failure.code

    threads = [threading.Thread(target=one, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: "worker.crashed" if n % 4 == 0 else n for n in range(24)}


_CALLER = """
import sys
from pathlib import Path
from zooport.export_core.isolation import ForkServer, run_isolated
from zooport.tests.isolated_functions import mark_and_hang

server = ForkServer(Path(sys.argv[1]), preload=())
run_isolated(mark_and_hang, sys.argv[2], timeout=None, log=Path(sys.argv[3]), server=server)
"""


def test_a_killed_caller_leaves_neither_jobs_nor_server(tmp_path: Path) -> None:
    directory = Path(ForkServer(preload=()).directory)  # short enough for a socket
    marker = tmp_path / "pid"
    caller = subprocess.Popen(
        [sys.executable, "-c", _CALLER, str(directory), str(marker), str(tmp_path / "log")]
    )
    job = int(wait_for(marker))
    server_pid = psutil.Process(job).ppid()
    caller.kill()
    caller.wait()
    assert gone(job)
    assert gone(server_pid)
    assert not directory.exists()


def test_a_killed_server_is_one_failure_and_then_replaced(tmp_path: Path) -> None:
    server = ForkServer(preload=())
    marker = tmp_path / "pid"
    failures: list[Failure] = []

    def call() -> None:
        hanging = lambda: run_isolated(  # noqa: E731
            functions.mark_and_hang, str(marker), timeout=60, log=tmp_path / "log", server=server
        )
        failures.append(failure_of(hanging))

    thread = threading.Thread(target=call)
    thread.start()
    job = int(wait_for(marker))
    os.kill(psutil.Process(job).ppid(), signal.SIGKILL)
    thread.join()
    assert failures[0].code == "worker.crashed"
    assert gone(job)
    assert run_isolated(functions.echo, 1, timeout=60, log=tmp_path / "log", server=server) == 1
    server.close()


def test_a_cancelled_job_is_killed_and_those_after_it_do_not_begin(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    cancellation, marker = Cancellation(), tmp_path / "pid"

    def cancel() -> None:
        wait_for(marker)
        cancellation.set()
        cancellation.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    failure = failure_of(lambda: run(functions.mark_and_hang, str(marker), cancellation=cancellation))
    thread.join()
    assert failure.code == "run.cancelled"
    assert gone(int(marker.read_text()))
    assert failure_of(lambda: run(functions.hang, cancellation=cancellation)).code == "run.cancelled"


def test_two_clients_of_one_directory_share_a_server(tmp_path: Path) -> None:
    first = ForkServer(preload=())
    second = ForkServer(first.directory, preload=())
    parents = []
    for server in (first, second):
        server.wait()
        pid = run_isolated(_parent, timeout=60, log=tmp_path / "log", server=server)
        parents.append(pid)
    first.close()
    parents.append(run_isolated(_parent, timeout=60, log=tmp_path / "log", server=second))
    second.close()
    assert len(set(parents)) == 1
    assert gone(parents[0])


_parent = "zooport.tests.isolated_functions:parent"


def test_a_directory_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    directory = Path(ForkServer(preload=()).directory)
    directory.chmod(0o755)
    failure = failure_of(ForkServer(directory, preload=()).start)
    assert "private" in failure.message
    directory.rmdir()
    directory.write_text("a file")
    failure = failure_of(ForkServer(directory, preload=()).start)
    assert "private" in failure.message
    directory.unlink()


def test_a_directory_that_an_ending_server_removes_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ForkServer(preload=())
    removed: list[Path] = []
    lstat = Path.lstat

    def remove_once(path: Path) -> os.stat_result:
        if path == server.directory and not removed:
            removed.append(path)
            protocol.remove(path)
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", remove_once)
    server.wait()
    server.close()
    assert removed == [server.directory]


def test_a_server_that_ends_cannot_be_joined_and_leaves_its_lock_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "server"
    (directory / "inputs" / "r-1").mkdir(parents=True)
    for name in (protocol.LOCK_NAME, protocol.LOG_NAME, protocol.SOCKET_NAME, "inputs/r-1/config.yaml"):
        (directory / name).touch()
    removed: list[str] = []

    def noting(remove: Callable[..., None]) -> Callable[..., None]:
        def note(path: str | Path, **options: Any) -> None:
            removed.append(Path(path).name)
            remove(path, **options)

        return note

    monkeypatch.setattr(os, "unlink", noting(os.unlink))
    monkeypatch.setattr(os, "rmdir", noting(os.rmdir))
    protocol.remove(directory)
    assert not directory.exists()
    assert removed[0] == protocol.SOCKET_NAME
    assert removed[-2:] == [protocol.LOCK_NAME, directory.name]
    protocol.remove(directory)  # that of a server which somebody has cleaned up already


@pytest.mark.slow
def test_with_torch_imported_a_process_costs_milliseconds(tmp_path: Path) -> None:
    server = ForkServer()
    server.wait()
    facts = run_isolated(functions.facts, timeout=60, log=tmp_path / "log", server=server)
    server.close()
    assert facts["torch_imported"]
    assert facts["torch_threads"] == 1
    assert facts["system_threads"] == 1  # a fork of a process with threads would not be sound
