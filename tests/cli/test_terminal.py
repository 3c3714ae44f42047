"""What progress looks like where there is no terminal: a line every half minute."""

from __future__ import annotations

import pytest

from dca.cli import terminal
from dca.foundation.events import Work


@pytest.mark.parametrize(
    ("work", "line"),
    [
        (
            Work(3, 15, (("sampler.cu", 100.0), ("cache_kernels.cu", 4.0)), 400.0),
            "3 of 15 after 0 s, about 7 min left: sampler.cu (2 min), cache_kernels.cu (4 s)",
        ),
        (Work(0, 2, (("a.cu", 31.0),), None), "0 of 2 after 0 s, no estimate: a.cu (31 s)"),
        (Work(14, 15, (), 0.0), "14 of 15 after 0 s, about 0 s left: "),
    ],
)
def test_a_line_names_what_runs_now_and_the_time_that_is_left(
    work: Work, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    with terminal.Terminal() as shown:
        shown.stage("compile", "_C")
        shown.work(work)
    assert capsys.readouterr().err.splitlines() == ["     compile  _C", f"     compile  {line}"]
