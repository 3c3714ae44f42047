"""A matrix of a recipe with one small kernel, which nvcc compiles: real builds, a failure, kills of a driver."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dca.foundation import store
from dca.matrix.values import Outcome
from dca.pipeline.wheel import Made
from tests.support import INDEX_ONLY, ROOT, link_cache, programs, wait_for
from tests.support.kills import leftovers
from tests.support.toy import Toy

pytestmark = [pytest.mark.long, pytest.mark.network]


def outcome(done: subprocess.CompletedProcess[str]) -> Outcome:
    """The report of a matrix, whose exit code the test has looked at."""
    return Outcome.model_validate(json.loads(done.stdout))


def test_a_cell_that_does_not_compile_fails_alone_and_is_explained(toy: Toy) -> None:
    file = toy.write('with = ["broken", ""]')
    done = toy.run("matrix", file, "--out", toy.folder / "one", "--json")
    assert done.returncode == 6, done.stderr
    broken, good = outcome(done).cells
    assert (broken.state, good.state) == ("failed", "built")
    assert broken.trouble is not None
    assert broken.trouble.code == "DCA-603"
    assert [known.id for known in broken.trouble.known] == ["gcc-too-new"]
    (wheel,) = outcome(done).wheels
    assert Path(wheel.file).is_file()
    # The broken kernel's build was the first, and compiled what they share.
    assert (wheel.objects, wheel.objects_compiled_now) == (2, 0)
    again = toy.run("matrix", file, "--out", toy.folder / "one", "--json")
    assert [cell.state for cell in outcome(again).cells] == ["failed", "unchanged"]


def test_cells_that_differ_in_python_alone_compile_nothing(toy: Toy, pythons: tuple[str, str]) -> None:
    # Both have been planned, and the second has been built by nobody.
    done = toy.run("matrix", toy.write(f"python = {json.dumps(pythons)}"), "--out", toy.folder / "two", "--json")
    assert done.returncode == 0, done.stderr
    report = outcome(done)
    assert [cell.state for cell in report.cells] == ["built", "shared"]
    assert [cell.python.rpartition(".")[0] for cell in report.cells] == list(pythons)
    (wheel,) = report.wheels
    assert wheel.cells == tuple(cell.id for cell in report.cells)
    # Whoever asks first: the other's cell alone finds the wheel.
    second = toy.run(
        "matrix", toy.folder / "m.toml", "--cell", report.cells[1].id, "--out", toy.folder / "two", "--json"
    )
    (found,) = outcome(second).wheels
    assert (found.unchanged, found.objects_compiled_now, found.sha256) == (True, 0, wheel.sha256)


def test_a_driver_killed_while_it_compiles_goes_on(toy: Toy) -> None:
    file, out = toy.write('arch = ["8.0", "9.0"]\nwith = "more"'), toy.folder / "three"
    log = toy.folder / "killed.log"
    with log.open("w") as stream:
        words = toy.words("matrix", file, "--out", out)
        process = subprocess.Popen(words, cwd=toy.folder, env=toy.env, stderr=stream, stdout=stream)
    # Until it compiles the second wheel, when the first is there.
    compiles = [lambda: len(list(out.glob("*.whl"))) == 1, lambda: bool(programs(f"{toy.cache}/build/"))]
    for condition in compiles:
        assert wait_for(lambda met=condition: met() or process.poll() is not None, 300.0), log.read_text()  # type: ignore[misc]
        if process.poll() is not None:
            break
    process.kill()
    assert process.wait() == -signal.SIGKILL, log.read_text()
    done = toy.run("matrix", file, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert [cell.state for cell in outcome(done).cells] == ["unchanged", "built"]
    assert len(list(out.glob("*.whl"))) == 2


@pytest.mark.proof
def test_a_driver_killed_at_random_ends_with_the_wheels_of_one_that_was_not(
    toy: Toy, cache: store.Store, scale: Callable[[int], int], chance: random.Random, tmp_path: Path
) -> None:
    file = toy.write('with = ["", "more"]')
    took, expected = 0.0, dict[str, str]()
    for number in range(scale(10) + 1):
        # Nobody has compiled anything for it.
        (tmp_path / f"cache-{number}").mkdir()
        one, out = toy.with_cache(link_cache(tmp_path / f"cache-{number}", cache)), tmp_path / f"out-{number}"
        if number:
            process = subprocess.Popen(
                one.words("matrix", file, "--out", out), cwd=toy.folder, env=toy.env, stderr=subprocess.DEVNULL
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(1.0, took))
            process.kill()
            process.wait()
        began = time.monotonic()
        done = one.run("matrix", file, "--out", out)
        assert done.returncode == 0, done.stderr
        wheels = {path.name: store.sha256_file(path) for path in out.glob("*.whl")}
        if number:
            assert wheels == expected
            assert leftovers(out) == []
        else:
            took, expected = time.monotonic() - began, wheels
            assert len(expected) == 2


@pytest.mark.whole
def test_eight_cells_are_built_once_per_plan(eight_alone: dict[str, str]) -> None:
    assert len(eight_alone) == 4


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["toy", "index-only"])
def test_a_wheel_has_the_same_bytes_with_another_python(
    kind: str, toy: Toy, pythons: tuple[str, str], cache: store.Store, tmp_path: Path
) -> None:
    hashes = []
    for python in pythons:
        out = tmp_path / python
        if kind == "toy":
            done = toy.run("wheel", "--source", toy.source, "--python", python, "--out", out, "--json")
        else:
            words = [sys.executable, "-m", "dca", "wheel", *INDEX_ONLY, "--python", python, "--out", str(out), "--json"]
            env = {**toy.env, "PYTHONPATH": str(ROOT / "scripts")}
            # The session's own: each Python has a build folder of its own in it.
            words += ["--cache-dir", str(cache.root)]
            done = subprocess.run(words, env=env, cwd=ROOT, text=True, capture_output=True, check=False, timeout=1800)
        assert done.returncode == 0, done.stderr
        hashes.append(Made.model_validate(json.loads(done.stdout)).sha256)
    assert hashes[0] == hashes[1]
