"""The page of a report in headless Chromium, narrow and wide, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.catalogue.plan import Asked, Request
from dca.cli import options
from dca.foundation import documents
from dca.foundation.timeline import ObjectTime
from dca.pipeline import report
from dca.pipeline.report import page
from tests.pipeline.test_report import TIMES, saved
from tests.resolve.test_resolve import planned
from tests.support.browser import measured, needs_chromium

pytestmark = [pytest.mark.whole, needs_chromium]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_cut_off_and_every_text_can_be_read(dark: bool, tmp_path: Path) -> None:
    """With long names, many lanes and several modules, of which one object was stopped."""
    plan = planned(Request(recipe="vllm-0.10.2"))
    long = "source/csrc/quantization/" + "fused_kernels_" * 12 + ".cu"
    more = [
        ObjectTime(source=long, module=f"_module_{n}", started=10 + n, ended=60 + n, sources={long: 1}, finished=n != 6)
        for n in range(7)
    ]
    saved(tmp_path, plan, TIMES.model_copy(update={"objects": (*TIMES.objects, *more), "error": "DCA-603"}))
    documents.write(Asked(request=Request(source="/a/path/" + "that-is-very-long-" * 9)), tmp_path / "request.json")
    text = page.render(report.read(tmp_path, options.spelled))
    # What is folded is checked too.
    (tmp_path / "page.html").write_text(text.replace("<details>", "<details open>"))
    for width, result in measured(tmp_path, dark=dark).items():
        assert result["scroll"] <= int(width), (width, result)
        assert result["dark"] == dark
        assert result["bars"] == len(TIMES.stages) + len(TIMES.objects) + len(more)
        assert result["worst"]["ratio"] >= 4.5, (width, result["worst"])
