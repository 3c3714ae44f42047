"""Removes credentials from messages, logs, reports and locks.

It imports nothing of dca, so that every module can use it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import netrc
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

HIDDEN = "***"
# A shorter secret would also match inside ordinary words.
_SHORTEST = 5
_SECRET_NAME = re.compile(
    r"(?:PASSWORD|PASSWD|PASS|TOKEN|SECRET|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|(?:^|_)KEY|CREDENTIALS?)$", re.I
)
# A password may contain a slash that should be percent-encoded. A port followed by a path with @ is not a password.
_USER = r"(?:[^/\s@]*@)+|[^\s/@:]*:(?!\d{1,5}/)[^\s@]*@"
# A URL that was treated as a path has lost one of its two slashes.
_IN_URL = re.compile(rf"(\b[A-Za-z][\w+.-]*:/{{1,2}})(?:{_USER})")
_WHOLE_URL = re.compile(rf"(\b[A-Za-z][\w+.-]*://)(?:{_USER})?([^\s?#]*)(?:[?#]\S*)?")
_ODD_URL = re.compile(r"[A-Za-z][\w+.-]*://([^\s@:]*):(?!\d{1,5}(?:/|$))(\S*)@")
_HEADER = re.compile(
    r"\b((?:proxy-)?authorization|cookie|(?:x-)?(?:api-key|auth-token)|private-token)(\s*[:=]\s*)"
    r"(?:(?:basic|bearer|token|negotiate)\s+)?[^\s'\"]+",
    re.I,
)
# Tested before the regular expression, which is slow on a compiler's long lines.
_WORDS = ("authorization", "cookie", "api-key", "-token")
_PARAMETER = re.compile(
    r"([?&;#](?:[\w.-]*(?:token|password|passwd|secret|signature|credential|api_?key|access_?key)[\w.-]*|sig|key|auth)=)"
    r"[^\s&;#'\"]+",
    re.I,
)


def redact(text: str, *more: str) -> str:
    """A text without credentials, and without the queries and fragments of its URLs.

    Args:
        more: further secrets, which are also found when quoted for JSON, Python, HTML or a URL.
    """
    # First, because a part of such a secret may look like a parameter or a header.
    for secret in sorted({form for value in more for form in _quoted(value)}, key=len, reverse=True):
        pattern = re.escape(secret)
        text = re.sub(pattern if len(secret) >= _SHORTEST else rf"(?<!\w){pattern}(?!\w)", HIDDEN, text)
    return hider()(_WHOLE_URL.sub(r"\1\2", text))


def hide(text: str) -> str:
    """A text without credentials; URLs keep the rest."""
    return hider()(text)


def hider() -> Callable[[str], str]:
    """A function that hides credentials: those in URLs and headers, and those known from environment and netrc."""
    known = sorted(_known(), key=len, reverse=True)
    values = re.compile("|".join(map(re.escape, known))) if known else None

    def hidden(text: str) -> str:
        if ":/" in text:
            text = _IN_URL.sub(r"\1", text)
        if "=" in text:
            text = _PARAMETER.sub(rf"\1{HIDDEN}", text)
        lower = text.lower()
        if any(word in lower for word in _WORDS):
            text = _HEADER.sub(rf"\1\2{HIDDEN}", text)
        return values.sub(HIDDEN, text) if values else text

    return hidden


def _known() -> set[str]:
    """The passwords and tokens that this process knows, as they are and as they are sent."""
    secrets: set[str] = set()
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and not _names_a_file(name, value):
            secrets.add(value)
        if "://" in value:
            for word in value.split():
                secrets |= set(_of_url(word))
    with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError, RuntimeError):
        path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
        for user, _, password in netrc.netrc(str(path)).hosts.values():
            if password:
                secrets |= {password, *_sent(user or "", password)}
    return {secret for secret in secrets if len(secret) >= _SHORTEST}


def _names_a_file(name: str, value: str) -> bool:
    """Whether a variable holds the path of a secret; one secret in 64 begins with a slash too."""
    if not value.startswith(("/", "~")):
        return False
    if name.upper().endswith(("CREDENTIAL", "CREDENTIALS")):
        return True
    try:
        return Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def _quoted(secret: str) -> set[str]:
    """A secret as it is, and as several formats quote it."""
    import html

    if not secret.strip():
        return set()
    return {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1], html.escape(secret)}


def _of_url(url: str) -> Iterator[str]:
    # A password that should be percent-encoded makes the URL invalid, but is still a secret.
    if odd := _ODD_URL.match(url):
        yield odd[2]
        yield from re.split(r"[/#?]", odd[2])
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        # In a URL without a password, the user name is a token.
        secret = parts.password or parts.username
        if secret:
            yield secret
            yield unquote(secret)
            yield from _sent(unquote(parts.username or ""), unquote(parts.password or ""))


def _sent(user: str, password: str) -> Iterator[str]:
    yield quote(password, safe="")
    yield base64.b64encode(f"{user}:{password}".encode()).decode()
