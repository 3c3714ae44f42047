"""A request that failed, and the server's own words about it."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from dca.serve.check.values import Trouble

DENIED = (401, 403)
# Rejections for temporary reasons, or by a proxy: no credit, a time-out, a body too large, too many requests.
PASSING = (402, 408, 413, 429)
ABSENT = (404, 405, 501)
"""Statuses of a path or a feature that the server does not have."""
BUSY, LOADING = 429, 503
BROKEN = 500
WORDS = 300
MOST_PAGE = 20_000
"""Characters of a web page that are read."""
PAGE = re.compile(r"\s*(?:<!doctype|<html|<head|<body|<h1|<title)", re.IGNORECASE)
HIDDEN = re.compile(r"<(style|script)\b[^>]*>.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
INLINE = re.compile(
    r"</?(?:a|abbr|b|big|code|em|font|i|kbd|mark|s|samp|small|span|strong|sub|sup|tt|u|var|wbr)\b[^>]{0,2000}>",
    re.IGNORECASE,
)
TAG = re.compile(r"<[^>]{0,2000}>")


class RequestFailed(Exception):  # noqa: N818 - a result, which every caller takes
    """A request that failed.

    Args:
        kind: how it failed.
        words: the server's own words; `Server` makes them safe to show.
        status: status of the HTTP response; 0 without one.
        seconds: seconds until it failed.
        retry_after: seconds after which the server wants to be asked again; None if it does not say.
    """

    first_token: float | None = None
    """Seconds to the first token of a stream; None without one."""
    keyed: bool = False
    """Whether it was sent with a key."""

    def __init__(
        self,
        kind: Trouble,
        words: str,
        *,
        status: int = 0,
        seconds: float = 0.0,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(kind)
        self.kind: Trouble = kind
        self.words = words
        self.status = status
        self.seconds = seconds
        self.retry_after = retry_after


def refusal(status: int, body: str, retry_after: str = "") -> RequestFailed:
    """The failure that an HTTP status means.

    Args:
        status: status of the response.
        body: its body.
        retry_after: its header of this name.
    """
    broken = status >= BROKEN and status not in ABSENT
    kind: Trouble = "broken" if broken or status in PASSING else "denied" if status in DENIED else "refused"
    return RequestFailed(kind, f"HTTP {status}: {message_of(body)}", status=status, retry_after=_seconds(retry_after))


def message_of(body: str) -> str:
    """The message in the body of an error response, whatever its form."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return text_of(body) or "without a message"
    while isinstance(value, Mapping):
        inner = value.get("error") or value.get("message") or value.get("detail")
        if not inner:
            break
        value = inner
    return value if isinstance(value, str) else json.dumps(value)


def text_of(body: str) -> str:
    """What a web page says; another text as it is."""
    if not PAGE.match(body):
        return body
    # What only lays out a part of a word is no space, so that a key in it is still found.
    text = TAG.sub(" ", INLINE.sub("", HIDDEN.sub(" ", body[:MOST_PAGE])))
    return " ".join(html.unescape(text).split())


def _seconds(text: str) -> float | None:
    """The seconds of a Retry-After: a number, or the time left until a date; None if it is neither."""
    try:
        seconds = float(text) if text.strip() else math.inf
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        left = parsedate_to_datetime(text) - datetime.now(timezone.utc)
    except (ValueError, TypeError):
        return None
    return max(0.0, left.total_seconds())


def shown_words(text: str, hide: Callable[[str], str]) -> str:
    """A server's own words on one line, without credentials and terminal control characters."""
    line = " ".join(hide(text).split())
    clean = "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)
    return clean if len(clean) <= WORDS else clean[: WORDS - 1] + "…"
