"""Reasoning that a server leaves in the text of an answer, because it was started without a reasoning parser."""

from __future__ import annotations

import re

_NAME = r"(?:\w+:)?(?:think(?:ing)?|thoughts?|reasoning)"
# The marks of the model families for which vLLM has reasoning parsers.
OPEN = re.compile(
    rf"<{_NAME}>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|channel\|?>(?:analysis|thought)(?:<\|message\|>)?",
    re.IGNORECASE,
)
CLOSE = re.compile(
    rf"</{_NAME}>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<channel\|>|<\|channel\|>final<\|message\|>", re.IGNORECASE
)


def split(text: str) -> tuple[str, bool]:
    """A text without reasoning, and whether it had any.

    Many chat templates write the opening mark themselves, so an answer may have only the closing one. Reasoning
    without a closing mark goes on to the end: the answer was cut before it began.
    """
    opened, closed = OPEN.search(text), list(CLOSE.finditer(text))
    if not opened and not closed:
        return text, False
    before = text[: opened.start()] if opened and not (closed and closed[0].start() < opened.start()) else ""
    after = text[closed[-1].end() :] if closed else ""
    again = OPEN.search(after)
    return (before + (after[: again.start()] if again else after)).strip(), True
