"""The package index, played by small servers on this machine."""

from __future__ import annotations

import gc
import io
import os
import re
import socket
import stat
import struct
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import requests

from dca.catalogue.mirrors import places
from dca.catalogue.recipes import IndexFile
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.sources import index
from tests.support.web import Place, sha

PROBED = f"/simple/{index.PROBED}/"
CONTENT = os.urandom(700_000)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NETRC", "UV_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    server = Place()
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{server.url}/simple/")
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def cache(tmp_path: Path) -> store.Store:
    return store.Store(tmp_path / "cache")


def pinned(body: bytes = CONTENT, name: str = "thing-1.0.tar.gz") -> IndexFile:
    return IndexFile(package="thing", version="1.0", file=name, sha256=sha(body))


def kept(cache: store.Store) -> list[str]:
    """Every file of the cache, also those under way."""
    return sorted(path.name for path in cache.root.rglob("*") if path.is_file())


# --- where the index is --------------------------------------------------------------------------------------


def test_the_index_is_the_one_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    usual = index.endpoint()
    assert usual.startswith("https://")
    monkeypatch.setenv("PIP_INDEX_URL", "https://one.example/simple")
    assert index.endpoint() == "https://one.example/simple"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://two.example/simple")
    assert index.endpoint() == "https://two.example/simple"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "")
    assert index.endpoint() == "https://one.example/simple"


@pytest.mark.parametrize("status", [200, 404, 403])
def test_an_index_that_answers_can_be_reached(place: Place, status: int) -> None:
    place.odd[PROBED] = lambda to: to.send_error(status) if status != 200 else place.send(to, "text/html", b"")
    assert index.probe() == ""


def test_an_index_that_is_ill_cannot_be_reached(place: Place) -> None:
    place.odd[PROBED] = lambda to: to.send_error(503)
    assert "503" in index.probe()


