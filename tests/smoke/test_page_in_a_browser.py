"""The page of a smoke test in headless Chromium, narrow and wide, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.smoke import Smoke
from dca.smoke.report import render
from dca.smoke.values import KNOWN, CaseResult
from tests.support.browser import measured, needs_chromium

pytestmark = [pytest.mark.whole, needs_chromium]
DETAIL = "_C::convert_vertical_slash_indexes_mergehead is missing from vllm/_C.abi3.so; it has 41 ops (DCA-803)"
CURVE = [{"tokens": 1 << n, "dense ms": 4.0**n / 1e6, "sparse ms": 4.0**n / (n - 14) / 1e6} for n in range(15, 21)]


def case(name: str, proves: str, *, passed: bool = True, **more: object) -> CaseResult:
    level = name.partition("/")[0]
    fields = {"level": level, "name": name, "proves": proves, "passed": passed, **more}
    return CaseResult.model_validate(fields)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_can_be_read_on_a_telephone_and_in_the_dark(dark: bool, tmp_path: Path) -> None:
    cases = (
        case("static/archs", "every module has machine code for the planned GPU architectures"),
        case("static/ops", "the ops of the recipe are registered", passed=False, detail=DETAIL),
        case("kernels/sparse/bfloat16/causal/7-1", "sparse attention", figures={"largest difference": 0.0012}),
        case("gpu/speed", "times of sparse and dense attention", figures={"curve": CURVE}),
        case("gpu/last-row", "dense attention of a last row", figures={KNOWN: "its last row is lost"}),
    )
    report = Smoke(
        wheel="vllm-0.10.2+dca9.cu124.lean.sm80.sm90-cp38-abi3-manylinux_2_24_x86_64.whl",
        sha256="0123456789abcdef" * 4,
        version="0.10.2+dca9.cu124.lean.sm80.sm90",
        recipe="vllm-0.10.2",
        level="gpu",
        seed=0,
        cases=cases,
    )
    (tmp_path / "page.html").write_text(render(report))
    for width, seen in measured(tmp_path, dark=dark).items():
        # The names of cases pushed the seconds off the screen, and what they prove into a column of six letters.
        assert seen["scroll"] <= int(width), (width, seen)
        assert seen["narrowest"] >= 160, (width, seen)
        assert seen["dark"] == dark
        assert seen["worst"]["ratio"] >= 4.5, (width, seen["worst"])
