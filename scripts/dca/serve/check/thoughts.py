"""Reasoning that a server leaves in the text of an answer, because it was started without a reasoning parser."""

from __future__ import annotations

import re

_NAME = r"(?:\w+:)?(?:think(?:ing)?|thoughts?|reasoning|reflection|analysis|scratchpad)"
_LESS, _MORE = r"(?:<|&lt;)", r"(?:>|&gt;)"
# The marks of the model families for which vLLM has reasoning parsers, and of gateways that fold reasoning up.
OPEN = re.compile(
    rf"{_LESS}\s*{_NAME}(?:\s[^<>]{{0,80}})?{_MORE}|\[THINK\]|◁think▷|<\|START_THINKING\|>"
    r"|<\|channel\|?>\s*(?:analysis|thought)(?:<\|message\|>)?|<\|im_start\|>think|<[|\uff5c]begin▁of▁thinking[|\uff5c]>"
    r"|<details type=[^<>]{0,80}>|\A(?-i:analysis(?=[A-Z]))|\A(?:Here(?:'s| is) my) thought process:",
    re.IGNORECASE,
)
CLOSE = re.compile(
    rf"{_LESS}\s*/\s*{_NAME}\s*{_MORE}|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<channel\|>"
    r"|<\|channel\|>final<\|message\|>|<\|im_start\|>answer|<[|\uff5c]end▁of▁thinking[|\uff5c]>|</details>|assistantfinal"
    r"|Here(?:'s| is) my response:",
    re.IGNORECASE,
)
# Behind reasoning, the answer itself may stand between marks.
WRAPPED = re.compile(
    r"\s*<(answer|response|output)>(.*?)(?:</\1>\s*)?|\s*<\|START_RESPONSE\|>(.*?)(?:<\|END_RESPONSE\|>)?\s*",
    re.IGNORECASE | re.DOTALL,
)
ENDS = re.compile(r"(?:<\|(?:return|end|im_end)\|>\s*)+$")


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
    return _bare((before + (after[: again.start()] if again else after)).strip()), True


def _bare(text: str) -> str:
    """An answer without the marks around it."""
    bare = ENDS.sub("", text)
    wrapped = WRAPPED.fullmatch(bare)
    return (wrapped[2] or wrapped[3] or "").strip() if wrapped else bare.strip()
