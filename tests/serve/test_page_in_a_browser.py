"""The page of a plan in headless Chromium, narrow and wide, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.serve import chart, plan
from tests.support.browser import measured, needs_chromium
from tests.support.serving import SEVEN, subject

pytestmark = [pytest.mark.whole, needs_chromium]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_can_be_read_on_a_telephone_and_in_the_dark(dark: bool, tmp_path: Path) -> None:
    about, served = subject(SEVEN, "4xA100-80")
    made = plan.make(about, served)
    (tmp_path / "page.html").write_text(chart.page(made, chart.panels(made, about.shape, about.gpus)))
    for width, seen in measured(tmp_path, dark=dark).items():
        # The flags filled the screen, and their reasons were beside it.
        assert seen["scroll"] <= int(width), (width, seen)
        assert seen["dark"] == dark
