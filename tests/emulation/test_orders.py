"""Every kernel that the cases of the level `kernels` launch, in many orders of its warps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dca import smoke
from dca.cli import root
from dca.foundation.store import Store
from dca.smoke import Smoke, emulated
from tests.support import RunDca

ORDERS = 1000
PROGRAM = Path(__file__).with_name("small_attention.py")
# How many kernels of each kind it launches.
KINDS = {"fwd_sparse": 2, "flash_fwd": 2, "fwd_splitkv": 4, "fwd_splitkv_combine": 1}
# Warp instructions of all orders of a kernel: a sparse one has a hundred thousand in each. Larger kernels have fewer.
BOUND = 200_000_000
FEWEST = 5


def ordered(file: Path) -> list[dict[str, Any]]:
    """What the device wrote of each kernel that it ran in orders; printed too, for -s."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        print(f"{line['orders']:5} orders, {line['instructions']:12,} instructions: {line['kernel']}")
    return lines


@pytest.mark.whole
def test_no_order_of_warps_shows_a_fault_or_changes_a_result(
    wheel: Path, cache: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: Callable[[int], int]
) -> None:
    file, real = tmp_path / "ordered", emulated.variables
    wanted = {"ORDERS": scale(ORDERS), "ORDERS_BOUND": scale(BOUND), "ORDERED": file}

    def variables(*arguments: Any) -> dict[str, str]:
        return real(*arguments) | {f"DCA_EMULATION_{name}": str(value) for name, value in wanted.items()}

    monkeypatch.setattr(emulated, "variables", variables)
    # A case takes as long as its orders do.
    monkeypatch.setattr(smoke, "CASE_SECONDS", (86400.0, 86400.0))
    words = ("smoke", wheel, "--level", "kernels", "--quick", "--seed", "1", "--json", "--cache-dir", cache.root)
    done = CliRunner().invoke(root, list(map(str, words)))

    lines = ordered(file)
    # Cases run in processes of their own, each of which runs its kernels in orders again.
    ran = {line["kernel"] for line in lines}
    assert any("flash_fwd_sparse_kernel" in name for name in ran)
    assert any("flash_fwd_splitkv" in name for name in ran)
    assert any("convert_vertical_slash_indexes" in name for name in ran)
    assert [line for line in lines if line["differs"]] == []
    assert [line for line in lines if line["orders"] < min(FEWEST, scale(ORDERS))] == []
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
    wanted = {"ORDERS": scale(ORDERS), "ORDERS_BOUND": 1 << 40, "ORDERED": file}
    checks = [word for one in emulated.CHECKS for word in ("--check", one)]
    env = {f"DCA_EMULATION_{name}": str(value) for name, value in wanted.items()}
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
