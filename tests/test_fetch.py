"""Weights by address: transfers that break, files that are not what they say, two processes at once."""

from __future__ import annotations

import fcntl
import hashlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from zooport.export_core.cache import cache_root
from zooport.export_core.checkpoints import read_weights, remote, versions
from zooport.export_core.checkpoints.fetch import address_of, cache_path, fetch
from zooport.export_core.checkpoints.remote import TransferError
from zooport.export_core.failures import Failure
from zooport.export_core.sources import CheckpointSource
from zooport.jobs.cached_weights import outdated
from zooport.jobs.fetching import fetch_weights
from zooport.jobs.values import ExportTarget
from zooport.tests.bucket import Bucket

CONTENT = bytes(range(256)) * 4096  # 1 MiB
NAME = f"model_final_{hashlib.md5(CONTENT).hexdigest()[:6]}.pkl"


@dataclass
class Server:
    """A local HTTP server whose behaviour a test sets and whose requests it reads afterwards."""

    url: str = ""
    content: bytes = CONTENT
    etag: str = '"one"'
    modified: str = ""
    heads: int = 0
    head_status: int = 200
    status: int = 200
    ranges: bool = True
    size_known: bool = True
    break_after: list[int] = field(default_factory=list)  # bytes of body sent by the next GETs before a break
    gets: list[str] = field(default_factory=list)
    sent: int = 0


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's state says."""

    state: ClassVar[Server]

    def do_HEAD(self) -> None:
        self.state.heads += 1
        if self.state.head_status != 200:
            self.send_error(self.state.head_status)
            return
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.state.gets.append(self.headers.get("Range", ""))
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        if self.state.status != 200:
            self.send_error(self.state.status)
            return
        wanted = self.headers.get("Range", "") if self.state.ranges else ""
        body = self.state.content
        if wanted:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            body = body[int(start) : int(end) + 1]
        self.send_response(206 if wanted else 200)
        if self.state.size_known:
            self.send_header("Content-Length", str(len(body)))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(self.state.content)}")
        if self.state.etag:
            self.send_header("ETag", self.state.etag)
        if self.state.modified:
            self.send_header("Last-Modified", self.state.modified)
        self.end_headers()
        if with_body:
            self.send(body)

    def send(self, body: bytes) -> None:
        stop = self.state.break_after.pop(0) if self.state.break_after else len(body)
        self.state.sent += len(body[:stop])
        self.wfile.write(body[:stop])
        if stop < len(body):
            self.connection.close()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Keep the test's output clean."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (Handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(remote, "BLOCK", 1 << 18)
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOOPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*.part"))