def test_an_index_that_is_not_there_cannot_be_reached(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://user:secret@127.0.0.1:1/simple/")
    why = index.probe()
    assert "refused" in why
    assert "secret" not in why


# --- finding -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_json", [False, True])
def test_a_pinned_file_is_found(as_json: bool, place: Place) -> None:
    place.offer("thing-1.0.tar.gz", CONTENT, as_json=as_json)
    assert index.find(pinned()).split("#")[0] == f"{place.url}/files/thing-1.0.tar.gz"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_file_of_which_the_index_itself_names_another_hash_is_not_fetched(
    as_json: bool, place: Place, cache: store.Store
) -> None:
    place.offer("thing-1.0.tar.gz", CONTENT, digest="0" * 64, as_json=as_json)
    with pytest.raises(DcaError) as refused:
        index.download(pinned(), cache)
    assert refused.value.code == "DCA-401"
    assert sha(CONTENT) in refused.value.why
    assert "0" * 64 in refused.value.why
    assert place.asked == ["/simple/thing/"]


def test_an_index_that_names_no_hash_is_good_enough(place: Place, cache: store.Store) -> None:
    place.offer("thing-1.0.tar.gz", CONTENT, digest="")
    assert index.download(pinned(), cache).read_bytes() == CONTENT


@pytest.mark.parametrize("offered", [None, "thing-1.1.tar.gz"])
def test_a_file_that_the_index_lacks_has_a_code_of_its_own(
    offered: str | None, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    if offered:
        place.offer(offered, CONTENT)
    monkeypatch.setenv("UV_DEFAULT_INDEX", place.url.replace("http://", "http://user:secret@") + "/simple/")
    with pytest.raises(DcaError) as refused:
        index.find(pinned())
    assert refused.value.code == "DCA-403"
    assert "thing-1.0.tar.gz" in refused.value.what
    assert "secret" not in str(refused.value)


def test_an_index_that_cannot_be_reached_is_named_without_its_password(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://user:secret@127.0.0.1:1/simple/")
    with pytest.raises(DcaError) as refused:
        index.find(pinned())
    assert refused.value.code == "DCA-402"
    assert "http://127.0.0.1:1/simple/" in refused.value.what
    assert "refused" in refused.value.why
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param("application/vnd.pypi.simple.v1+json", b"{}", id="JSON of something else"),
        pytest.param("application/vnd.pypi.simple.v1+json", b"<html>", id="no JSON"),
        pytest.param("image/png", b"\x89PNG", id="a picture"),
        pytest.param(
            "application/vnd.pypi.simple.v1+json",
            b'{"meta": {"api-version": "9.0"}, "name": "thing", "files": []}',
            id="a later version",
        ),
    ],
)
def test_an_answer_that_is_no_index_page_counts_as_unreachable(kind: str, body: bytes, place: Place) -> None:
    place.pages["/simple/thing/"] = (kind, body)
    with pytest.raises(DcaError) as refused:
        index.find(pinned())
    assert refused.value.code == "DCA-402"


def test_an_index_that_is_ill_counts_as_unreachable(place: Place) -> None:
    place.odd["/simple/thing/"] = lambda to: to.send_error(500)
    with pytest.raises(DcaError) as refused:
        index.find(pinned())
    assert refused.value.code == "DCA-402"
    assert "500" in refused.value.why


# --- downloading ---------------------------------------------------------------------------------------------


def test_a_download_is_kept_under_its_hash_and_not_fetched_again(place: Place, cache: store.Store) -> None:
    place.offer("thing-1.0.tar.gz", CONTENT)
    progress: list[tuple[int, int]] = []
    path = index.download(pinned(), cache, lambda done, total: progress.append((done, total)))
    assert path == cache.root / "downloads" / sha(CONTENT) / "thing-1.0.tar.gz"
    assert path.read_bytes() == CONTENT
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert progress[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in progress] == sorted({done for done, _ in progress})
    before = list(place.asked)
    assert index.download(pinned(), cache) == path
    assert place.asked == before


def test_a_kept_file_that_is_not_what_it_was_is_fetched_again(place: Place, cache: store.Store) -> None:
    place.offer("thing-1.0.tar.gz", CONTENT)
    kept_file = index.download(pinned(), cache)
    kept_file.write_bytes(b"tampered")
    assert index.download(pinned(), cache).read_bytes() == CONTENT


def test_a_download_that_is_cut_short_leaves_nothing(place: Place, cache: store.Store) -> None:
    def cut(to: BaseHTTPRequestHandler) -> None:
        to.send_response(200)
        to.send_header("Content-Length", str(len(CONTENT)))
        to.end_headers()
        to.wfile.write(CONTENT[:-1000])

    place.offer("thing-1.0.tar.gz", CONTENT)
    place.odd["/files/thing-1.0.tar.gz"] = cut
    with pytest.raises(DcaError) as refused:
        index.download(pinned(), cache)
    assert refused.value.code == "DCA-402"
    assert kept(cache) == []


def test_a_download_with_one_flipped_bit_leaves_nothing(place: Place, cache: store.Store) -> None:
    flipped = bytearray(CONTENT)
    flipped[len(flipped) // 2] ^= 1
    place.offer("thing-1.0.tar.gz", bytes(flipped), digest=sha(CONTENT))
    with pytest.raises(DcaError) as refused:
        index.download(pinned(), cache)
    assert refused.value.code == "DCA-401"
    assert sha(bytes(flipped)) in refused.value.why
    assert kept(cache) == []


def test_an_interrupted_download_leaves_nothing(place: Place, cache: store.Store) -> None:
    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    place.offer("thing-1.0.tar.gz", CONTENT)
    with pytest.raises(KeyboardInterrupt):
        index.download(pinned(), cache, interrupt)
    assert kept(cache) == []


def test_a_file_that_is_named_but_gone_leaves_nothing_and_hides_what_is_secret(
    place: Place, cache: store.Store
) -> None:
    place.offer("thing-1.0.tar.gz", CONTENT)
    del place.pages["/files/thing-1.0.tar.gz"]
    url = place.url.replace("http://", "http://user:secret@") + "/files/thing-1.0.tar.gz?token=hidden"
    with pytest.raises(DcaError) as refused:
        index.fetch_url(places(url), sha(CONTENT), cache.root / "file")
    assert refused.value.code == "DCA-402"
    assert "404" in refused.value.why
    assert "secret" not in str(refused.value)
    assert "hidden" not in str(refused.value)
    assert kept(cache) == []


# --- redirections --------------------------------------------------------------------------------------------


def redirected(source: str, location: str) -> str | None:
    answer = requests.Response()
    answer.status_code = 302
    answer.raw = io.BytesIO()
    answer.url = source
    answer.headers["Location"] = location
    with index.session() as http:
        return http.get_redirect_target(answer)


@pytest.mark.parametrize("location", ["http://host/x", "HTTP://host/x", "http://u:secret@host/x", "ftp://host/x"])
def test_a_redirection_from_https_to_anything_else_is_refused(location: str) -> None:
    with pytest.raises(requests.RequestException) as refused:
        redirected("https://index.example/simple/", location)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "location"),
    [
        ("https://index.example/simple/", "https://files.example/x"),
        ("https://index.example/simple/", "HTTPS://files.example/x"),
        ("https://index.example/simple/", "/elsewhere"),
        ("https://index.example/simple/", "//files.example/x"),
        ("http://127.0.0.1/simple/", "http://127.0.0.1/other/"),
        ("http://127.0.0.1/simple/", "https://files.example/x"),
    ],
)
def test_any_other_redirection_is_followed(source: str, location: str) -> None:
    assert redirected(source, location) == location


