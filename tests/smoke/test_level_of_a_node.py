"""Which level runs on a machine by the GPUs that its driver lists; nvidia-smi is a stand-in, and no kernel runs."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dca import smoke
from dca.foundation.errors import DcaError
from dca.smoke import Level, Request

BUILT = {"8.0": 2, "9.0a": 1}


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program in place of nvidia-smi."""
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program


def lists(driver: Path, *cards: str) -> None:
    driver.write_text("#!/bin/sh\n" + "".join(f"echo '{card}'\n" for card in cards))
    driver.chmod(0o755)


def wheel(folder: Path, sass: dict[str, int] = BUILT, ptx: dict[str, int] | None = None) -> Any:
    """A wheel whose two modules of dual chunk attention have code for these archs."""
    code = {"sass": sass, "ptx": ptx or {}, "exact_sass": tuple(sass), "exact_ptx": tuple(ptx or {})}
    modules = tuple(SimpleNamespace(path=path, sha256="0" * 64, **code) for path in ("_C.so", "_fa.so"))
    return SimpleNamespace(
        wheel=folder / "w-1-py3-none-any.whl", proven=modules, inspected=SimpleNamespace(recorded=None)
    )


def level(folder: Path, asked: Level | None = None, visible: str | None = None, **code: Any) -> Level:
    request = Request(folder / "w-1-py3-none-any.whl", asked, visible=visible, node="gpu:x")
    return smoke._task(request, wheel(folder, **code), left_out=False).level


@pytest.mark.parametrize(
    ("cards", "visible", "code", "expected"),
    [
        (("NVIDIA A100, 8.0",), None, {}, "gpu"),
        (("NVIDIA L4, 8.9",), None, {}, "gpu"),
        (("NVIDIA H100, 9.0",), "0", {}, "gpu"),
        (("NVIDIA B200, 10.0",), None, {"ptx": {"9.0": 1}}, "gpu"),
        (("Tesla T4, 7.5", "NVIDIA A100, 8.0"), None, {}, "gpu"),
        (("Tesla T4, 7.5", "NVIDIA A100, 8.0"), "1", {}, "gpu"),
        # A job without a GPU on a node with some.
        (("NVIDIA A100, 8.0",), "", {}, "cpu"),
        ((), None, {}, "cpu"),
    ],
)
def test_a_gpu_that_a_stand_in_driver_lists_means_level_gpu_and_none_means_cpu(
    cards: tuple[str, ...], visible: str | None, code: dict[str, Any], expected: str, driver: Path, tmp_path: Path
) -> None:
    lists(driver, *cards)
    assert level(tmp_path, visible=visible, **code) == expected


@pytest.mark.parametrize(
    ("cards", "visible", "code", "said"),
    [
        (("NVIDIA B200, 10.0",), None, {}, "NVIDIA B200 (10.0)"),
        (("Tesla T4, 7.5", "NVIDIA A100, 8.0"), "0", {}, "Tesla T4 (7.5)"),
        (("Tesla T4, 7.5", "Tesla T4, 7.5", "Tesla V100, 7.0"), None, {}, "Tesla T4 (7.5) or Tesla V100 (7.0)"),
        (("NVIDIA A100, 8.0",), None, {"sass": {"9.0a": 1}}, "NVIDIA A100 (8.0)"),
    ],
)
def test_a_wheel_without_code_for_the_gpus_of_a_stand_in_driver_is_not_called_wrong(
    cards: tuple[str, ...], visible: str | None, code: dict[str, Any], said: str, driver: Path, tmp_path: Path
) -> None:
    lists(driver, *cards)
    for asked in (None, "gpu"):
        with pytest.raises(DcaError) as caught:
            level(tmp_path, asked, visible, **code)
        assert (caught.value.code, caught.value.what) == ("DCA-841", f"w-1-py3-none-any.whl has no code for {said}.")
        assert caught.value.why.startswith("_C.so and _fa.so cannot run there; the wheel's kernels are for ")
    # Other levels need none.
    assert level(tmp_path, "cpu", visible, **code) == "cpu"
