"""kill -9 at any moment leaves the old or the new state, and the next run goes on."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dca import store
from faults.kills import killed_runs, leftovers
from support import ROOT
from web import Place, sha

pytestmark = pytest.mark.proof

FILE = """
import sys
from pathlib import Path
from dca import store
target = Path(sys.argv[1])
print("ready", flush=True)
for number in range(60):
    store.write_bytes(target, str(number % 10).encode() * 300_000)
"""

FOLDER = """
import sys
from pathlib import Path
from dca import store
target = Path(sys.argv[1])
print("ready", flush=True)
for number in range(12):
    store.sweep(target)
    with store.incoming_folder(target) as part:
        for name in range(40):
            (part / str(name)).write_bytes(str(number % 10).encode() * 5_000)
"""


def test_a_file_is_old_or_new_whenever_its_writer_is_killed(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    target = tmp_path / "document"
    for _ in killed_runs(FILE, [str(target)], scale(200), chance):
        content = target.read_bytes()
        assert len(content) == 300_000
        assert len(set(content)) == 1


def test_a_folder_is_whole_or_absent_whenever_its_writer_is_killed(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    target = tmp_path / "tree"
    for _ in killed_runs(FOLDER, [str(target)], scale(200), chance):
        # Between removing the old folder and moving the new one there is a moment with neither.
        if target.exists():
            files = sorted(target.iterdir())
            assert len(files) == 40
            assert len({path.read_bytes() for path in files}) == 1
        store.sweep(target)
        assert leftovers(tmp_path) == []


BRING = """
import sys
from pathlib import Path
from dca import provide, store
from dca.events import Silent
from dca.toolkits import Component, Layout, Redist, ToolkitSource
root, url, sha256, size = sys.argv[1:]
one = Component(name="nvcc", version="1.0", relative_path="nvcc.tar.xz", sha256=sha256, size=int(size))
source = ToolkitSource(
    schema="dca.toolkit/1", name="one", title="a server", version="1.0", machine="any", download_mb=1,
    redist=Redist(
        url="https://nowhere.example/redist/", label="1.0", manifest="m.json", sha256=sha256, components=(one,)
    ),
    layout=Layout(copies=(("redist/nvcc/bin", "bin"), ("redist/nvcc/lib", "lib64"))),
)
print("ready", flush=True)
print(provide.bring(source, store.Store(Path(root)).open(), Silent(), Path(root) / "log"))
"""


def test_a_toolkit_is_whole_or_absent_whenever_bringing_it_is_killed(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in of many files, with a shell script for nvcc."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:xz", preset=0) as archive:
        for name, content in {
            "bin/nvcc": b"#!/bin/sh\necho 'release 1.0, V1.0'\n",
            **{f"lib/{number}": chance.randbytes(20_000) for number in range(100)},
        }.items():
            info = tarfile.TarInfo(f"top/{name}")
            info.size, info.mode = len(content), 0o755
            archive.addfile(info, io.BytesIO(content))
    place = Place()
    place.pages["/nvcc.tar.xz"] = ("application/x-xz", body.getvalue())
    monkeypatch.setenv("DCA_REDIST_URL", place.url)
    cache = tmp_path / "cache"
    arguments = [str(cache), place.url, sha(body.getvalue()), str(len(body.getvalue()))]
    for _ in killed_runs(BRING, arguments, scale(100), chance, lambda: shutil.rmtree(cache, ignore_errors=True)):
        for kept in (cache / "downloads").glob("*/*"):
            assert kept.name.endswith(".part") or sha(kept.read_bytes()) == kept.parent.name
        for whole in (cache / "toolkit").glob("one-*"):
            assert (whole / "bin/nvcc").is_file()
            assert len(list((whole / "lib64").iterdir())) == 100
    # What the last one left is no hindrance, and goes.
    done = subprocess.run(
        [sys.executable, "-c", BRING, *arguments], env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert leftovers(cache / "toolkit") == []
    place.server.shutdown()
    place.server.server_close()
