"""Asks whether the server of a shared compiler cache answers."""

from __future__ import annotations

import re
import threading
from urllib.parse import urlsplit

from dca.compile.compiler_cache.tool import ANSWER_SECONDS


def silence(address: str) -> str:
    """Why no server answers at an address; empty when one does, or when only the cache can ask it.

    Args:
        address: a URL, or several, with the attributes that ccache adds after a bar.
    """
    whys = []
    for url in re.split(r"[\s,]+", address.strip()):
        why = _within(ANSWER_SECONDS, url.partition("|")[0])
        if not why:
            return ""
        whys.append(why)
    return "; ".join(dict.fromkeys(whys))


def _within(seconds: float, url: str) -> str:
    """`_silence`, given up after some seconds; looking up a name has no deadline of its own."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(_silence(url)), daemon=True)
    thread.start()
    thread.join(seconds + 1.0)
    return answers[0] if answers else f"no answer within {seconds:.0f} s"


def _silence(url: str) -> str:
    import socket

    import requests

    ports = {"redis": 6379, "tcp": 6379, "rediss": 6379}
    try:
        parts = urlsplit(url)
        if not parts.scheme or not (parts.hostname or parts.path):
            return "it is not a URL"
        if parts.scheme in ("http", "https"):
            # Any answer will do: what the cache may do there, it asks itself.
            requests.head(url, timeout=ANSWER_SECONDS).close()
        elif parts.scheme in ports:
            place = (parts.hostname or "", parts.port or ports[parts.scheme])
            with socket.create_connection(place, timeout=ANSWER_SECONDS) as stream:
                if parts.scheme != "rediss":
                    stream.sendall(b"PING\r\n")
                    if not stream.recv(1):
                        return "it closes the connection"
    except requests.RequestException as error:
        return type(error).__name__
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return ""
