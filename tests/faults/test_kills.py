"""kill -9 at any moment leaves the old or the new state, and the next run goes on."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from dca import store
from faults.kills import killed_runs, leftovers

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
