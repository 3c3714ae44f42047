"""The page of a check in headless Chromium, narrow and wide, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.serve.check import Engine, Flag, Needle, Probe, Ruler, ServeCheck, report
from dca.serve.check.probes import PROBES
from dca.serve.check.values import Load, Outcome, RulerLength, RulerScore, Verdict
from tests.support.browser import measured, needs_chromium

pytestmark = [pytest.mark.whole, needs_chromium]
OUTCOMES: tuple[Outcome, ...] = ("found", "lost", "refused", "hung", "cut", "broken", "gone", "skipped")
REMEDY = "read the end of the server's log; `dca explain LOG` explains it. " * 4


def needle(length: int, depth: float, outcome: Outcome) -> Needle:
    """A long prompt with a long explanation."""
    wrong = outcome not in ("found", "skipped")
    return Needle(
        length=length,
        depth=depth,
        tokens=length - 64,
        counted="usage",
        outcome=outcome,
        code="DCA-163" if wrong else "",
        detail=f"the answer does not contain 3896467: '{'a-very-long-word-' * 5}'" if wrong else "3896467 of Aldmere",
        remedy=REMEDY if wrong else "",
        first_token=12.5,
        prefill_speed=1234.5,
        decode_speed=45.6,
    )


VERDICTS: tuple[Verdict, ...] = ("scored", "zero", "miscounted", "failed", "skipped")


def ruler() -> Ruler:
    """Tasks with every verdict, and long words."""
    detail = f"all 500 answers are wrong; the first is '{'a-very-long-word-' * 6}', expected was 7007071"
    scores = [
        RulerScore(
            task="niah_multikey_1",
            length=131072,
            samples=500,
            answered=500,
            outcome=verdict,
            score={"scored": 97.5, "zero": 0.0}.get(verdict),
            code="" if verdict in ("scored", "skipped") else "DCA-163",
            detail="" if verdict == "scored" else detail,
            remedy=REMEDY,
            tokens=131000,
        )
        for verdict in VERDICTS
    ]
    return Ruler(
        harness="lm-eval 0.4.13",
        api="completions",
        templated=True,
        tokenizer="/a/folder/" + "with-a-long-name-" * 8,
        samples=500,
        scores=tuple(scores),
        lengths=(RulerLength(length=131072, tasks=2, average=48.75, published=92.2),),
        source="https://example.org/" + "a-long-path/" * 12,
    )


def result(depths: tuple[float, ...] = (0, 25, 50, 75, 100)) -> ServeCheck:
    """A check with every outcome, long names and nine lengths."""
    lengths = (*(4096 * 2**number for number in range(8)), 1_010_000)
    grid = [(length, depth) for length in lengths for depth in depths]
    statuses = ("failed", "refused", "undecided", "skipped", "passed")
    return ServeCheck(
        date="2026-11-29T12:00:00+00:00",
        tool="0.2.0",
        url="https://a-gateway.example.org/with/a/path/" + "that-is-very-long-" * 6,
        engine=Engine(name="vllm", version="0.10.2+dca5.cu124.lean.sm80.sm90", recipe="vllm-0.10.2"),
        model="an-organisation/" + "a-name-of-a-model-that-is-long-" * 4,
        flags=(Flag(name="--gpu-memory-utilization", value="0.92", seen="/metrics"), Flag(name="--api-key", seen="x")),
        max_model_len=1_010_000,
        seed=0,
        probes=tuple(
            Probe(
                name=name,
                proves=proves,
                status=statuses[number % 5],  # type: ignore[arg-type]
                code="DCA-161" if number % 5 == 0 else "",
                detail="HTTP 500: " + "a/long/path/without/a/space" * 6,
                remedy=REMEDY,
            )
            for number, (name, (proves, _)) in enumerate(PROBES.items())
        ),
        needles=tuple(needle(*place, OUTCOMES[number % len(OUTCOMES)]) for number, place in enumerate(grid)),
        lengths=lengths,
        depths=depths,
        ruler=ruler(),
        before=Load(running=0, cache=0.1, preemptions=0),
        after=Load(running=1, waiting=2, cache=99.5, preemptions=3, first_tokens=40, first_token_seconds=900.0),
        verdict="at 4,096 tokens, depth 25 %, the answer does not contain 3896467; no length passed at every depth.",
        not_proven=("prompts from 524,288 to the 1,010,000 tokens that the server reports", "tools: omitted by --skip"),
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("depths", [(0, 25, 50, 75, 100), tuple(range(0, 101, 5))], ids=["5", "21"])
def test_page_and_chart_can_be_read_on_a_telephone_and_in_the_dark(
    dark: bool, depths: tuple[float, ...], tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text(report.render(result(depths)))
    for width, seen in measured(tmp_path, dark=dark).items():
        assert seen["scroll"] <= int(width), (width, seen)
        assert seen["dark"] == dark
        assert seen["worst"]["ratio"] >= 4.5, (width, seen["worst"])
        # A column was a letter wide, the letters of the chart were four pixels high, and the page had 41,000 pixels.
        assert seen["narrowest"] >= 160, (width, seen)
        assert seen["letters"] >= 12
        assert len(depths) > 5 or seen["height"] < {"390": 16_000, "1280": 8_000}[width], (width, seen)
