"""Sources that somebody made to do harm: URLs and repositories that would run a program, archives that would leave
their folder, downloads that are not whole, and kills of a fetch."""

from __future__ import annotations

import io
import os
import random
import shutil
import socket
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import ValidationError

from dca.catalogue.mirrors import places
from dca.catalogue.recipes import GitSource
from dca.foundation import archives, store
from dca.foundation.errors import DcaError
from dca.sources import git, index
from tests.support.kills import killed_runs, leftovers, whole_run
from tests.support.repositories import GitHandler, Repository, secured, served
from tests.support.web import Place, sha

pytestmark = pytest.mark.proof


# --- git -----------------------------------------------------------------------------------------------------


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once anything was run: every program that git starts for a transport writes it."""
    file = tmp_path / "canary"
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in (
        "ssh",
        "git-remote-canary",
        "git-remote-ext",
        "git-remote-fd",
        "git-remote-hg",
        "git-upload-pack",
        "git-upload-archive",
        "plink",
        "git-credential-canary",
        "canary",
    ):
        (folder / name).write_text(f"#!/bin/sh\ntouch '{file}'\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name in ("GIT_SSH", "GIT_SSH_COMMAND", "GIT_ASKPASS", "GIT_PROXY_COMMAND", "GIT_EXTERNAL_DIFF"):
        monkeypatch.setenv(name, str(folder / "canary"))
    return file


def hostile_urls(canary: Path, repository: Path) -> list[str]:
    """URLs that make a careless git run a program, read a file, or talk to somebody else."""
    touch = f"touch {canary}"
    quoted = touch.replace(" ", "% ")
    shells = [f"sh -c {quoted}", f"sh -c '{touch}'", f"{touch} %S", f"canary {canary}"]
    found = [f"{scheme}::{shell}" for scheme in ("ext", "EXT", "Ext", "eXt") for shell in shells]
    found += [f"{scheme}::{number}" for scheme in ("fd", "FD") for number in ("0", "17", "0,1/x")]
    found += [f"{scheme}::https://127.0.0.1:9/x" for scheme in ("canary", "hg", "CANARY", "http::ext", "https::ext")]
    options = ["upload-pack", "receive-pack", "exec", "config=core.sshCommand", "upload-archive", "server-option", "o"]
    found += [f"--{name}={touch}" for name in options]
    found += [f"-u{touch}", f"-c core.sshCommand={touch}", "-", "--", "--help", "--end-of-options", f"-o{touch}"]
    hosts = [f"-oProxyCommand={touch}", f"-oProxyCommand={touch};x", f"-F{canary}", "--"]
    found += [f"{scheme}://{host}/x" for scheme in ("ssh", "git+ssh", "ssh+git", "SSH") for host in hosts]
    found += [f"{host}:x" for host in hosts] + [f"user@{host}:x" for host in hosts]
    found += [f"127.0.0.1:-oProxyCommand={touch}", "127.0.0.1:x", f"[{hosts[0]}]:x", f"127.0.0.1:`{touch}`"]
    found += [f"{scheme}://{repository}" for scheme in ("file", "FILE", "File", "git", "http", "ftp", "rsync", "local")]
    found += [str(repository), f"../{repository.name}", f"{repository}/.git", f"file:{repository}", "."]
    for inner in ("\n", "\r\n", "\t", " ", "\0", "\x1b[2J", "\\", "\u2028"):
        found += [
            f"https://127.0.0.1:9/x{inner}ext::sh -c {quoted}",
            f"https://127.0.0.1:9{inner}--exec={touch}",
            f"{inner}ext::sh -c {quoted}",
            f"https://127.0.0.1:9/{inner}",
        ]
    found += [
        f"https://-oProxyCommand={touch}/x",
        f"https://$({touch})/x",
        f"https://`{touch}`/x",
        "https://",
        "https:///",
        "https:x",
        f"https://127.0.0.1:9@{touch}/x",
        f"https://u:p@127.0.0.1:9/;{touch}",
        f"https://x|{touch}/",
        "https://[::1",
        "https://127.0.0.1:99999/x",
        "https://127.0.0.1:x/y",
        "",
        " ",
        "https",
    ]
    return found


def hostile_refs(canary: Path) -> list[str]:
    touch = f"touch {canary}"
    return [
        f"--upload-pack={touch}",
        f"-u{touch}",
        f"main\n{'0' * 40}\trefs/heads/main",
        "main\0x",
        "../../etc",
        "*",
        f"ext::sh -c {touch}",
        "refs/heads/*",
        "+refs/heads/*:refs/heads/*",
        f"$({touch})",
        f"`{touch}`",
        "a..b",
        "@{-1}",
        "",
        " ",
        "-",
        "--",
        "HEAD",
        f"main --upload-pack={touch}",
        "^main",
        "main:main",
        f"--exec={touch}",
        "\u202e",
    ]


def test_no_hostile_git_url_or_ref_runs_anything(
    tmp_path: Path, canary: Path, chance: random.Random, scale: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First as recipes are read, then as the tool calls git, then without its own check of what git is given."""
    one = Repository(tmp_path / "repository")
    one.write("a", b"a")
    commit = one.commit()
    cache, log = store.Store(tmp_path / "cache").open(), tmp_path / "log"
    urls, refs = hostile_urls(canary, one.path), hostile_refs(canary)
    assert len(urls) + len(refs) >= 150
    for url in urls:
        with pytest.raises(ValidationError):
            GitSource(kind="git", urls=(url,), commit=commit)
    chosen = chance.sample(urls, min(len(urls), max(8, scale(len(urls)))))
    for unchecked in (False, True):
        if unchecked:
            monkeypatch.setattr(git, "_refused", lambda _: "")
        for url in chosen:
            if unchecked and "\0" in url:
                continue
            assert git.probe(places(url)) != "", url
            assert git.branch_head(places(url), "main") == "", url
            with pytest.raises(DcaError) as refused:
                git.fetch(places(url), commit, cache, log)
            assert refused.value.code == "DCA-405"
            assert not canary.exists(), (url, unchecked)
    with served(tmp_path) as base:
        url = f"{base}repository/.git"
        assert git.branch_head(places(url), "main") == commit
        for ref in chance.sample(refs, min(len(refs), max(8, scale(len(refs))))):
            assert git.branch_head(places(url), ref) == "", ref
            with pytest.raises(DcaError):
                git.fetch(places(url), ref, cache, log)
            assert not canary.exists(), ref


