"""Probes the servers that a build downloads from, all at once, in the background."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from dca.catalogue.recipes import GitSource, Loaded
from dca.catalogue.toolkits import ToolkitSource
from dca.sources import index
from dca.toolchain import apt, redist

PATIENCE = 5.0
"""Seconds to wait for one server at most."""
UNTRUSTED = "its certificate is not trusted on this machine"


class Probes:
    """Probes every place at once, in the background.

    Args:
        places: by name, a function that returns why a place cannot be reached, or nothing if it can.
        seconds: how long to wait for all of them, from now on.
    """

    def __init__(self, places: Mapping[str, Callable[[], str]], seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._answers: dict[str, str] = {}
        # No pool of threads: on exit Python would wait for a probe that is still running.
        self._threads = {
            name: threading.Thread(target=self._ask, args=(name, ask), daemon=True) for name, ask in places.items()
        }
        for thread in self._threads.values():
            thread.start()

    def _ask(self, name: str, ask: Callable[[], str]) -> None:
        try:
            self._answers[name] = ask()
        except Exception as error:  # One place must not hide the others.
            self._answers[name] = f"the probe failed ({type(error).__name__})"

    def of(self, name: str) -> str | None:
        """Why a place cannot be reached, or nothing if it can; None if it has not answered in time."""
        thread = self._threads.get(name)
        if thread is None:
            return None
        thread.join(max(0.0, self._end - time.monotonic()))
        return self._answers.get(name)


def places(known: tuple[Loaded, ...], sources: tuple[ToolkitSource, ...]) -> dict[str, Callable[[], str]]:
    """Every place that builds of the recipes download from."""
    asked: dict[str, Callable[[], str]] = {"index": partial(_answer, index.page(index.PROBED))}
    for url in repositories(known):
        asked[url] = partial(_repository, url)
    for source in sources:
        if source.redist:
            asked[f"redist:{source.name}"] = partial(redist.probe, source.redist)
        if source.apt:
            asked[f"apt:{source.name}"] = partial(apt.probe, source.apt)
    return asked


def repositories(known: tuple[Loaded, ...]) -> tuple[str, ...]:
    """URLs of the sources and companions that are in git."""
    urls: dict[str, None] = {}
    for loaded in known:
        recipe = loaded.recipe
        if isinstance(recipe.source, GitSource):
            urls |= dict.fromkeys(recipe.source.urls)
        for companion in recipe.companions.values():
            urls |= dict.fromkeys(companion.source.urls)
            for submodule in companion.submodules:
                urls |= dict.fromkeys(submodule.urls)
    return tuple(urls)


def _repository(url: str) -> str:
    """Whether a repository answers git's first request; without git, which would have to be ended."""
    return _answer(url.rstrip("/") + "/info/refs?service=git-upload-pack")


def _answer(url: str) -> str:
    import requests

    try:
        with index.session() as http, http.get(url, timeout=PATIENCE, stream=True) as answer:
            return "" if answer.ok else f"HTTP status {answer.status_code}"
    except requests.ConnectTimeout:
        return f"no answer within {PATIENCE:g} s"
    except requests.exceptions.ProxyError:
        return "the proxy rejects the connection or does not answer"
    except requests.exceptions.SSLError:
        return UNTRUSTED
    except requests.RequestException as error:
        name = "unknown host name" if "resolve" in str(error).lower() else type(error).__name__
        return f"cannot be reached ({name})"