def test_a_file_that_was_moved_is_followed_and_still_checked(place: Place, cache: store.Store) -> None:
    def moved(to: BaseHTTPRequestHandler) -> None:
        to.send_response(302)
        to.send_header("Location", f"{place.url}/moved")
        to.send_header("Content-Length", "0")
        to.end_headers()

    place.offer("thing-1.0.tar.gz", CONTENT)
    place.odd["/files/thing-1.0.tar.gz"] = moved
    place.pages["/moved"] = ("application/octet-stream", CONTENT)
    assert index.download(pinned(), cache).read_bytes() == CONTENT
    place.pages["/moved"] = ("application/octet-stream", b"other")
    with pytest.raises(DcaError) as refused:
        index.fetch_url(places(f"{place.url}/files/thing-1.0.tar.gz"), sha(CONTENT), cache.root / "again")
    assert refused.value.code == "DCA-401"


# --- members of a wheel --------------------------------------------------------------------------------------

WHEEL = "thing-1.0-py3-none-any.whl"
SMALL, MODULE = b"print('small')\n", os.urandom(100_000)


def wheel_bytes(module: bytes = MODULE) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("thing/big.so", CONTENT)
        wheel.writestr("thing/__init__.py", SMALL)
        wheel.writestr("thing/module.so", module)
        wheel.writestr("thing/other.so", CONTENT[::-1])
    return stream.getvalue()


@pytest.fixture(scope="module")
def wheel() -> bytes:
    return wheel_bytes()


