"""A hub's files are downloaded when asked, checked, and laid out as its client does; every refusal is one clear error.

The hub is a server on this machine with the hub's interface.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from dca.cli import root
from dca.foundation import hub
from dca.foundation.errors import DcaError
from dca.sources import hub_files
from tests.support.serving import config
from tests.support.web import Place

COMMIT, OLD = "a" * 40, "b" * 40
NAME, SECRET = "Org/Model-7B", "hf_verysecret"
CONFIG = json.dumps(config()).encode()


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class Hub(Place):
    """A hub with one model."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {"config.json": CONFIG, "model.safetensors": b"weights"}
        self.tokens: list[str] = []
        self.say()

    def say(self, commit: str = COMMIT, revision: str = "main", lfs: tuple[str, ...] = (), **more: Any) -> None:
        """List the files of a revision, and give them."""
        siblings: list[dict[str, Any]] = []
        for name, data in self.files.items():
            one: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
            if name in lfs:
                one["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            siblings.append({**one, **more})
            self.pages[f"/{NAME}/resolve/{commit}/{name}"] = ("application/json", data)
        about = json.dumps({"id": NAME, "sha": commit, "siblings": siblings}).encode()
        self.pages[f"/api/models/{NAME}/revision/{revision}"] = ("application/json", about)

    @property
    def list_page(self) -> str:
        return f"/api/models/{NAME}/revision/main"

    @property
    def config_page(self) -> str:
        return f"/{NAME}/resolve/{COMMIT}/config.json"

    def refuse(self, path: str, status: int, code: str = "") -> None:
        def answer(to: BaseHTTPRequestHandler) -> None:
            self.tokens.append(to.headers.get("Authorization", ""))
            to.send_response(status)
            if code:
                to.send_header("X-Error-Code", code)
            to.send_header("Content-Length", "0")
            to.end_headers()

        self.odd[path] = answer

    def redirect(self, path: str, target: str) -> None:
        def answer(to: BaseHTTPRequestHandler) -> None:
            self.tokens.append(to.headers.get("Authorization", ""))
            to.send_response(307)
            to.send_header("Location", target)
            to.send_header("Content-Length", "0")
            to.end_headers()

        self.odd[path] = answer


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    yield server
    server.server.shutdown()
    server.server.server_close()


def kept(tmp_path: Path) -> list[str]:
    root = tmp_path / "hub"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def test_the_files_are_kept_as_the_hubs_client_keeps_them(place: Hub, tmp_path: Path) -> None:
    place.files["generation_config.json"] = b"{}"
    place.say()
    snapshot = hub_files.download(NAME)
    root = f"models--{NAME.replace('/', '--')}"
    assert kept(tmp_path) == [
        f"{root}/blobs/{git_hash(b'{}')}",
        f"{root}/blobs/{git_hash(CONFIG)}",
        f"{root}/refs/main",
        f"{root}/snapshots/{COMMIT}/config.json",
        f"{root}/snapshots/{COMMIT}/generation_config.json",
    ]
    assert (snapshot / "config.json").is_symlink()
    assert (snapshot / "config.json").read_bytes() == CONFIG
    assert hub.cached(NAME) == snapshot
    # No weights, and nothing twice.
    asked = [path for path in place.asked if "/resolve/" in path]
    assert len(asked) == 2
    assert hub_files.download(NAME) == snapshot
    assert [path for path in place.asked if "/resolve/" in path] == asked


def test_a_revision_is_pinned_and_stays_beside_the_newest(place: Hub) -> None:
    newest = hub_files.download(NAME)
    place.files["config.json"] = old = json.dumps(config(num_hidden_layers=27)).encode()
    place.say(OLD, "v1.0")
    place.say(OLD, OLD)
    place.say(OLD, "refs%2Fpr%2F1")
    for revision in ("v1.0", OLD, "refs/pr/1"):
        assert hub_files.download(f"{NAME}@{revision}").name == OLD
        assert (hub.located(Path(f"{NAME}@{revision}")) / "config.json").read_bytes() == old
    assert hub.cached(NAME) == newest
    assert hub.cached(f"{NAME}@v2.0") is None


def test_a_file_in_lfs_is_checked_by_its_own_hash(place: Hub) -> None:
    place.say(lfs=("config.json",))
    assert (hub_files.download(NAME) / "config.json").resolve().name == hashlib.sha256(CONFIG).hexdigest()


def test_a_hub_that_lists_no_hashes_is_read_all_the_same(place: Hub) -> None:
    place.say(blobId=None)
    assert (hub_files.download(NAME) / "config.json").read_bytes() == CONFIG


def test_redirects_are_followed_without_the_token_to_another_host(place: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    other = Hub()
    # A renamed model, and a file on another server: localhost is another name than 127.0.0.1.
    place.redirect(place.list_page, "/api/models/Org/Renamed/revision/main")
    place.pages["/api/models/Org/Renamed/revision/main"] = place.pages[place.list_page]
    other.redirect("/elsewhere", f"{other.url}{other.config_page}")
    place.redirect(place.config_page, f"{other.url.replace('127.0.0.1', 'localhost')}/elsewhere")
    assert (hub_files.download(NAME) / "config.json").read_bytes() == CONFIG
    assert place.tokens == [f"Bearer {SECRET}"] * 2
    assert other.tokens == [""]
    other.server.shutdown()
    other.server.server_close()


def hang_up(to: BaseHTTPRequestHandler) -> None:
    to.send_response(200)
    to.send_header("Content-Length", str(len(CONFIG)))
    to.end_headers()
    to.wfile.write(CONFIG[:100])
    to.close_connection = True


def end_early(to: BaseHTTPRequestHandler) -> None:
    """Without its length an answer ends when the server hangs up, and only the hash shows that it is cut."""
    to.send_response(200)
    to.end_headers()
    to.wfile.write(CONFIG[:100])
    to.close_connection = True


def endless(to: BaseHTTPRequestHandler) -> None:
    to.send_response(200)
    to.end_headers()
    for _ in range(2_000):
        to.wfile.write(b" " * (1 << 16))


def pointer(to: BaseHTTPRequestHandler) -> None:
    body = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n"
    to.send_response(200)
    to.send_header("Content-Length", str(len(body)))
    to.end_headers()
    to.wfile.write(body)


def of(method: str, *arguments: Any) -> Callable[[Hub], None]:
    return lambda place: getattr(place, method)(*(getattr(place, str(one), one) for one in arguments))


def at_config(answer: Callable[[BaseHTTPRequestHandler], None]) -> Callable[[Hub], None]:
    return lambda place: place.odd.__setitem__(place.config_page, answer)


def large(place: Hub) -> None:
    place.files["config.json"] = b'{"a": "' + b"x" * (100 << 20) + b'"}'
    place.say()


def without_config(place: Hub) -> None:
    del place.files["config.json"]
    place.say()


def other_bytes(place: Hub) -> None:
    place.pages[place.config_page] = ("application/json", CONFIG + b" ")


def page(body: bytes) -> Callable[[Hub], None]:
    return lambda place: place.pages.__setitem__(place.list_page, ("text/html", body))


# What the hub does, the code, and words of the message.
TROUBLES: dict[str, tuple[Callable[[Hub], None], str, str]] = {
    "no such model": (of("refuse", "list_page", 401, "RepoNotFound"), "DCA-411", "does not exist, or the token"),
    "no such model, 404": (of("refuse", "list_page", 404, "RepoNotFound"), "DCA-411", "does not exist"),
    "no such revision": (of("refuse", "list_page", 404, "RevisionNotFound"), "DCA-411", "has no revision main"),
    "forbidden": (of("refuse", "list_page", 403), "DCA-411", "the hub refuses Org/Model-7B to this user"),
    "gated": (of("refuse", "config_page", 403, "GatedRepo"), "DCA-411", "is gated"),
    "gated, no token": (of("refuse", "config_page", 401, "GatedRepo"), "DCA-411", "is gated"),
    "no such file": (of("refuse", "config_page", 404, "EntryNotFound"), "DCA-411", "does not have"),
    "too many requests": (of("refuse", "list_page", 429), "DCA-402", "now"),
    "out of order": (of("refuse", "config_page", 503), "DCA-402", "now"),
    "another status": (of("refuse", "list_page", 418), "DCA-411", "does not answer as a hub does"),
    "no config.json": (without_config, "DCA-411", "has no config.json at main"),
    "a pointer": (at_config(pointer), "DCA-411", "Git LFS pointer"),
    "100 MB": (large, "DCA-411", "larger than 16 MiB"),
    "endless": (at_config(endless), "DCA-411", "larger than 16 MiB"),
    "hangs up": (at_config(hang_up), "DCA-402", "config.json of Org/Model-7B on 127.0.0.1 could not be reached"),
    "ends early": (at_config(end_early), "DCA-401", "is not what the hub lists"),
    "other bytes": (other_bytes, "DCA-401", "is not what the hub lists"),
    "a circle": (of("redirect", "list_page", "list_page"), "DCA-411", "does not answer as a hub does"),
    "a page": (page(b"<html>"), "DCA-411", "does not answer as a hub does"),
    "a list": (page(b"[]"), "DCA-411", "does not answer as a hub does"),
    "no commit": (page(b'{"sha": "../../x", "siblings": []}'), "DCA-411", "does not answer as a hub does"),
    "nested": (page(b"[" * 100_000), "DCA-411", "does not answer as a hub does"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TROUBLES)
def test_every_trouble_is_one_clear_error_and_nothing_is_kept(
    name: str, place: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET if "token" not in name else "")
    trouble, code, words = TROUBLES[name]
    trouble(place)
    with pytest.raises(DcaError) as refused:
        hub_files.download(NAME)
    assert refused.value.code == code
    assert words in refused.value.what
    assert refused.value.remedy
    assert SECRET not in str(refused.value)
    assert hub.cached(NAME) is None
    assert kept(tmp_path) == []


def test_a_hub_that_is_not_there_is_one_error(place: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    place.server.server_close()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DcaError) as refused:
        hub_files.download(NAME)
    assert refused.value.code == "DCA-402"


def test_a_token_is_not_sent_in_plain_text_to_another_machine(place: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    wanted = hub.named(NAME)
    assert wanted is not None
    assert "Authorization" in hub_files._Hub(wanted).headers
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example.org")
    assert "Authorization" not in hub_files._Hub(wanted).headers
    monkeypatch.setenv("HF_ENDPOINT", "ftp://hub.example.org")
    with pytest.raises(DcaError, match="HF_ENDPOINT"):
        hub_files._Hub(wanted)


def test_the_token_of_the_clients_file_is_sent(place: Hub, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/token").write_text(f"{SECRET}\n")
    place.refuse(place.list_page, 404)
    with pytest.raises(DcaError):
        hub_files.download(NAME)
    assert place.tokens == [f"Bearer {SECRET}"]


def test_no_hub_is_asked_where_its_client_must_not(place: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DcaError, match="HF_HUB_OFFLINE"):
        hub_files.download(NAME)
    assert place.asked == []


@pytest.mark.parametrize("word", ["../x", "./x", "a/..", "x", "a/b/c", "https://u:p@h/x", "a/b@../c", "a/b@", "/a/b"])
def test_what_is_no_name_is_not_asked_for(word: str, place: Hub) -> None:
    assert not hub.is_name(word)
    with pytest.raises(DcaError, match="is no name on a hub"):
        hub_files.download(word)
    assert place.asked == []


def run(*words: str) -> Any:
    return CliRunner().invoke(root, words)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("config", "check", NAME),
        ("config", "set-yarn", NAME, "--factor", "4", "--original", "32768", "--no-ask", "--dry-run"),
        ("serve", "plan", NAME, "--gpus", "1xA100-80"),
        ("serve", "command", NAME, "--gpus", "1xA100-80"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_every_command_that_takes_a_model_downloads_when_asked(words: tuple[str, ...], place: Hub) -> None:
    # Without being asked, nothing leaves this machine.
    done = run(*words)
    assert done.exit_code != 0
    assert isinstance(done.exception, DcaError)
    assert done.exception.code == "DCA-204"
    assert "--download" in done.exception.remedy
    assert place.asked == []
    done = run(*words, "--download")
    assert not isinstance(done.exception, DcaError) or done.exception.code != "DCA-204"
    assert len(place.asked) == 2


def test_every_model_of_a_command_can_be_downloaded() -> None:
    def parameters(group: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
        if isinstance(group, click.Group):
            for name in group.list_commands(click.Context(group)):
                inner = group.get_command(click.Context(group), name)
                assert inner is not None
                yield from parameters(inner, (*words, name))
        else:
            yield " ".join(words), group

    taking = {
        name: {option for one in found.params for option in one.opts}
        for name, found in parameters(root)
        if any(type(one.type).__name__ in ("ModelPath", "ModelName") for one in found.params)
    }
    assert {name for name, found in taking.items() if "--download" not in found} == {"config undo"}
    assert {"config check", "plan", "wheel", "inspect", "doctor", "serve plan", "serve command", "serve run"} <= set(
        taking
    )


def test_a_pinned_revision_is_served(place: Hub) -> None:
    place.say(OLD, "v1.0")
    done = run("serve", "command", f"{NAME}@v1.0", "--gpus", "1xA100-80", "--download")
    assert done.exit_code == 0, done.output
    assert f"vllm serve {NAME} " in done.output
    assert "--revision v1.0" in done.output
