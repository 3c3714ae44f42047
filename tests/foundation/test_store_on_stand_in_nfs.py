"""The cache on a stand-in for NFS, and on file systems that cannot hold one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dca.foundation import store
from tests.support import ROOT, wait_for

pytestmark = pytest.mark.slow

SOURCE = ROOT / "tests/support/nfs.c"
START = """
import contextlib, os, sys, time
from pathlib import Path
from dca.foundation import store
from dca.foundation.errors import DcaError
root = Path(sys.argv[1])
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = next(path for name in ("cc", "gcc", "g++") if (path := shutil.which(name)))
    made = tmp_path_factory.mktemp("nfs") / "nfs.so"
    subprocess.run([compiler, "-x", "c", "-shared", "-fPIC", "-o", made, SOURCE, "-ldl"], check=True)
    return made


def start(program: str, root: Path, library: Path, lacks: str = "") -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "LD_PRELOAD": str(library), "NFS_LACKS": lacks}
    words = [sys.executable, "-c", START + program, str(root)]
    return subprocess.Popen(words, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(program: str, root: Path, library: Path, lacks: str = "") -> str:
    process = start(program, root, library, lacks)
    out, wrong = process.communicate(timeout=60)
    assert process.returncode == 0, wrong
    return out


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


REPLACE = """
for content in ("old", "new"):
    with store.incoming_folder(root / "folder") as part:
        (part / "file").write_text(content)
    store.write_bytes(root / "file", content.encode())
with store.scratch(root) as work:
    (work / "x").touch()
"""


def test_folders_are_replaced_and_nothing_is_left(tmp_path: Path, library: Path) -> None:
    run(REPLACE, tmp_path, library)
    assert (tmp_path / "folder/file").read_text() == (tmp_path / "file").read_text() == "new"
    assert names(tmp_path) == ["file", "folder"]


HOLD = """
with store.incoming_folder(root / "folder") as part, store.scratch(root), store.incoming(root / "file"):
    (root / "ready").touch()
    time.sleep(60)
"""


def test_what_a_killed_run_leaves_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path, library: Path) -> None:
    holder = start(HOLD, tmp_path, library)
    sweep = "for name in ('folder', store.SCRATCH, 'file'): store.sweep(root / name)"
    try:
        assert wait_for((tmp_path / "ready").exists)
        held = [name for name in names(tmp_path) if name.endswith(".part")]
        assert len(held) == 3
        run(sweep, tmp_path, library)
        assert [name for name in names(tmp_path) if name.endswith(".part")] == held
    finally:
        holder.kill()
        holder.communicate()
    run(sweep, tmp_path, library)
    assert names(tmp_path) == ["ready"]


def test_two_runs_exclude_each_other(tmp_path: Path, library: Path) -> None:
    program = """
cache = store.Store(root).open()
with cache.lock("build", "x", lambda: print("waits", flush=True)):
    print("has it", time.time(), flush=True)
    time.sleep(1)
    print("gives it back", time.time(), flush=True)
"""
    runs = [start(program, tmp_path, library) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in runs]
    spans = sorted([float(line.split()[-1]) for line in text.splitlines() if line[-1].isdigit()] for text in said)
    assert spans[0][1] <= spans[1][0]
    assert any("waits" in text for text in said)


OPEN = """
try:
    store.Store(root).open()
except DcaError as error:
    print(error)
"""


@pytest.mark.parametrize(("lacks", "named"), [("symlink", "symbolic links"), ("exec", "programs"), ("", "")])
def test_a_file_system_that_cannot_hold_a_cache_is_refused_by_its_name(
    lacks: str, named: str, tmp_path: Path, library: Path
) -> None:
    said = run(OPEN, tmp_path, library, lacks)
    if not lacks:
        assert said == ""
        return
    kind, mounted = store._mounted(tmp_path)
    place = f"a file system without {named} ({kind}, mounted at {mounted})"
    assert said.startswith(f"DCA-102: the cache folder {tmp_path} is on {place}.")
    assert "--cache-dir" in said
    assert [name for name in names(tmp_path) if name != "CACHEDIR.TAG"] == []


def test_the_file_system_of_a_folder_is_the_one_that_is_mounted_nearest() -> None:
    assert store._mounted(Path("/proc/self")) == ("proc", "/proc")
    assert store._mounted(Path("/nonexistent"))[1] == "/"


def test_a_file_system_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.Store(tmp_path).open()
    monkeypatch.setattr(os, "access", lambda *_: False)
    store.Store(tmp_path).open()
    assert names(tmp_path) == ["CACHEDIR.TAG"]