class Told(Silent):
    """What is reported."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[float, float]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, done: float, total: float, text: str) -> None:
        self.steps.append((done, total))


WANTED = {"thing/__init__.py": sha(SMALL), "thing/module.so": sha(MODULE)}


def test_single_members_are_read_without_the_rest_of_the_wheel(place: Place, cache: store.Store, wheel: bytes) -> None:
    place.offer(WHEEL, wheel)
    told = Told()
    members = index.members(pinned(wheel, WHEEL), WANTED, cache, told)
    assert {name: path.read_bytes() for name, path in members.items()} == {
        "thing/__init__.py": SMALL,
        "thing/module.so": MODULE,
    }
    assert len(MODULE) < place.sent < len(wheel) / 2
    assert told.steps[-1] == (len(SMALL) + len(MODULE), len(SMALL) + len(MODULE))
    assert told.notes == []
    before = list(place.asked)
    assert index.members(pinned(wheel, WHEEL), WANTED, cache, Silent()) == members
    assert place.asked == before


def test_a_member_that_the_wheel_lacks_has_a_code_of_its_own(place: Place, cache: store.Store, wheel: bytes) -> None:
    place.offer(WHEEL, wheel)
    with pytest.raises(DcaError) as refused:
        index.members(pinned(wheel, WHEEL), {**WANTED, "thing/missing.so": "0" * 64}, cache, Silent())
    assert refused.value.code == "DCA-406"
    assert "thing/missing.so" in refused.value.what
    assert kept(cache) == []


def test_a_member_with_another_hash_is_refused_and_not_kept(place: Place, cache: store.Store, wheel: bytes) -> None:
    place.offer(WHEEL, wheel)
    with pytest.raises(DcaError) as refused:
        index.members(pinned(wheel, WHEEL), {"thing/module.so": sha(CONTENT)}, cache, Silent())
    assert refused.value.code == "DCA-401"
    assert sha(MODULE) in refused.value.why
    assert kept(cache) == []


@pytest.mark.parametrize("where", ["in the stored bytes", "in the compressed stream"])
def test_a_damaged_member_is_refused_and_not_kept(where: str, place: Place, cache: store.Store) -> None:
    text = b"".join(b"%d " % number for number in range(20_000))
    body = bytearray(wheel_bytes(text if where == "in the compressed stream" else MODULE))
    with zipfile.ZipFile(io.BytesIO(bytes(body))) as archive:
        info = archive.getinfo("thing/module.so")
    middle = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    for position in range(middle, middle + 40):
        body[position] ^= 0xFF
    place.offer(WHEEL, bytes(body))
    with pytest.raises(DcaError) as refused:
        index.members(pinned(bytes(body), WHEEL), {"thing/module.so": sha(MODULE)}, cache, Silent())
    assert refused.value.code in ("DCA-401", "DCA-406")
    assert set(kept(cache)) <= {WHEEL}


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("what", ["a member", "the list of members"])
@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_wheel_whose_server_goes_away_is_refused_and_nothing_kept(
    how: str, what: str, place: Place, cache: store.Store, wheel: bytes
) -> None:
    def cut(to: BaseHTTPRequestHandler) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", to.headers["Range"])
        if not span and what == "the list of members":
            span = re.fullmatch(r"(\d+)-(\d+)", f"{len(wheel) - 65536}-{len(wheel) - 1}")
        if not span:
            place.send(to, "application/octet-stream", wheel)
            return
        first, last = int(span[1]), int(span[2])
        to.send_response(206)
        to.send_header("Content-Range", f"bytes {first}-{last}/{len(wheel)}")
        to.send_header("Content-Length", str(last + 1 - first))
        to.end_headers()
        to.wfile.write(wheel[first : first + (last - first) // 2])
        if how == "reset":
            to.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            to.rfile.close()
            to.connection.close()
            to.rfile, to.wfile = io.BytesIO(), io.BytesIO()

    place.offer(WHEEL, wheel)
    place.odd[f"/files/{WHEEL}"] = cut
    with pytest.raises(DcaError) as refused:
        index.members(pinned(wheel, WHEEL), WANTED, cache, Silent())
    assert refused.value.code == "DCA-402"
    assert kept(cache) == []
    del refused
    gc.collect()


def whole(place: Place, wheel: bytes, to: BaseHTTPRequestHandler) -> None:
    del to.headers["Range"]
    place.send(to, "application/octet-stream", wheel)


def refused(place: Place, wheel: bytes, to: BaseHTTPRequestHandler) -> None:
    if to.headers["Range"]:
        to.send_error(416)
    else:
        place.send(to, "application/octet-stream", wheel)


def forbidden(place: Place, wheel: bytes, to: BaseHTTPRequestHandler) -> None:
    if to.headers["Range"]:
        to.send_error(403)
    else:
        place.send(to, "application/octet-stream", wheel)


def other(place: Place, wheel: bytes, to: BaseHTTPRequestHandler) -> None:
    """A cache between, which sends the beginning whatever part is asked for."""
    if to.headers["Range"]:
        to.headers.replace_header("Range", "bytes=0-65535")
    place.send(to, "application/octet-stream", wheel)


def nonsense(place: Place, wheel: bytes, to: BaseHTTPRequestHandler) -> None:
    if not to.headers["Range"]:
        place.send(to, "application/octet-stream", wheel)
        return
    to.send_response(206)
    to.send_header("Content-Range", "parsecs 12")
    to.send_header("Content-Length", "0")
    to.end_headers()


# remotezip leaves an answer open that it did not expect.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("how", [whole, refused, forbidden, other, nonsense], ids=lambda how: how.__name__)
def test_a_wheel_whose_server_sends_no_parts_is_downloaded_completely_once_and_that_is_told(
    how: Callable[[Place, bytes, BaseHTTPRequestHandler], None], place: Place, cache: store.Store, wheel: bytes
) -> None:
    place.offer(WHEEL, wheel)
    place.odd[f"/files/{WHEEL}"] = partial(how, place, wheel)
    told = Told()
    members = index.members(pinned(wheel, WHEEL), WANTED, cache, told)
    assert [path.read_bytes() for path in members.values()] == [SMALL, MODULE]
    (note,) = told.notes
    assert note.startswith(f"{WHEEL} ({len(wheel) / 1e6:.0f} MB) is downloaded completely: the package index")
    assert (len(wheel), len(wheel)) in told.steps
    before = list(place.asked)
    assert list(index.members(pinned(wheel, WHEEL), {"thing/big.so": sha(CONTENT)}, cache, Silent())) == [
        "thing/big.so"
    ]
    assert place.asked == before
    gc.collect()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_whole_wheel_that_is_not_the_pinned_one_is_refused(place: Place, cache: store.Store, wheel: bytes) -> None:
    place.offer(WHEEL, wheel, digest="")
    place.odd[f"/files/{WHEEL}"] = partial(whole, place, wheel_bytes(MODULE[::-1]))
    with pytest.raises(DcaError) as error:
        index.members(pinned(wheel, WHEEL), WANTED, cache, Silent())
    assert error.value.code == "DCA-401"
    assert kept(cache) == []
    del error
    gc.collect()


def test_what_is_no_wheel_is_refused(place: Place, cache: store.Store) -> None:
    place.offer(WHEEL, CONTENT)
    with pytest.raises(DcaError) as refused:
        index.members(pinned(CONTENT, WHEEL), WANTED, cache, Silent())
    assert refused.value.code == "DCA-406"


# --- deadlines -----------------------------------------------------------------------------------------------


def test_what_comes_too_late_is_closed() -> None:
    closed, let_go = threading.Event(), threading.Event()

    class Late(requests.Response):
        def close(self) -> None:
            closed.set()

    def slow() -> requests.Response:
        time.sleep(0.2)
        return Late()

    def fails() -> requests.Response:
        time.sleep(0.2)
        raise requests.TooManyRedirects(response=Late())

    for function in (slow, fails):
        with pytest.raises(requests.Timeout):
            index.within(0.02, function, let_go.set)
        assert closed.wait(10)
        assert let_go.wait(10)
        closed.clear()
        let_go.clear()
