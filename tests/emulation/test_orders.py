"""Kernels of a wheel and of an official module, each in many orders of its warps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dca import inspection, smoke
from dca.cli import root
from dca.foundation.store import Store
from dca.smoke import Smoke, emulated
from tests.support import RunDca

ORDERS = 1000
PROGRAM = Path(__file__).with_name("small_attention.py")
# How many kernels of each kind it launches.
KINDS = {"fwd_sparse": 2, "flash_fwd": 2, "fwd_splitkv": 4, "fwd_splitkv_combine": 1}
CONVERSION = "conversion/random"
# What every layer of a model launches beside attention, among others.
CALLED = (
    "convert_vertical_slash_indexes_kernel",
    "reshape_and_cache_flash_kernel",
    "rms_norm_kernel",
    "rotary_embedding_kernel",
    "act_and_mul_kernel",
)


def settings(file: Path, orders: int) -> dict[str, str]:
    """The device's variables, by which it runs each kernel's first launch in orders and writes to a file."""
    # As many instructions as it takes.
    values = {"ORDERS": orders, "ORDERS_BOUND": 1 << 40, "ORDERED": file}
    return {f"DCA_EMULATION_{name}": str(value) for name, value in values.items()}


def ordered(file: Path) -> list[dict[str, Any]]:
    """What the device wrote of each kernel that it ran in orders; printed too, for -s."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        print(f"{line['orders']:5} orders, {line['instructions']:12,} instructions: {line['kernel']}")
    return lines


@pytest.mark.whole
def test_kernels_of_other_ops_write_the_same_bytes_in_a_thousand_orders(
    wheel: Path, cache: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: Callable[[int], int]
) -> None:
    file, real = tmp_path / "ordered", emulated.variables

    def variables(*arguments: Any) -> dict[str, str]:
        return real(*arguments) | settings(file, scale(ORDERS))

    monkeypatch.setattr(emulated, "variables", variables)
    # A case takes as long as its orders do.
    monkeypatch.setattr(smoke, "CASE_SECONDS", (86400.0, 86400.0))
    ops = [op.rpartition("::")[2] for module in inspection.inspect(wheel).modules for op in module.ops or ()]
    cases = [word for name in (CONVERSION, *(f"ops/{op}" for op in ops)) for word in ("--case", name)]
    words = ("smoke", wheel, "--level", "kernels", *cases, "--seed", "1", "--json", "--cache-dir", cache.root)
    done = CliRunner().invoke(root, list(map(str, words)))

    lines = ordered(file)
    ran = {line["kernel"] for line in lines}
    assert {name for name in CALLED if any(name in kernel for kernel in ran)} == set(CALLED)
    assert [line for line in lines if line["differs"] or line["orders"] != scale(ORDERS)] == []
    report = Smoke.model_validate_json(done.stdout)
    assert [(case.name, case.detail) for case in report.cases if not case.passed] == []


@pytest.mark.whole
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_kernels_of_attention_write_the_same_bytes_in_a_thousand_orders(
    dtype: str,
    dca: RunDca,
    engine_python: Path,
    official_module: Path,
    tmp_path: Path,
    scale: Callable[[int], int],
) -> None:
    file, findings = tmp_path / "ordered", tmp_path / "findings"
    checks = [word for one in emulated.CHECKS for word in ("--check", one)]
    env = settings(file, scale(ORDERS))
    program = ("--", engine_python, PROGRAM, official_module, dtype)
    options = ("--quiet", *checks, "--findings", findings)
    done = dca("emulate", *options, *program, env=env, timeout=86400.0)
    assert done.returncode == 0, done.stderr[-3000:]

    lines = ordered(file)
    counts = {kind: sum(f"{kind}_kernel" in one["kernel"] for one in lines) for kind in KINDS}
    assert counts == KINDS
    assert [line for line in lines if line["differs"] or line["orders"] != scale(ORDERS)] == []
    found = [json.loads(line) for line in findings.read_text().splitlines()] if findings.is_file() else []
    assert [one for one in found if one["kind"] != "known"] == []
