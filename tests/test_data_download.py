"""The public file arrives whole or not at all, goes on where it broke off, and says what to do without a network."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data.download import download_intel_lab
from flead.errors import BadDataset, Unavailable

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Site:
    """A web server on 127.0.0.1 whose manners a test can choose."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.ranges = True
        self.break_after: int | None = None
        self.says_length = True
        self.status = 200
        self.asked: list[str | None] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """Keep the tests' output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/data.txt.gz"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers["Range"]
        self.asked.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if start >= len(self.content):
            request.send_error(416)
            return
        body = self.content[start:]
        request.send_response(206 if start else self.status)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.says_length:
            request.send_header("Content-Length", str(len(body)))
        # As some servers describe a .gz file: it must arrive packed all the same
        request.send_header("Content-Encoding", "gzip")
        request.end_headers()
        with suppress(ConnectionError):  # a client may hang up on what it does not want
            request.wfile.write(body[: self.break_after])


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    site = Site()
    thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    site.server.shutdown()
    thread.join()
    site.server.server_close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "data.txt.gz"


def part_of(target: Path) -> Path:
    return target.with_name("data.txt.gz.part")


def fetch(site: Site, target: Path) -> Path:
    return download_intel_lab(target, url=site.url, sha256=SHA256, size=len(CONTENT))


def test_the_file_arrives_whole_and_nothing_else_is_left(site: Site, target: Path) -> None:
    assert fetch(site, target) == target
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_nothing_is_fetched_when_it_is_there(site: Site, target: Path) -> None:
    fetch(site, target)
    fetch(site, target)
    assert len(site.asked) == 1


def test_a_damaged_copy_is_replaced(site: Site, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"\0" * len(CONTENT))
    assert fetch(site, target).read_bytes() == CONTENT


def test_progress_ends_at_the_whole(site: Site, target: Path) -> None:
    seen: list[tuple[int, int]] = []
    download_intel_lab(
        target,
        url=site.url,
        sha256=SHA256,
        size=len(CONTENT),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("says_length", [True, False])
def test_a_download_that_broke_goes_on_where_it_was(site: Site, target: Path, says_length: bool) -> None:
    site.break_after, site.says_length = 100_000, says_length
    with pytest.raises(Unavailable, match=r"try again.* to go on"):
        fetch(site, target)
    assert not target.exists()
    have = part_of(target).stat().st_size
    assert 0 < have <= 100_000
    site.break_after = None
    assert fetch(site, target).read_bytes() == CONTENT
    assert site.asked == [None, f"bytes={have}-"]


def test_a_server_that_cannot_go_on_sends_it_all_again(site: Site, target: Path) -> None:
    site.ranges = False
    target.parent.mkdir()
    part_of(target).write_bytes(b"something" * 100)
    assert fetch(site, target).read_bytes() == CONTENT


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 1])
def test_a_part_that_is_too_much_or_wrong_is_begun_again(site: Site, target: Path, size: int) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(b"\0" * size)
    assert fetch(site, target).read_bytes() == CONTENT
    assert site.asked == [None]


def test_a_part_that_is_whole_needs_no_network(site: Site, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT)
    assert fetch(site, target).read_bytes() == CONTENT
    assert site.asked == []


def test_another_file_is_refused_and_deleted(site: Site, target: Path) -> None:
    site.content = bytes(len(CONTENT))
    with pytest.raises(BadDataset, match="checksum"):
        fetch(site, target)
    assert list(target.parent.iterdir()) == []


def test_a_page_in_place_of_the_file_is_refused_without_losing_what_is_there(site: Site, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT[:1000])
    site.ranges, site.content = False, b"<html>please log in"
    with pytest.raises(BadDataset, match="is not the file"):
        fetch(site, target)
    assert part_of(target).read_bytes() == CONTENT[:1000]


def test_a_stream_without_end_does_not_fill_the_disk(site: Site, target: Path) -> None:
    site.content, site.says_length = CONTENT * 20, False
    with pytest.raises(BadDataset):
        fetch(site, target)
    assert list(target.parent.iterdir()) == []


def test_a_part_that_the_server_has_no_rest_for_is_dropped(site: Site, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT[:1000])
    site.content = CONTENT[:10]
    with pytest.raises(Unavailable, match="HTTP 416"):
        fetch(site, target)
    assert not part_of(target).exists()


def test_a_failing_server_is_named_with_what_to_do_instead(site: Site, target: Path) -> None:
    site.status = 503
    with pytest.raises(Unavailable, match=r"HTTP 503.*--data simulated"):
        fetch(site, target)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/data.txt.gz", "http://[", "nowhere://x"])
def test_without_a_network_one_line_says_so_and_how_to_go_on(
    target: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(Unavailable) as error:
        download_intel_lab(target, url=url)
    message = str(error.value)
    assert url in message
    assert "--data simulated" in message
    assert "--data PATH" in message
    assert "\n" not in message


def test_a_place_that_cannot_be_written_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match=r"cannot be written.*name another place"):
        fetch(site, tmp_path / "file" / "data.txt.gz")