GITMODULES = [
    "\turl = ext::sh -c touch% {canary}",
    "\turl = --upload-pack=touch {canary}",
    "\tupdate = !touch {canary}",
    "\turl = -u./x",
    "\turl = ssh://-oProxyCommand=touch {canary}/x",
    "\tpath = ../../escaped",
    "\tpath = .git/hooks",
    "\tpath = -x",
    "\tbranch = --exec=touch {canary}",
    "\tfetchRecurseSubmodules = yes\n\turl = file://{canary}",
    "\tignore = all\n\tshallow = !touch {canary}",
    "\turl = ./\n\tupdate = !sh -c 'touch {canary}'",
]


def test_what_a_repository_says_of_its_submodules_hooks_and_filters_runs_nothing(
    tmp_path: Path, canary: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    cases = GITMODULES if scale(50) == 50 else chance.sample(GITMODULES, 3)
    for number, text in enumerate(cases):
        folder = tmp_path / f"{number}"
        one = Repository(folder / "served/repository")
        one.write("a", b"a\n")
        one.write(".gitmodules", f'[submodule "x"]\n{text.format(canary=canary)}\n'.encode())
        one.write(".gitattributes", b"* filter=canary diff=canary merge=canary ident\n")
        one.write("hooks/post-checkout", f"#!/bin/sh\ntouch '{canary}'\n".encode(), 0o755)
        for key in (
            "filter.canary.smudge",
            "filter.canary.process",
            "core.fsmonitor",
            "core.hooksPath",
            "diff.external",
            "core.sshCommand",
            "uploadpack.packObjectsHook",
            "core.pager",
            "credential.helper",
        ):
            one("config", key, str(folder / "hooks") if key == "core.hooksPath" else "canary")
        one("config", "uploadpack.packObjectsHook", "")
        commit = one.commit()
        canary.unlink(missing_ok=True)
        # Named by hand, its own configuration and hooks are there too.
        git.export(one.path, commit, folder / "local")
        git.branch_head(places(local=one.path), "main")
        git.objects(one.path, commit)
        assert not canary.exists(), text
        with served(folder / "served") as base:
            # The server runs what its own configuration says; that is not what is looked at.
            for key in ("core.fsmonitor", "core.hooksPath", "core.sshCommand", "credential.helper", "core.pager"):
                one("config", "--unset-all", key)
            cache = store.Store(folder / "cache").open()
            url = f"{base}repository/.git"
            there = git.fetch(places(url), commit, cache, folder / "log")
            git.export(there, commit, folder / "fetched")
            assert not canary.exists(), text
            assert store.tree_hash(folder / "fetched") == store.tree_hash(folder / "local")
            assert not (folder / "escaped").exists()


class Meddling(GitHandler):
    """Cuts what the server says of a commit's objects, or changes a bit of it."""

    change: ClassVar[Callable[[bytes], bytes] | None] = None

    def answer(self) -> None:
        change = type(self).change
        if self.command != "POST" or change is None:
            super().answer()
            return
        whole = io.BytesIO()
        real, self.wfile = self.wfile, whole
        try:
            super().answer()
        finally:
            self.wfile = real
        head, _, body = whole.getvalue().partition(b"\r\n\r\n")
        changed = change(body) if b"packfile" in body or b"PACK" in body else body
        head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length"))
        self.wfile.write(head + f"\r\nContent-Length: {len(changed)}\r\n\r\n".encode() + changed)

    do_GET = do_POST = answer  # noqa: N815 - the server's names


def test_no_git_answer_that_was_cut_or_changed_is_taken_for_the_commit(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    one = Repository(tmp_path / "served/repository")
    one.write("data", chance.randbytes(30_000))
    one.write("deep/er/run.sh", b"#!/bin/sh\n", 0o755)
    commit = one.commit()

    with served(tmp_path / "served", Meddling) as base:
        url, log = f"{base}repository/.git", tmp_path / "log"
        git.export(
            git.fetch(places(url), commit, store.Store(tmp_path / "good").open(), log), commit, tmp_path / "wanted"
        )
        wanted, refused = store.tree_hash(tmp_path / "wanted"), 0
        cuts, flips = scale(64), scale(200)
        for number in range(cuts + flips):

            def cut(body: bytes, at: int = number) -> bytes:
                return body[: len(body) * at // max(cuts, 1)]

            def flip(body: bytes) -> bytes:
                bit = chance.randrange(len(body) * 8)
                changed = bytearray(body)
                changed[bit // 8] ^= 1 << bit % 8
                return bytes(changed)

            Meddling.change = staticmethod(cut if number < cuts else flip)
            cache = store.Store(tmp_path / f"cache-{number}").open()
            try:
                repository = git.fetch(places(url), commit, cache, log)
            except DcaError as error:
                told = (error.code, bool(error.why))
                refused += 1
            else:
                told = ("DCA-405", True)
                # A bit of what is only said to people may change; what was fetched may not.
                git.export(repository, commit, tmp_path / f"tree-{number}")
                assert store.tree_hash(tmp_path / f"tree-{number}") == wanted
                shutil.rmtree(tmp_path / f"tree-{number}")
            assert told == ("DCA-405", True)
            Meddling.change = None
            git.export(git.fetch(places(url), commit, cache, log), commit, tmp_path / "next")
            assert store.tree_hash(tmp_path / "next") == wanted
            shutil.rmtree(tmp_path / "next")
            shutil.rmtree(cache.root)
        print(f"{refused} of {cuts + flips} refused, the others have the pinned tree")


# --- archives ------------------------------------------------------------------------------------------------

Members = list[tuple[tarfile.TarInfo, bytes]]


def entry(
    name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644
) -> Members:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    return [(info, content if info.size else b"")]


def link(name: str, target: str) -> Members:
    return entry(name, kind=tarfile.SYMTYPE, target=target)


def hard(name: str, target: str) -> Members:
    return entry(name, kind=tarfile.LNKTYPE, target=target)


def hostile_sdists(outside: Path, chance: random.Random, count: int) -> Iterator[tuple[str, Members]]:
    """Archives that would write outside of their folder, make something that is no file, or lead out once unpacked."""
    victim = str(outside / "victim")
    up = "../" * (len(Path(victim).parts) + 6) + victim[1:]
    climbs = [
        "../victim",
        "top/../../victim",
        "top/./../../victim",
        up,
        f"/{victim}",
        victim,
        f"top/{up}",
        "top/..",
        "..",
        "top/a/../../../victim",
        "top\\..\\..\\victim",
        "top/x/../../../../victim",
        "./../victim",
        "top//../../victim",
    ]
    targets = ["..", "../..", "../../..", "/", "/etc", str(outside), victim, up, "a/../../..", "./../../.."]
    kinds = [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"]
    for number in range(count):
        name, target = f"top/{chance.choice(['a', 'b/c', 'd/e/f'])}", chance.choice(targets)
        ways: list[tuple[str, Members]] = [
            ("climbs", entry(chance.choice(climbs))),
            ("a link", link(name, target)),
            ("a link and through it", link(name, target) + entry(f"{name}/victim")),
            ("an inner link and through it", entry("top/in/x") + link(name, ".") + entry(f"{name}/victim")),
            ("a hard link", hard(name, chance.choice([victim, "/etc/passwd", "../victim", target]))),
            ("no file", entry(name, kind=chance.choice(kinds))),
            ("twice", entry(name, b"one") + entry(name, b"two")),
            ("a file, a link and through it", entry(name, b"one") + link(name, victim) + entry(name, b"two")),
            ("a hard link to a link", link("top/l", victim) + hard("top/h", "top/l") + entry("top/h", b"two")),
            ("a link by way of another", by_way_of_another(chance)),
            ("a path too long to be resolved", too_long()),
            ("more than one folder", entry(chance.choice(["victim", "other/victim", "top2/x"]))),
        ]
        how, members = ways[number % len(ways)]
        yield how, entry("top/setup.py") + members


def by_way_of_another(chance: random.Random) -> Members:
    """The real path is shorter than it is spelt: x goes to the top, and y up from there."""
    rest = chance.choice(["..", "../..", "victim", "../../.."])
    return (
        entry("top/t/x")
        + entry("top/a/b/c/x")
        + link("top/a/b/c/x2", "../../../t")
        + link("top/a/b/c/y", f"x2/../../{rest}")
    )


def too_long() -> Members:
    """As CVE-2025-4517: names so long that the target of a link is not resolved any more."""
    long, made, path = "d" * 247, [], "top"
    for step in "abcdefghijklmnop":
        made += entry(f"{path}/{long}", kind=tarfile.DIRTYPE, mode=0o755) + link(f"{path}/{step}", long)
        path += f"/{long}"
    inner = f"{'/'.join('abcdefghijklmnop')}/{'l' * 254}"
    return made + link(f"top/{inner}", "../" * 16) + link("top/escape", f"{inner}/../..") + entry("top/escape/victim")


Mode = Literal["w:gz", "w:xz", "w:bz2"]
MODES: tuple[Mode, ...] = ("w:gz", "w:xz", "w:bz2")


def packed(members: Members, mode: Mode = "w:gz") -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode=mode, format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return body.getvalue()


def state(folder: Path) -> dict[str, str]:
    return {str(path): f"{path.lstat().st_mode} {path.lstat().st_size}" for path in folder.rglob("*")}


def contained(folder: Path) -> bool:
    """Whether everything below a folder is a file, a folder, or a link that stays inside."""
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            return False
        if stat.S_ISLNK(mode) and not f"{os.path.realpath(path)}/".startswith(f"{os.path.realpath(folder)}/"):
            return False
        if stat.S_ISREG(mode) and path.stat().st_nlink > 1:
            return False
    return True


@pytest.mark.usefixtures("each_tarfile")
def test_no_hostile_sdist_writes_outside_of_its_folder_or_leads_out_of_it(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "work/inside"
    outside.mkdir()
    inside.mkdir(parents=True)
    (outside / "victim").write_text("whole")
    before, harmless = state(outside), 0
    for name, members in hostile_sdists(outside, chance, max(24, scale(100))):
        archive = inside / "hostile.tar.gz"
        archive.write_bytes(packed(members, chance.choice(MODES)))
        refused = ""
        try:
            archives.unpack_sdist(archive, inside / "tree")
        except DcaError as error:
            refused = error.code
        assert refused in ("", "DCA-404"), name
        assert (inside / "tree").exists() == (not refused), name
        if not refused:
            harmless += 1
            assert contained(inside / "tree"), name
            shutil.rmtree(inside / "tree")
        assert state(outside) == before, name
        assert sorted(path.name for path in inside.iterdir()) == ["hostile.tar.gz"], name
        assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "work"], name
    # Links that stay inside, and nothing else, are none to refuse.
    print(f"{harmless} of {max(24, scale(100))} were harmless and unpacked")


def hostile_wheel(outside: Path, chance: random.Random) -> tuple[str, bytes]:
    how = chance.choice(["climbs", "link", "device", "twice", "through", "case"])
    climb = chance.choice(
        ["../victim", "a/../../victim", f"/{outside}/victim", "..", "a\\..\\..\\victim", f"{outside}/victim"]
    )
    mode = {"link": stat.S_IFLNK | 0o777, "device": stat.S_IFCHR | 0o666}.get(how, stat.S_IFREG | 0o644)
    entries = [("a.py", b"x", stat.S_IFREG | 0o644)]
    if how == "climbs":
        entries.append((climb, b"x", mode))
    elif how == "through":
        entries += [("l", str(outside).encode(), stat.S_IFLNK | 0o777), ("l/victim", b"x", mode)]
    elif how == "case":
        entries += [("b/", b"", stat.S_IFREG | 0o644), ("b", b"x", mode)]
    else:
        entries.append(("a.py" if how == "twice" else "b.py", str(outside / "victim").encode(), mode))
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for name, content, bits in entries:
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system, info.external_attr = name, 3, bits << 16
            archive.writestr(info, content)
    return how, body.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_hostile_wheel_writes_outside_of_its_folder(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("whole")
    before = state(outside)
    for _ in range(max(12, scale(100))):
        how, body = hostile_wheel(outside, chance)
        (tmp_path / "x.whl").write_bytes(body)
        with pytest.raises(DcaError) as refused:
            archives.unpack_wheel(tmp_path / "x.whl", tmp_path / "work/tree")
        assert refused.value.code == "DCA-404", how
        assert not (tmp_path / "work").exists(), how
        assert state(outside) == before, how


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "wheel", "wheel of one part", "many"])
def test_an_archive_that_would_fill_the_disk_is_refused_before_it_does(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In place of 256 MiB, which take a while to pack.
    monkeypatch.setattr(archives, "SMALL_UNPACKED", 16 << 20)
    path, size = tmp_path / "bomb", 24 << 20
    if kind.startswith("tar"):
        info = tarfile.TarInfo("top/zeros")
        info.size = size
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w:xz") as archive:
            archive.addfile(info, Zeros(size))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            parts = {"wheel": 4, "wheel of one part": 1, "many": 64}[kind]
            for number in range(parts):
                with archive.open(f"zeros-{number}", "w") as entry_:
                    for _ in range(size // parts >> 20):
                        entry_.write(bytes(1 << 20))
                    entry_.write(bytes(1 << 20))
    assert path.stat().st_size < 100_000
    (tmp_path / "work").mkdir()
    with pytest.raises(DcaError) as refused:
        (archives.unpack_sdist if kind.startswith("tar") else archives.unpack_wheel)(path, tmp_path / "work/tree")
    assert refused.value.code == "DCA-404"
    assert "unpack to" in refused.value.what
    assert list((tmp_path / "work").iterdir()) == []


class Zeros(io.RawIOBase):
    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        given = min(self.left, size if size >= 0 else self.left)
        self.left -= given
        return bytes(given)


# --- downloads -----------------------------------------------------------------------------------------------

BODY = random.Random(9).randbytes(40_000)


def test_no_download_that_was_cut_or_changed_is_accepted(
    place: Place, tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    body = b""

    def sized(to: BaseHTTPRequestHandler) -> None:
        """What is left of the body, under the length of all of it; or all of what was changed."""
        to.send_response(200)
        if chance.random() < 0.8:
            to.send_header("Content-Length", str(max(len(BODY), len(body))))
        to.end_headers()
        to.wfile.write(body)

    place.odd["/file"] = sized
    cuts, flips, lengths = range(0, 64, max(1, 64 // scale(64 * 10))), scale(1000), scale(64)
    bodies = [BODY[: len(BODY) * part // 64] for part in cuts]
    for _ in range(flips):
        changed = bytearray(BODY)
        bit = chance.randrange(len(BODY) * 8)
        changed[bit // 8] ^= 1 << bit % 8
        bodies.append(bytes(changed))
    bodies += [BODY + chance.randbytes(chance.randrange(1, 9)) for _ in range(lengths)]
    for number, body in enumerate(bodies):  # noqa: B007 - the server reads it
        with pytest.raises(DcaError) as refused:
            index.fetch_url(
                places(f"{place.url}/file"), sha(BODY), tmp_path / "kept", size=len(BODY) if number % 2 else 0
            )
        assert refused.value.code in ("DCA-401", "DCA-402")
        assert refused.value.why
        assert refused.value.remedy
        assert list(tmp_path.iterdir()) == []
    print(f"0 of {len(bodies)} accepted: {len(cuts)} cuts, {flips} flipped bits, {lengths} of another length")
    body = BODY
    assert index.fetch_url(places(f"{place.url}/file"), sha(BODY), tmp_path / "kept").read_bytes() == BODY


@pytest.fixture
def secure(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A server with https, whose certificate this process trusts."""
    folder = tmp_path_factory.mktemp("tls")
    one = Place()
    certificate = secured(one.server, folder)
    one.url = one.url.replace("http:", "https:")
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "GIT_SSL_CAINFO"):
        monkeypatch.setenv(name, str(certificate))
    yield one
    one.server.shutdown()
    one.server.server_close()


def test_no_redirection_from_https_to_anything_else_is_followed(place: Place, secure: Place, tmp_path: Path) -> None:
    place.pages["/file"] = ("x/y", BODY)
    (tmp_path / "here").write_bytes(BODY)
    secure.pages["/file"] = ("x/y", BODY)
    assert index.fetch_url(places(f"{secure.url}/file"), sha(BODY), tmp_path / "kept").read_bytes() == BODY
    (tmp_path / "kept").unlink()
    targets = [
        f"{place.url}/file",
        f"file://{tmp_path}/here",
        f"FILE://{tmp_path}/here",
        "ftp://127.0.0.1/file",
        place.url.replace("http", "HTTP") + "/file",
        "data:;base64,QQ==",
        "gopher://127.0.0.1/x",
    ]
    for status in (301, 302, 303, 307, 308):
        for target in targets:

            def away(to: BaseHTTPRequestHandler, status: int = status, target: str = target) -> None:
                to.send_response(status)
                to.send_header("Location", target)
                to.send_header("Content-Length", "0")
                to.end_headers()

            secure.odd["/away"] = away
            with pytest.raises(DcaError) as refused:
                index.fetch_url(places(f"{secure.url}/away"), sha(BODY), tmp_path / "kept")
            assert refused.value.code == "DCA-402"
            assert place.asked == []
            if status == 301:
                with pytest.raises(DcaError):
                    git.fetch(
                        places(f"{secure.url}/away"), "0" * 40, store.Store(tmp_path / "cache").open(), tmp_path / "log"
                    )
                assert place.asked == []
    assert not (tmp_path / "kept").exists()


def silent(_: BaseHTTPRequestHandler, seconds: float = 40.0) -> None:
    time.sleep(seconds)


def head_by_letters(to: BaseHTTPRequestHandler) -> None:
    for letter in b"HTTP/1.1 200 OK\r\nContent-Length: 40000\r\nX: " + b"y" * 200:
        to.wfile.write(bytes([letter]))
        to.wfile.flush()
        time.sleep(0.3)


def stops_in_the_middle(to: BaseHTTPRequestHandler) -> None:
    to.send_response(200)
    to.send_header("Content-Length", str(len(BODY)))
    to.end_headers()
    to.wfile.write(BODY[:20_000])
    to.wfile.flush()
    time.sleep(40)


def body_by_letters(to: BaseHTTPRequestHandler) -> None:
    to.send_response(200)
    to.send_header("Content-Length", str(len(BODY)))
    to.end_headers()
    for at in range(200):
        to.wfile.write(BODY[at : at + 1])
        to.wfile.flush()
        time.sleep(0.3)


def in_circles(to: BaseHTTPRequestHandler) -> None:
    time.sleep(0.4)
    to.send_response(302)
    to.send_header("Location", f"/file?{time.monotonic()}")
    to.end_headers()


@pytest.mark.parametrize("how", [silent, head_by_letters, stops_in_the_middle, body_by_letters, in_circles])
def test_a_server_that_stalls_is_left_for_the_next_one_in_time(
    how: Callable[[BaseHTTPRequestHandler], None],
    place: Place,
    tmp_path: Path,
    scale: Callable[[int], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the real deadlines in `make prove`; with a second each otherwise."""
    whole = scale(50) == 50
    if not whole:
        for name in ("ANSWER_SECONDS", "STALL_SECONDS"):
            monkeypatch.setattr(index, name, 1.0)
        monkeypatch.setattr(index, "TIMEOUT", (1.0, 1.0))
    place.odd["/file"] = how
    other = Place()
    other.pages["/file"] = ("x/y", BODY)
    started = time.monotonic()
    index.fetch_url(places(f"{place.url}/file", f"{other.url}/file"), sha(BODY), tmp_path / "kept")
    spent = time.monotonic() - started
    print(f"{how.__name__}: left after {spent:.1f} s")
    assert (tmp_path / "kept").read_bytes() == BODY
    assert spent < (20 if whole else 8)
    with pytest.raises(DcaError) as refused:
        index.fetch_url(places(f"{place.url}/file"), sha(BODY), tmp_path / "alone")
    assert refused.value.code == "DCA-402"
    assert refused.value.why
    other.server.shutdown()
    other.server.server_close()


def test_a_place_that_takes_no_connection_is_left_for_the_next_one_in_time(
    place: Place, tmp_path: Path, scale: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if scale(50) != 50:
        monkeypatch.setattr(index, "TIMEOUT", (1.0, 1.0))
    place.pages["/file"] = ("x/y", BODY)
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    # With its queue full, the system does not answer further ones.
    waiting = []
    for _ in range(4):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(full.getsockname())
        waiting.append(one)
    started = time.monotonic()
    dead = f"http://127.0.0.1:{full.getsockname()[1]}/file"
    index.fetch_url(places(dead, f"{place.url}/file"), sha(BODY), tmp_path / "kept")
    spent = time.monotonic() - started
    print(f"no connection: left after {spent:.1f} s")
    assert spent < 20
    for one in (*waiting, full):
        one.close()


# --- kills ---------------------------------------------------------------------------------------------------

FETCH = """
import os, sys
from pathlib import Path
from dca.sources import git, index
from dca.foundation import archives, store
from dca.foundation.events import Silent
from dca.sources.fetch import FetchedSource, Tree
from dca.catalogue.mirrors import places
from dca.catalogue.recipes import SdistSource
root, url, sdist, sha256, commit = sys.argv[1:]
cache, log = store.Store(Path(root)).open(), Path(root) / "log"
os.environ["UV_DEFAULT_INDEX"] = f"{sdist}/simple/"
source = SdistSource(kind="sdist", package="thing", version="1.0", file="thing-1.0.tar.gz", sha256=sha256)
print("ready", flush=True)
target = cache.folder("tree", "one")
with cache.lock("tree", "one"):
    if not target.is_dir():
        store.sweep(target)
        with store.incoming_folder(target) as part:
            archives.unpack_sdist(index.download(source, cache), part / "source")
            git.export(git.fetch(places(url), commit, cache, log), commit, part / "kit")
print(store.tree_hash(target))
"""


@pytest.mark.long
def test_a_fetch_goes_on_whenever_it_is_killed(
    place: Place, tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    """An sdist from an index and a commit from a git server, by the rooms that `dca fetch` uses."""
    body = packed([one for number in range(150) for one in entry(f"top/{number}", chance.randbytes(4000))])
    place.offer("thing-1.0.tar.gz", body)
    one = Repository(tmp_path / "served/repository")
    for number in range(100):
        one.write(f"{number % 7}/{number}", chance.randbytes(4000))
    commit = one.commit()
    with served(tmp_path / "served") as base:
        url = f"{base}repository/.git"
        wanted = whole_run(FETCH, [str(tmp_path / "good"), url, place.url, sha(body), commit])
        cache, kills = tmp_path / "cache", scale(200)
        arguments = [str(cache), url, place.url, sha(body), commit]
        for number in killed_runs(FETCH, arguments, kills, chance):
            for file in (cache / "downloads").glob("*/*"):
                assert file.name.endswith(".part") or sha(file.read_bytes()) == file.parent.name
            assert not (cache / "tree/one").exists() or store.tree_hash(cache / "tree/one") == wanted
            # Every fourth goes on with what several killed ones have left.
            if number % 4 == 3 or number == kills - 1:
                assert whole_run(FETCH, arguments) == wanted
                assert leftovers(cache) == []
                shutil.rmtree(cache)
