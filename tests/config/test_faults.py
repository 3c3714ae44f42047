"""Thousands of spoilt configs, kills at any moment of a write, and two writers at once."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dca import cli
from dca import config as api
from dca.config import YarnSetting
from dca.foundation import store
from dca.foundation.errors import DcaError
from tests.support import ROOT
from tests.support.kills import killed_runs
from tests.support.model_configs import MILLION, MOE, changed, config, listing, spoilt, styled, table, write

pytestmark = pytest.mark.proof


@pytest.fixture(autouse=True)
def no_readers(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache without readers: each edit would start every one that is installed, for seconds."""
    monkeypatch.setenv("DCA_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def run(*words: str | Path) -> tuple[int, str]:
    """The command line in this process: its exit code and all that it says. A traceback would end the test."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = cli.run(["config", *map(str, words)])
    return code, out.getvalue()


def command(chance: random.Random, tables: Path) -> list[str]:
    factor, original = chance.choice(["4", "4.0", "2.5", "1", "1e3"]), chance.choice(["32768", "262144", "1"])
    yarn = ["set-yarn", "--factor", factor, "--original", original]
    return chance.choice(
        [
            yarn,
            yarn,
            [*yarn, "--attention-factor", "1.25"],
            [*yarn, "--for", chance.choice(["transformers-4.45", "transformers-4.51", "transformers-5", "qwen-fork"])],
            ["set-dca"],
            ["set-dca", "--model", MILLION, "--sparse-sizes", "30,800"],
            ["set-dca", "--chunk", "8192", "--local", "1024", "--original", "32768", "--length", "131072"],
            ["set-dca", "--model", MILLION, "--sparse", str(tables / chance.choice(["list.json", "inside.json"]))],
            ["use-1m"],
            ["drop-dca"],
            ["drop-dca", "--length", "65536"],
        ]
    )


def scene(folder: Path, data: bytes, chance: random.Random) -> str:
    """Put a config into a folder in one of the ways that they are found; how."""
    path = folder / "config.json"
    odd = ["read-only", "read-only folder", "fifo", "directory", "dangling"]
    how = chance.choice([*["file"] * 12, "link", "link", *odd])
    if how in ("file", "read-only", "read-only folder"):
        path.write_bytes(data)
    elif how == "link":
        (folder.parent / "blob").write_bytes(data)
        path.symlink_to("../blob")
    elif how == "fifo":
        os.mkfifo(path)
    elif how == "directory":
        path.mkdir()
    else:
        path.symlink_to("../nothing")
    if chance.random() < 0.2:
        (folder / "config_1m.json").write_bytes(styled(changed(chance), chance))
    if how == "read-only":
        path.chmod(0o444)
    if how == "read-only folder":
        folder.chmod(0o555)
    return how


def state(folder: Path) -> tuple[list[tuple[str, str]], bytes | None]:
    path = folder / "config.json"
    regular = path.exists() and stat.S_ISREG(path.stat().st_mode)
    return listing(folder), path.read_bytes() if regular else None


@pytest.mark.long
def test_spoilt_configs_are_refused_whole_or_changed_reversibly(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    """10,000: no traceback, no changed byte when refused, undo after set is the identity, set after set is set."""
    write(tmp_path, table(28, 28), "list.json")
    write(tmp_path, {"dual_chunk_attention_config": {"sparse_attention_config": table(28, 28)}}, "inside.json")
    seen: Counter[str] = Counter()
    for number in range(scale(10_000)):
        folder = tmp_path / f"{number}/model"
        folder.mkdir(parents=True)
        data = styled(changed(chance), chance)
        how = scene(folder, spoilt(data, chance) if chance.random() < 0.4 else data, chance)
        before, words = state(folder), command(chance, tmp_path)
        asked = run("check", folder, *(["--json"] if chance.random() < 0.5 else []))
        assert asked[0] in (0, 1, 2), asked
        assert state(folder) == before
        plotted = run("plot", folder, "--out", tmp_path / "plot.svg")
        assert plotted[0] in (0, 2), plotted
        code, told = run(words[0], folder, *words[1:])
        assert code in (0, 2), told
        if code:
            assert "DCA-2" in told, told
            assert "Next:" in told, told
            assert state(folder) == before, (words, how)
            seen[f"refused {how if how not in ('file', 'link') else told[:7]}"] += 1
        elif state(folder) == before:
            assert "nothing was changed" in told, told
            seen["says so already"] += 1
        else:
            seen["changed"] += 1
            changed_once = state(folder)
            again = run(words[0], folder, *words[1:])
            assert "nothing was changed" in again[1], (words, told, again)
            assert state(folder) == changed_once
            assert run("undo", folder)[0] == 0
            assert state(folder) == before, (words, how)
            assert run("undo", folder)[0] == 2
        folder.chmod(0o755)
        store.remove(folder.parent)
    print(dict(seen))
    assert seen["changed"] > scale(10_000) // 10


SETS = """
import sys
from pathlib import Path
from dca import config
folder = Path(sys.argv[1])
print("ready", flush=True)
for _ in range(3):
    config.set_yarn(folder, config.YarnSetting(factor=4, original=32768))
    config.set_dca(folder, model=sys.argv[2], sparse=(30, 800))
    config.undo(folder)
    config.undo(folder)
"""


@pytest.mark.parametrize("linked", [pytest.param(False, marks=pytest.mark.whole), True])
def test_a_config_is_old_or_new_whenever_its_writer_is_killed(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int], linked: bool
) -> None:
    """1,000 kills in all: the file is one of the three that it may be, and undo leads back to the first."""
    folder = write(tmp_path / "model", config())
    first = (folder / "config.json").read_bytes()
    if linked:
        (folder / "config.json").rename(tmp_path / "blob")
        (folder / "config.json").symlink_to("../blob")
    names = listing(folder)
    api.set_yarn(folder, YarnSetting(factor=4, original=32768))
    second = (folder / "config.json").read_bytes()
    api.set_dca(folder, model=MILLION, sparse=(30, 800))
    third = (folder / "config.json").read_bytes()
    api.undo(folder)
    api.undo(folder)
    seen: Counter[int] = Counter()
    for _ in killed_runs(SETS, [str(folder), MILLION], scale(500), chance):
        content = (folder / "config.json").read_bytes()
        assert content in (first, second, third)
        seen[(first, second, third).index(content)] += 1
        with contextlib.suppress(DcaError):
            for _ in range(3):
                api.undo(folder)
        assert (folder / "config.json").read_bytes() == first
        # What was under way goes with the next write.
        api.set_yarn(folder, YarnSetting(factor=4, original=32768))
        assert (folder / "config.json").read_bytes() == second
        api.undo(folder)
        assert listing(folder) == names
    print(dict(seen))
    if linked:
        assert (tmp_path / "blob").read_bytes() == first


OUT = """
import shutil, sys
from pathlib import Path
from dca import config
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
for factor in (2, 4, 8, 16):
    config.set_yarn(folder, config.YarnSetting(factor=factor, original=32768), out=out / str(factor))
"""


def test_a_new_folder_is_whole_or_absent_whenever_its_writer_is_killed(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    folder, out = write(tmp_path / "model", config()), tmp_path / "out"
    for number in range(20):
        (folder / f"model-{number}.safetensors").write_bytes(b"")
    names = listing(folder)

    def between() -> None:
        if out.exists():
            store.remove(out)
        out.mkdir()

    for _ in killed_runs(OUT, [str(folder), str(out)], scale(200), chance, between):
        for made in out.iterdir():
            if not made.name.endswith(".part"):
                assert len(list(made.iterdir())) == 21
                assert json.loads((made / "config.json").read_text())["rope_scaling"]["factor"] == float(made.name)
        assert listing(folder) == names


WRITES = """
import sys
from pathlib import Path
from dca import config
folder, factor = Path(sys.argv[1]), float(sys.argv[2])
for _ in range(int(sys.argv[3])):
    config.set_yarn(folder, config.YarnSetting(factor=factor, original=32768))
"""


def test_of_two_writers_one_is_last_and_nothing_is_lost(tmp_path: Path, scale: Callable[[int], int]) -> None:
    folder = write(tmp_path / "model", config(MOE))
    before = (folder / "config.json").read_bytes()
    count = str(max(10, scale(500)))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITES, str(folder), factor, count],
            env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
            stderr=subprocess.PIPE,
            text=True,
        )
        for factor in ("2", "4")
    ]
    assert [writer.communicate()[1] for writer in writers] == ["", ""]
    steps = json.loads((folder / ".dca-undo.json").read_text())["steps"]
    # Each step stands on the one before: no change was overwritten unseen.
    hashes = [step["before"]["sha256"] for step in steps] + [store.sha256_file(folder / "config.json")]
    assert [step["after"] for step in steps] == hashes[1:]
    for _ in steps:
        api.undo(folder)
    assert (folder / "config.json").read_bytes() == before
    assert [name for name, _ in listing(folder)] == ["config.json"]
