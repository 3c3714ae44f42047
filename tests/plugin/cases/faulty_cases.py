"""Every single fault in plan, rotation and merge makes some drawn step wrong; runs where torch is, without vLLM."""

from __future__ import annotations

import importlib
import math
import os
import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from drawn import Drawn, Request, draw, error, installed
from faults import FAULTS, Fault

import vllm_dca

SOURCES = Path(vllm_dca.__file__).parent
FILES = ("attention.py", "chunking.py", "rotary.py", "spans.py")
FOUND = 1e-3


def steps() -> list[Drawn]:
    """Steps that together show every fault: a mixture of all, and drawn ones."""
    mixture = (
        Request(70, 1, 66),
        Request(33, 20, 40),
        Request(5, 5, 5),
        Request(16, 16, 16),
        Request(49, 1, 49),
        Request(64, 31, 80),
        Request(0, 0, 1),
    )
    made = [Drawn(size, size - 16, 8, 1, 2, 8, 15, prompt, mixture, 3) for size, prompt in ((24, False), (20, True))]
    decodes = tuple(Request(length, 1, length) for length in (60, 18, 40))
    chance = random.Random(1)
    return [*made, Drawn(24, 8, 8, 2, 1, 8, 0, False, decodes, 4), *(draw(chance) for _ in range(30))]


STEPS = steps()
SEEN: dict[Fault, float] = {}


def damaged(fault: Fault, folder: Path) -> Any:
    """The plugin's modules with a fault in them."""
    package = folder / "damaged"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in FILES:
        shutil.copy(SOURCES / name, package / name)
    text = (package / fault.file).read_text()
    (package / fault.file).write_text(text.replace(fault.old, fault.new))
    for name in [name for name in sys.modules if name.partition(".")[0] == "damaged"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        names = (Path(file).stem for file in FILES)
        return SimpleNamespace(**{name: importlib.import_module(f"damaged.{name}") for name in names})
    finally:
        sys.path.remove(str(folder))


def worst(plugin: Any) -> float:
    """By how much the plugin is wrong over the steps, up to where it is wrong enough; infinite where it only stops."""
    most, stopped = 0.0, False
    for drawn in STEPS:
        try:
            wrong = error(drawn, plugin)
        except (IndexError, RuntimeError, ValueError):
            wrong = math.inf
        if wrong == math.inf:
            stopped = True
        else:
            most = max(most, wrong)
        if most > FOUND:
            return most
    return math.inf if stopped else most


def aside(fault: Fault, folder: Path) -> float:
    """By how much the plugin is wrong with a fault, found in a process of its own: a fault may end it."""
    result = folder / "worst"
    child = os.fork()
    if not child:
        try:
            result.write_text(repr(worst(damaged(fault, folder))))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return float(result.read_text()) if result.is_file() else math.inf


def test_without_a_fault_all_steps_are_right() -> None:
    assert worst(installed()) < 2e-5


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.wrong.replace(" ", "-"))
def test_a_fault_is_found(fault: Fault, tmp_path: Path) -> None:
    assert (SOURCES / fault.file).read_text().count(fault.old) == 1
    SEEN[fault] = aside(fault, tmp_path)
    assert SEEN[fault] > FOUND


def test_there_are_many_and_here_is_how_each_shows(capsys: pytest.CaptureFixture[str]) -> None:
    if len(SEEN) < len(FAULTS):
        pytest.skip("not all of them were run")
    with capsys.disabled():
        print(f"\n{len(FAULTS)} single faults; the largest error of each:")
        for fault, seen in SEEN.items():
            print(f"  {'stops' if seen == math.inf else f'{seen:.0e}':>7}  {fault.file:<13} {fault.wrong}")
    assert len(FAULTS) >= 30
    assert sum(seen < math.inf for seen in SEEN.values()) >= 30
