"""An interruption at any point leaves a valid index, and the next command completes it."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pypi_simple import PyPISimple

from dca import cli, publish
from dca.foundation import store
from dca.publish import layout
from dca.publish.check import check
from dca.publish.folder import Folder
from tests.support import ROOT
from tests.support.faulty import Faulty
from tests.support.index_links import broken, differing
from tests.support.kills import killed_command, leftovers
from tests.support.made_wheels import make, put
from tests.support.served import pip, served, uv

pytestmark = pytest.mark.proof
State = dict[str, tuple[str, str | None, tuple[str, ...]]]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Faulty:
    return Faulty.build(tmp_path_factory.mktemp("faulty"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, faulty: Faulty) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene"), faulty)


class Scene:
    """An index with three wheels, one of them removed, and commands that change it in every way."""

    def __init__(self, folder: Path, faulty: Faulty) -> None:
        self.index, self.whole = folder / "index", folder / "whole"
        wheels = [
            make(folder / "dist", version, cuda=cuda)
            for version, cuda in (("1.0+cu121", "12.1"), ("1.0+cu124", "12.4"), ("0.9+cu124", "12.4"))
        ]
        put(self.whole, *wheels)
        publish.remove(["0.9+cu124"], Folder(self.whole))
        new = [make(folder / "dist", "2.0+cu130", cuda="13.0"), make(folder / "dist", "1.0", project="other")]
        report = folder / "note.json"
        report.write_text("{}")
        dca, to = [sys.executable, "-m", "dca"], ["--index", str(self.index), "--quiet"]
        publishing = [*dca, "publish", *to, "--cache-dir", str(folder / "cache")]
        self.commands = [
            [*publishing, *map(str, new), "--url", "https://host/"],
            [*publishing, str(wheels[0]), str(wheels[2])],
            [*publishing, str(wheels[0]), "--evidence", str(report)],
            [*dca, "index", "yank", *to, "1.0+cu121", "--reason", "wrong"],
            [*dca, "index", "remove", *to, wheels[0].name],
            [*dca, "index", "remove", *to, "1.0+cu124"],
        ]
        self.before = self.state(self.whole)
        self.after: list[State] = []
        self.counts = self._calls(faulty)

    def start(self) -> None:
        """The index as it was."""
        if self.index.exists():
            store.remove(self.index)
        shutil.copytree(self.whole, self.index)

    @staticmethod
    def state(index: Path) -> State:
        """The listed wheels, without their times."""
        return {
            one.file: (one.sha256, one.yanked, tuple(proof.path for proof in one.evidence))
            for one in publish.listing(Folder(index)).wheels
            if one.state == "listed"
        }

    def _calls(self, faulty: Faulty) -> list[int]:
        """How many calls of each command change files."""
        counts = []
        for words in self.commands:
            self.start()
            done = faulty.run(words, self.index)
            assert done.returncode == 0, done.stderr
            assert check(self.index).fine
            counts.append(done.calls)
            self.after.append(self.state(self.index))
        return counts

    def left_right(self, number: int) -> None:
        """After an interruption no link is broken, and the same command completes the index."""
        assert (check(self.index).wrong, broken(self.index), differing(self.index)) == ((), [], [])
        reached = self.state(self.index)
        names = set(self.before) | set(self.after[number])
        # Some of several wheels may be published already; each has its old or its new state.
        for name in names:
            assert reached.get(name) in (self.before.get(name), self.after[number].get(name))
        # In this process, which has everything loaded.
        assert cli.run(self.commands[number][3:]) == 0
        found = check(self.index)
        assert (found.wrong, broken(self.index)) == ((), [])
        assert [one for one in found.behind if not one.endswith("belongs to no wheel.")] == []
        publish.gc(Folder(self.index))
        assert check(self.index).fine
        assert self.state(self.index) == self.after[number]
        assert leftovers(self.index) == []


def points(counts: list[int], number: int, chance: random.Random) -> list[tuple[int, int]]:
    """Random calls of the commands, all equally likely."""
    every = [(which, at) for which, count in enumerate(counts) for at in range(1, count + 1)]
    return [*chance.sample(every, min(number, len(every))), *chance.choices(every, k=max(0, number - len(every)))]


@pytest.mark.long
def test_an_index_is_right_whenever_publishing_is_killed(
    scene: Scene, faulty: Faulty, chance: random.Random, scale: Callable[[int], int]
) -> None:
    """kill -9 from outside, before or after a write, sync, rename, link, removal or new file."""
    count = scale(1000)
    for which, at in points(scene.counts, count, chance):
        scene.start()
        done = faulty.run(scene.commands[which], scene.index, at, chance.choice(["before", "after"]))
        assert done.killed
        scene.left_right(which)
    print(f"{count} kills at {sum(scene.counts)} calls of {len(scene.counts)} commands")


@pytest.mark.long
def test_an_index_is_right_whenever_its_first_publishing_is_killed(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    """At random times, without the fault library."""
    words = [sys.executable, "-m", "dca", "publish", "--index", str(tmp_path / "index"), str(make(tmp_path))]
    words += ["--cache-dir", str(tmp_path / "cache")]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    started = time.monotonic()
    subprocess.run(words, check=True, capture_output=True, env=env, cwd=ROOT)
    whole = time.monotonic() - started
    killed = 0
    for _ in range(scale(100)):
        store.remove(tmp_path / "index")
        killed += killed_command(words, whole * (0.3 + 0.7 * chance.random()))
        if (tmp_path / "index" / layout.SETTINGS).exists():
            assert (check(tmp_path / "index").wrong, broken(tmp_path / "index")) == ((), [])
            assert differing(tmp_path / "index") == []
        subprocess.run(words, check=True, capture_output=True, env=env, cwd=ROOT)
        assert check(tmp_path / "index").fine
    print(f"{killed} kills")


@pytest.mark.long
@pytest.mark.parametrize("how", [str(errno.EIO), f"{errno.ENOSPC}+"], ids=["EIO once", "ENOSPC from then on"])
def test_an_index_is_right_whatever_cannot_be_written(
    scene: Scene, faulty: Faulty, chance: random.Random, scale: Callable[[int], int], how: str
) -> None:
    """A stand-in for a failing disk: the library lets the call fail."""
    seen: dict[str, int] = {}
    for which, at in points(scene.counts, scale(200), chance):
        scene.start()
        done = faulty.run(scene.commands[which], scene.index, at, how)
        assert "Traceback" not in done.stderr
        code = re.match(r"DCA-\d+", done.stderr)
        seen[code[0] if code else "fine"] = seen.get(code[0] if code else "fine", 0) + 1
        if done.returncode == 0:
            # Removing a folder that is not empty may fail, and a leftover that cannot be removed is no error.
            assert scene.state(scene.index) == scene.after[which]
        else:
            assert done.returncode == 1, done.stderr
            assert code
            assert code[0] == ("DCA-101" if "+" in how else "DCA-102")
        scene.left_right(which)
    print(f"{how}: {seen} at {sum(scene.counts)} calls")


def test_every_byte_counts(scene: Scene, chance: random.Random, scale: Callable[[int], int]) -> None:
    """One changed bit in a wheel, its metadata, evidence, a record, a page, or the files in .dca."""
    scene.start()
    publish.yank(["1.0+cu121"], "wrong", Folder(scene.index))
    assert check(scene.index).fine
    names = [name for name, _ in store.walk(scene.index) if not name.endswith(".lock")]
    empty = [name for name in names if not (scene.index / name).stat().st_size]
    assert empty == [layout.AS_IT_IS]
    found = 0
    for number in range(scale(500)):
        # Every file in turn, so that small ones are not forgotten.
        path = scene.index / [name for name in names if name not in empty][number % (len(names) - 1)]
        content = path.read_bytes()
        place = chance.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :])
        assert not check(scene.index).fine, (path, place)
        found += 1
        path.write_bytes(content)
    assert check(scene.index).fine
    for name in names:
        path = scene.index / name
        content = path.read_bytes()
        path.unlink()
        assert not check(scene.index).fine, name
        path.write_bytes(content)
    print(f"{found} of {found} found")


@pytest.mark.long
def test_publishers_at_once_lose_nothing(tmp_path: Path, python: Path, scale: Callable[[int], int]) -> None:
    """Processes publish to one index while wheels are installed from it."""
    whole = scale(32) == 32
    publishers, wheels, rounds = (32, 50, 10) if whole else (4, 5, 1)
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    installs = 0
    for turn in range(rounds):
        folder = tmp_path / str(turn)
        index = folder / "index"
        put(index, make(folder, "0.1+cu124"))
        shared = [make(folder / "shared", f"7.{number}") for number in range(3)]
        given = [
            [
                make(folder / str(who), f"{1 + who}.{number}+cu{view}", cuda=f"{view[:2]}.{view[2]}")
                for number, view in zip(range(wheels - len(shared)), ["121", "124", "130"] * wheels, strict=False)
            ]
            for who in range(publishers)
        ]
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "dca",
                    "publish",
                    "--index",
                    str(index),
                    "--json",
                    "--cache-dir",
                    str(folder / "cache"),
                    *map(str, [*mine, *shared]),
                ],
                env=env,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for mine in given
        ]
        with ThreadPoolExecutor(publishers) as waiting, served(index) as web:
            ends = [waiting.submit(one.communicate) for one in processes]
            while True:
                ended = all(end.done() for end in ends)
                installs += _installs(web.url, python, tmp_path / "target")
                assert web.errors() == []
                if ended:
                    break
            outputs: list[tuple[str, str]] = [end.result() for end in ends]
        assert [one.returncode for one in processes] == [0] * publishers, outputs
        added = [one["file"] for text, _ in outputs for one in json.loads(text)["added"]]
        wanted = {path.name for mine in given for path in mine} | {path.name for path in shared}
        assert sorted(added) == sorted(wanted), "each wheel was added once, by one of them"
        assert {one.file for one in publish.listing(Folder(index)).wheels} == wanted | {
            "vllm-0.1+cu124-py3-none-any.whl"
        }
        assert check(index).fine
        store.remove(folder)
    print(f"{publishers} publishers, {wheels} wheels, {rounds} rounds; {installs} installations meanwhile")


def _installs(url: str, python: Path, target: Path) -> int:
    """Read everything and install the newest wheel, by pip and uv."""
    with PyPISimple(f"{url}simple/") as client:
        names = [package.filename for package in client.get_project_page("vllm").packages]
        assert len(names) == len(set(names))
    words = ["--no-deps", "--index-url", f"{url}cu124/", "vllm"]
    for done in (
        pip(python, "--target", str(target / "pip"), *words),
        uv("pip", "install", "--python", str(python), "--target", str(target / "uv"), *words),
    ):
        assert done.returncode == 0, done.stderr
    assert len(list(target.glob("*/vllm/__init__.py"))) == 2
    store.remove(target)
    return 2


@pytest.mark.long
def test_of_publishers_with_other_bytes_one_wins(tmp_path: Path) -> None:
    wheels = [make(tmp_path / str(who), content=f"x = {who}\n") for who in range(4)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    words = [sys.executable, "-m", "dca", "publish", "--index", str(tmp_path / "index"), "--cache-dir", str(tmp_path)]
    processes = [
        subprocess.Popen(
            [*words, str(wheel)], env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for wheel in wheels
    ]
    errors = [one.communicate()[1] for one in processes]
    assert sorted(one.returncode for one in processes) == [0, 9, 9, 9], errors
    assert sum("DCA-902" in error for error in errors) == 3
    assert check(tmp_path / "index").fine


@pytest.mark.long
def test_one_more_wheel_rewrites_nothing_of_the_others(
    tmp_path: Path, scale: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    index, count = tmp_path / "index", max(500, scale(10_000))
    views = [("cu121", "12.1"), ("cu124", "12.4"), ("cu130", "13.0")]
    with monkeypatch.context() as patched:
        # To set up faster: nothing is killed here.
        patched.setattr(os, "fsync", lambda _: None)
        put(index, *(make(tmp_path / "dist", f"1.{n}+{views[n % 3][0]}", cuda=views[n % 3][1]) for n in range(count)))
    before = {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in store.walk(index)}
    more = make(tmp_path / "dist", "2.0+cu124", cuda="12.4")
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    words = [sys.executable, "-m", "dca", "publish", "--index", str(index), "--quiet", "--cache-dir", str(tmp_path)]
    started = time.monotonic()
    subprocess.run([*words, str(more)], env=env, cwd=ROOT, check=True, capture_output=True)
    seconds = time.monotonic() - started
    after = {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in store.walk(index)}
    assert set(before) <= set(after)
    assert {name for name in before if before[name] != after[name]} - {f"{layout.OWN}/locks/publish-index.lock"} == {
        "simple/vllm/index.html",
        "simple/vllm/index.json",
        "cu124/vllm/index.html",
        "cu124/vllm/index.json",
        "index.html",
        layout.SUMS,
    }
    assert len(set(after) - set(before)) == 4
    if count < 1000:
        assert check(index).fine
    print(f"one more wheel to {count}: {seconds:.2f} s, the start of the program included")