def test_fetched_once_and_then_local(server: Server, cache: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = fetch(f"{server.url}/zoo/{NAME}", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache)
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert leftovers(cache) == []
    asked = len(server.gets)
    server.status = 500
    assert fetch(f"{server.url}/zoo/{NAME}") == path
    assert len(server.gets) == asked


def test_a_broken_transfer_continues_where_it_stopped(server: Server, cache: Path) -> None:
    block = remote.BLOCK
    server.break_after = [block, 1000, 1000]
    path = fetch(f"{server.url}/{NAME}")
    assert path.read_bytes() == CONTENT
    assert server.gets.count(f"bytes=0-{block - 1}") == 1, "what had arrived was asked for again"
    assert server.sent == len(CONTENT) + 2000


def test_a_later_call_continues_what_an_earlier_one_left(server: Server, cache: Path) -> None:
    server.break_after = [remote.BLOCK, remote.BLOCK] + [0] * remote.ATTEMPTS
    with pytest.raises(Failure) as caught:
        fetch(f"{server.url}/{NAME}")
    assert caught.value.code == "fetch.failed"
    assert caught.value.retryable
    assert len(leftovers(cache)) == 1
    server.break_after.clear()
    server.gets.clear()
    assert fetch(f"{server.url}/{NAME}").read_bytes() == CONTENT
    assert server.gets[0].startswith(f"bytes={2 * remote.BLOCK}-")
    assert leftovers(cache) == []


def test_what_arrived_of_another_version_does_not_count(server: Server, cache: Path) -> None:
    old = CONTENT[::-1]
    server.content = old
    server.break_after = [remote.BLOCK] + [0] * remote.ATTEMPTS
    with pytest.raises(Failure):
        fetch(f"{server.url}/weights.pth")
    server.content, server.etag = CONTENT, '"two"'
    server.break_after.clear()
    assert fetch(f"{server.url}/weights.pth").read_bytes() == CONTENT
    assert leftovers(cache) == []


@pytest.mark.parametrize("size_known", [True, False])
def test_a_server_that_cannot_continue_is_read_from_the_start(
    server: Server, cache: Path, size_known: bool
) -> None:
    server.ranges, server.size_known = False, size_known
    server.break_after = [remote.BLOCK + 5] if size_known else []
    assert fetch(f"{server.url}/{NAME}").read_bytes() == CONTENT


def test_content_that_contradicts_its_name_is_refused_and_removed(server: Server, cache: Path) -> None:
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(Failure) as caught:
        fetch(f"{server.url}/{NAME}")
    assert caught.value.code == "checkpoint.corrupt"
    assert not cache_path(f"{server.url}/{NAME}").exists()
    assert leftovers(cache) == []


def test_a_damaged_continuation_is_fetched_anew(server: Server, cache: Path) -> None:
    server.break_after = [remote.BLOCK] + [0] * remote.ATTEMPTS
    with pytest.raises(Failure):
        fetch(f"{server.url}/{NAME}")
    (part,) = cache.rglob("*.part")
    part.write_bytes(b"x" * part.stat().st_size)
    server.break_after.clear()
    assert fetch(f"{server.url}/{NAME}").read_bytes() == CONTENT


def test_a_cached_file_that_rotted_is_named(server: Server, cache: Path) -> None:
    path = fetch(f"{server.url}/{NAME}")
    path.write_bytes(b"rotten")
    with pytest.raises(Failure) as caught:
        fetch(f"{server.url}/{NAME}")
    assert caught.value.code == "checkpoint.corrupt"
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><title>Sign in</title>", "a web page"),
        (b"\r\n  <html>", "a web page"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
        (b'{"message": "token expired"}', "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"", "nothing"),
    ],
)
@pytest.mark.parametrize("name", ["model_final.pkl", NAME])
def test_a_page_sent_in_place_of_weights_is_not_kept(
    server: Server, cache: Path, content: bytes, said: str, name: str
) -> None:
    server.content = content
    with pytest.raises(Failure) as caught:
        fetch(f"{server.url}/{name}?token=secret")
    assert caught.value.code == "fetch.failed"
    assert said in caught.value.message
    assert "login" in caught.value.hint
    assert "secret" not in str(caught.value)
    assert leftovers(cache) == []
    server.content, server.etag = CONTENT, '"two"'
    assert fetch(f"{server.url}/{name}?token=secret").read_bytes() == CONTENT


@pytest.mark.parametrize("length", [0x3C, 0x7B])
def test_a_length_that_looks_like_text_is_no_page(server: Server, cache: Path, length: int) -> None:
    server.content = length.to_bytes(8, "little") + b"{" + b" " * (length - 2) + b"}"
    assert fetch(f"{server.url}/model.safetensors").read_bytes() == server.content


@pytest.mark.parametrize("content", [b"<html>", b"", b"\x80\x02}"])
def test_what_is_wrong_with_a_cached_file_says_which_to_remove(
    cache: Path, tmp_path: Path, content: bytes
) -> None:
    place = cache_path("https://host/model_final.pkl?signature=secret")
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    with pytest.raises(Failure) as caught:
        read_weights(place)
    assert caught.value.code == "checkpoint.corrupt"
    assert f"remove {place}" in caught.value.hint
    (tmp_path / "own.pkl").write_bytes(content)
    with pytest.raises(Failure) as caught:
        read_weights(tmp_path / "own.pkl")
    assert "remove" not in caught.value.hint


@pytest.mark.parametrize(
    ("status", "code", "requests"),
    [
        (404, "checkpoint.missing", 1),
        (403, "fetch.failed", 1),
        (503, "fetch.failed", remote.ATTEMPTS),
    ],
)
def test_what_the_server_answers_decides(
    server: Server, cache: Path, status: int, code: str, requests: int
) -> None:
    server.status = status
    with pytest.raises(Failure) as caught:
        fetch(f"{server.url}/{NAME}?signature=secret")
    assert caught.value.code == code
    assert str(status) in caught.value.message
    assert "secret" not in str(caught.value)
    assert len(server.gets) == requests


def test_without_network_the_error_names_the_file_and_its_place(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOOPORT_DETECTRON2_URL", "http://127.0.0.1:1/detectron2")
    url = "detectron2://Misc/semantic/1/model_final_450694.pkl"
    with pytest.raises(Failure) as caught:
        fetch(url)
    place = cache / "detectron2" / "Misc" / "semantic" / "1" / "model_final_450694.pkl"
    assert caught.value.code == "fetch.failed"
    assert url in caught.value.message
    assert "\n" not in str(caught.value)
    assert "no connection to 127.0.0.1:1" in caught.value.message
    assert str(place) in caught.value.hint
    assert place == cache_path(url)


def test_a_server_without_connection_is_asked_once_for_many_files(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(url: str, *arguments: object) -> Path:
        asked.append(url)
        raise TransferError("no connection", unconnected=True)

    monkeypatch.setattr("zooport.export_core.checkpoints.fetch.download", download)
    silent: set[str] = set()
    for name in ("a", "b"):
        with pytest.raises(Failure) as caught:
            fetch(f"https://one.host/{name}.pth", silent=silent)
        assert caught.value.code == "fetch.failed"
        assert f"one.host/{name}.pth" in caught.value.message
        assert f"{name}.pth" in caught.value.hint
    with pytest.raises(Failure):
        fetch("https://other.host/a.pth", silent=silent)
    assert asked == ["https://one.host/a.pth", "https://other.host/a.pth"]


def test_a_file_placed_by_hand_needs_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOOPORT_DETECTRON2_URL", "http://127.0.0.1:1/detectron2")
    place = cache_path(f"detectron2://Misc/{NAME}")
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert fetch(f"detectron2://Misc/{NAME}") == place


def test_detectron2_addresses_follow_the_mirror(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOOPORT_DETECTRON2_URL", f"{server.url}/mirror/")
    assert fetch(f"detectron2://Misc/{NAME}").read_bytes() == CONTENT


def test_two_processes_fetch_a_file_once(server: Server, cache: Path) -> None:
    program = (
        f"from zooport.export_core.checkpoints.fetch import fetch; print(fetch({server.url!r} + '/{NAME}'))"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    paths = {child.communicate()[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0]
    assert [Path(path).read_bytes() for path in paths] == [CONTENT]
    assert server.sent == len(CONTENT)


def test_a_file_that_another_process_is_fetching_is_waited_for(server: Server, cache: Path) -> None:
    place = cache_path(f"{server.url}/{NAME}")
    place.parent.mkdir(parents=True)
    with ThreadPoolExecutor(1) as pool:
        with place.with_name(f".{NAME}.lock").open("a") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            waiting = pool.submit(fetch, f"{server.url}/{NAME}")
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            place.write_bytes(CONTENT)
        assert waiting.result(timeout=60) == place
    assert server.gets == []


def test_a_file_address_is_the_file(tmp_path: Path) -> None:
    path = tmp_path / "with space.pth"
    path.write_bytes(CONTENT)
    assert fetch(path.as_uri()) == path
    with pytest.raises(Failure) as caught:
        fetch((tmp_path / "absent.pth").as_uri())
    assert caught.value.code == "checkpoint.missing"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/a.pth",
        "https://host/",
        "https://host",
        "https://host/a/../../b.pth",
        "detectron2://",
        "://x",
    ],
)
def test_an_address_that_cannot_be_fetched_is_refused(url: str) -> None:
    with pytest.raises(Failure) as caught:
        fetch(url)
    assert caught.value.code == "config.invalid"


@pytest.mark.parametrize(
    "url", ["detectron2://Misc/a/1/model.pkl", "https://host:8080/x/y%20z.pth", "s3://bucket/key.pth"]
)
def test_a_place_in_the_cache_tells_its_address(url: str, cache: Path) -> None:
    assert address_of(cache_path(url)) == url


def test_other_paths_have_no_address(cache: Path, tmp_path: Path) -> None:
    assert address_of(tmp_path / "model.pth") is None
    assert address_of(cache / "https") is None
    assert address_of(cache_path("https://host/a.pth?signature=secret")) is None


def test_addresses_that_differ_only_in_their_query_are_two_files() -> None:
    assert cache_path("https://h/a.pth?v=1") != cache_path("https://h/a.pth?v=2")
    assert cache_path("https://h/a.pth?v=1").name == "a.pth"


def test_a_cache_that_cannot_be_written_is_a_disk_failure(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Failure) as caught:
        fetch(f"{server.url}/{NAME}", tmp_path / "file")
    assert caught.value.code == "resource.disk"


def test_a_missing_backend_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_backend(*arguments: object, **options: object) -> object:
        raise ImportError("Install s3fs to access S3", name="s3fs")

    monkeypatch.setattr("fsspec.filesystem", without_backend)
    with pytest.raises(Failure) as caught:
        fetch("s3://bucket/zoo/model.pth", tmp_path)
    assert caught.value.code == "dependency.missing"
    assert "zooport[s3]" in caught.value.hint


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ZOOPORT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "zooport"
    monkeypatch.setenv("ZOOPORT_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"


OTHER = CONTENT[::-1]
SOME_TIME_AGO, LATER = "Sat, 01 Jan 2022 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"


def planned(url: str) -> ExportTarget:
    """What comes of a target with these weights when a run is planned."""
    weights = cache_path(url)
    source = CheckpointSource("m", Path("c.yaml"), weights)
    (target,) = fetch_weights([ExportTarget(source, "onnx", retries=0)], {weights: url}, base=0.0)
    return target


def content_of(target: ExportTarget) -> bytes:
    assert target.refusal is None
    return target.checkpoint.weights.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"etag": '"two"'},
        {"etag": "", "modified": "Sun, 02 Jan 2022 00:00:00 GMT"},
        {"etag": "", "content": OTHER + b"!"},
    ],
    ids=["ETag", "Last-Modified", "length"],
)
def test_weights_that_changed_on_the_server_are_fetched_again(
    server: Server, cache: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    url = f"{server.url}/model_final.pkl"
    server.etag, server.modified = change.get("etag", "") and server.etag, SOME_TIME_AGO
    assert content_of(planned(url)) == CONTENT
    server.gets.clear()
    assert content_of(planned(url)) == CONTENT
    assert server.gets == [], "it was fetched although it had not changed"
    server.content = OTHER
    for name, value in change.items():
        setattr(server, name, value)
    assert content_of(planned(url)) == server.content
    server.gets.clear()
    assert content_of(planned(url)) == server.content
    assert server.gets == []
    assert capsys.readouterr().err == ""


def test_another_time_of_the_same_content_changes_nothing(server: Server, cache: Path) -> None:
    url = f"{server.url}/model_final.pkl"
    server.modified = SOME_TIME_AGO
    planned(url)
    server.modified, server.etag = LATER, f"W/{server.etag}"
    server.gets.clear()
    assert content_of(planned(url)) == CONTENT
    assert server.gets == []


@pytest.mark.parametrize(
    ("content", "modified", "kept"),
    [(CONTENT, SOME_TIME_AGO, True), (OTHER, LATER, False), (OTHER + b"!", SOME_TIME_AGO, False)],
    ids=["as there", "older", "other length"],
)
def test_a_cached_file_of_unknown_version_is_compared_by_length_and_time(
    server: Server, cache: Path, content: bytes, modified: str, kept: bool
) -> None:
    url = f"{server.url}/model_final.pkl"
    place = cache_path(url)
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    server.content, server.modified = content, modified
    assert content_of(planned(url)) == content
    assert (server.sent == 0) is kept
    server.content, server.etag = CONTENT[:-1] + b"?", '"two"'
    assert content_of(planned(url)) == server.content, "what was said when it was compared is not known"


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_server_that_does_not_say_leaves_the_copy_in_use(
    server: Server, cache: Path, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    url = f"{server.url}/model_final.pkl?signature=secret"
    planned(url)
    server.status = status
    assert content_of(planned(url)) == CONTENT
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"the server answers {status}" in said
    assert "the copy in the cache is used" in said
    assert "secret" not in said


def test_a_server_that_refuses_head_is_asked_otherwise(server: Server, cache: Path) -> None:
    url = f"{server.url}/model_final.pkl"
    server.head_status = 405
    planned(url)
    assert content_of(planned(url)) == CONTENT
    server.content, server.etag = OTHER, '"two"'
    assert content_of(planned(url)) == OTHER


def test_without_network_all_copies_are_used_and_one_line_says_so(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = [f"http://127.0.0.1:1/{number}.pkl" for number in range(20)]
    targets = []
    for url in urls:
        place = cache_path(url)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(CONTENT)
        targets.append(ExportTarget(CheckpointSource("m", Path("c.yaml"), place), "onnx"))
    assert [target.refusal for target in fetch_weights(targets)] == [None] * 20
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{urls[0]} and 19 more" in said
    assert "no connection to 127.0.0.1:1" in said


def test_a_server_that_never_answers_is_waited_for_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "_ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        urls = [f"http://127.0.0.1:{mute.getsockname()[1]}/{number}.pkl" for number in range(100)]
        for url in urls:
            place = cache_path(url)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(CONTENT[:10])
        started = time.monotonic()
        assert outdated({cache_path(url): url for url in urls}) == {}
        assert time.monotonic() - started < 4  # one after the other they would take forty seconds
    assert f"{urls[0]} and 99 more" in capsys.readouterr().err


class S3(Bucket):
    protocol = "s3"


def test_an_object_that_was_overwritten_is_fetched_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOOPORT_TEST_BUCKET", str(tmp_path))
    monkeypatch.setattr(remote, "_filesystem", lambda *_: S3())
    key = tmp_path / "objects" / "models" / "model_final.pth"
    key.parent.mkdir(parents=True)
    for content in (CONTENT, CONTENT, OTHER):
        key.write_bytes(content)
        assert content_of(planned("s3://models/model_final.pth")) == content


def test_a_new_version_that_does_not_arrive_fails_its_exports(server: Server, cache: Path) -> None:
    url = f"{server.url}/model_final.pkl"
    planned(url)
    server.content, server.etag = OTHER, '"two"'
    server.break_after = [0] * (2 * remote.ATTEMPTS)
    refusal = planned(url).refusal
    assert refusal is not None
    assert (refusal.code, refusal.retryable) == ("fetch.failed", True)
    assert "not what is there now" in refusal.hint
    server.break_after.clear()
    assert content_of(planned(url)) == OTHER


def test_a_login_page_in_place_of_a_new_version_leaves_the_copy_in_use(
    server: Server, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{server.url}/model_final.pkl"
    planned(url)
    server.content, server.etag = b"<html>Sign in</html>", '"page"'
    assert content_of(planned(url)) == CONTENT
    assert "a web page or XML in place of weights; the copy in the cache is used" in capsys.readouterr().err


def test_nobody_is_asked_about_what_is_named_by_its_md5(server: Server, cache: Path, tmp_path: Path) -> None:
    planned(f"{server.url}/{NAME}")
    heads, gets = server.heads, len(server.gets)
    server.etag = '"two"'
    assert content_of(planned(f"{server.url}/{NAME}")) == CONTENT
    (tmp_path / "own.pkl").write_bytes(CONTENT)
    assert content_of(planned((tmp_path / "own.pkl").as_uri())) == CONTENT
    assert (server.heads, len(server.gets)) == (heads, gets)


@pytest.mark.parametrize(
    ("told", "current"),
    [
        ({}, True),
        ({"size": "3", "LastModified": "2022-01-01 00:00:00+00:00"}, True),
        ({"size": "3", "LastModified": "2100-01-01 00:00:00+00:00"}, False),
        ({"updated": "2100-01-01T00:00:00.000Z", "generation": "1"}, False),
        ({"mtime": "4102444800.0"}, False),
        ({"Last-Modified": "some day"}, True),
        ({"size": "4"}, False),
    ],
)
def test_every_storage_has_its_own_words_for_a_time(
    tmp_path: Path, told: dict[str, str], current: bool
) -> None:
    (tmp_path / "model.pkl").write_bytes(b"abc")
    assert versions.is_current(tmp_path / "model.pkl", told) is current
