"""What an outcome of RULER's harness means: a score, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dca.serve.check import thoughts, troubles
from dca.serve.check.client import Server
from dca.serve.check.failed import RequestFailed, refusal, shown_words
from dca.serve.check.ruler.asked import Asked
from dca.serve.check.ruler.harness import Cell, Failure, Outcome
from dca.serve.check.troubles import Explanation
from dca.serve.check.values import RulerLength, RulerScore

UNMADE = "DCA-105"
ENDS = ("gone", "untrusted", "redirected", "hung")
"""After these nothing more is sent."""
SUSPECT = ("gone", "broken", "malformed")
"""After these the engine may have ended."""


def score_of(cell: Cell, outcome: Outcome, asked: Asked, server: Server) -> RulerScore:
    """The score of one task at one length.

    Args:
        cell: the task and length.
        outcome: what came of it.
        asked: what was asked.
        server: the server, which is asked whether it still answers if it may not.
    """
    answers = outcome.answers
    longest = max(answers, key=lambda one: one.tokens, default=None)
    about: dict[str, Any] = {
        "task": cell.task,
        "length": cell.length,
        "samples": asked.samples,
        "answered": len(answers),
        "tokens": longest.tokens if longest else 0,
        "counted": longest.counted if longest else None,
        "cut": sum(one.cut for one in answers),
        "empty": sum(one.empty for one in answers),
        "seconds": round(outcome.seconds, 3),
    }
    if outcome.failure is not None:
        return _failed(about, outcome.failure, server)
    if outcome.score is None or not outcome.scores or len(outcome.scores) != len(answers):
        # The harness's -1 for a length that was not run is no score.
        words = "the harness gives no score for this length"
        return RulerScore(**about, outcome="failed", code=UNMADE, detail=words, remedy=f"{_HARNESS_LOG}.")
    score = round(100 * outcome.score, 2)
    missing = asked.samples - len(answers)
    detail = f"{missing} of {asked.samples} texts could not be made so short" if missing else ""
    if score > 0:
        return RulerScore(**about, outcome="scored", score=score, detail=detail)
    return _zero(about, outcome, server, detail)


def _zero(about: dict[str, Any], outcome: Outcome, server: Server, detail: str) -> RulerScore:
    words = f"all {about['answered']} answers are wrong"
    if about["empty"]:
        words += f", {about['empty']} of them empty"
    thought = False
    if outcome.first is not None:
        thought = thoughts.split(outcome.first.answer)[1]
        expected = ", ".join(outcome.first.wanted)
        words += f"; the first is {shown_words(outcome.first.answer, server.hide)!r}, expected was {expected}"
    if thought:
        remedy = "the few tokens of RULER's answers went into reasoning: turn it off with --no-thinking."
    elif about["empty"] == about["answered"]:
        remedy = f"the model ends its answers at once: check its chat template, and try the other --ruler-api. {_LOG}"
    else:
        remedy = (
            "check the model's weights and chat template, and try the other --ruler-api; if shorter lengths have a "
            "score, prove the wheel with `dca smoke`, and check the model's folder with `dca config check`."
        )
    return RulerScore(
        **about,
        outcome="zero",
        score=0.0,
        code=troubles.MODEL,
        detail="; ".join(filter(None, (words, detail))),
        remedy=remedy,
    )


_HARNESS_LOG = "run/ruler/ruler.log in the cache folder has the harness's own words"
_LOG = troubles.LOG[0].upper() + troubles.LOG[1:]


def _failed(about: dict[str, Any], failure: Failure, server: Server) -> RulerScore:
    words = shown_words(failure.words, server.hide)
    if failure.kind == "too long":
        detail = f"its prompt and answer need {words}, more than the server takes"
        return RulerScore(**about, outcome="skipped", detail=detail)
    if failure.kind == "miscounted":
        return _miscounted(about, failure)
    if failure.kind == "unmade":
        remedy = f"try longer --ruler-lengths, or the model's own tokenizer with --ruler-tokenizer; {_HARNESS_LOG}."
        detail = f"the harness could not make or judge its texts: {words}"
        return RulerScore(**about, outcome="failed", code=UNMADE, detail=detail, remedy=remedy)
    if failure.kind == "status":
        failed = refusal(failure.status, failure.words)
        failed.words = shown_words(failed.words, server.hide)
    else:
        failed = RequestFailed(failure.kind, words, status=failure.status)  # type: ignore[arg-type]
    trouble = troubles.explain(failed, long=True)
    if failed.kind in SUSPECT and (state := server.state()) != "answers":
        trouble = troubles.ended(trouble, state, long=True)
    return RulerScore(
        **about, outcome="failed", code=trouble.code, detail=trouble.detail, remedy=_own_words(trouble, failed)
    )


def _own_words(trouble: Explanation, failed: RequestFailed) -> str:
    if failed.kind == "refused" and trouble.code == troubles.PROMPT:
        return f"try a shorter --ruler-lengths, or the other --ruler-api. {troubles.PLAN}"
    return trouble.remedy


def _miscounted(about: dict[str, Any], failure: Failure) -> RulerScore:
    counts = f"of a prompt of {failure.expected:,} tokens the server counted {failure.counted:,}"
    if failure.counted < failure.expected:
        detail = f"{counts}: it was truncated, or the tokenizer is not the model's"
        remedy = (
            "turn off what truncates prompts in the server or a gateway, and give the server a context that is long "
            "enough; if it truncates nothing, name the model's tokenizer with --ruler-tokenizer."
        )
    else:
        detail = f"{counts}: the tokenizer is not the model's, so the prompts are not of this length"
        remedy = "name the model's tokenizer with --ruler-tokenizer."
    return RulerScore(**about, outcome="miscounted", code=troubles.PROMPT, detail=detail, remedy=remedy)


def averages(scores: Sequence[RulerScore], asked: Asked, published: dict[int, float]) -> tuple[RulerLength, ...]:
    """The average of each length that has scores.

    Args:
        scores: of tasks.
        asked: what was asked.
        published: averages of all tasks by length.
    """
    lengths = []
    for length in asked.lengths:
        own = [one for one in scores if one.length == length and one.score is not None]
        if own:
            whole = all(one.answered == asked.known.samples for one in own)
            lengths.append(
                RulerLength(
                    length=length,
                    tasks=len(own),
                    average=round(sum(one.score or 0.0 for one in own) / len(own), 2),
                    published=published.get(length),
                    comparable=whole and len(own) == len(asked.known.tasks),
                )
            )
    return tuple(lengths)
