"""Checks of the network: proxies, and whether the servers that a build downloads from answer."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from urllib.parse import urlsplit

from dca.catalogue import toolkits
from dca.catalogue.recipes import GitSource
from dca.doctor.probes import PATIENCE, UNTRUSTED, repositories
from dca.doctor.values import Finding, Subject
from dca.foundation.secrets import redact
from dca.sources import index

PROXIES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")


def proxies(subject: Subject) -> Iterator[Finding]:
    """The proxies that environment variables set."""
    variables = {name: subject.env[name] for name in PROXIES if subject.env.get(name)}
    shown = ", ".join(
        f"{name}={value if name.lower() == 'no_proxy' else _place(value)}" for name, value in variables.items()
    )
    wrong = [name for name, value in variables.items() if name.lower() != "no_proxy" and not _is_proxy(value)]
    if wrong:
        remedy = f"export {wrong[0]}=http://HOST:PORT, or unset {wrong[0]}"
        yield Finding("wrong", f"{wrong[0]} is not a proxy's address", "http://HOST:PORT", remedy)
    else:
        yield Finding("fine", shown or "none is set")


def _place(value: str) -> str:
    """A proxy's address without user and password, whatever characters they contain."""
    scheme, _, rest = value.rpartition("://")
    return (f"{scheme}://" if scheme else "") + rest.rpartition("@")[2].split("/")[0]


def _is_proxy(value: str) -> bool:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        return (
            parts.scheme in ("http", "https", "socks4", "socks5", "socks5h")
            and bool(parts.hostname)
            and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        return False


def package_index(subject: Subject) -> Iterator[Finding]:
    """The package index, which every build needs."""
    where = redact(index.endpoint())
    why = subject.network.of("index")
    if why is None:
        yield _late(where, subject)
    elif why:
        kept = any(subject.cache.glob("env/*-build-*/.whole"))
        yield Finding(
            "note" if kept else "wrong",
            f"{where}: {why}",
            "a package index that answers" + ("; the cache has earlier downloads" if kept else ""),
            index.TRUST
            if why == UNTRUSTED
            else "export UV_DEFAULT_INDEX=URL of a mirror, or HTTPS_PROXY=http://HOST:PORT",
        )
    else:
        yield Finding("fine", where)


def sources(subject: Subject) -> Iterator[Finding]:
    """Git repositories; each recipe needs some of them."""
    answers = {url: subject.network.of(url) for url in repositories(subject.recipes)}
    details = tuple(f"{url}: {_words(why, subject)}" for url, why in answers.items())
    reached = [url for url, why in answers.items() if why == ""]
    found = f"{len(reached)} of {len(answers)} repositories answer"
    if len(reached) == len(answers):
        yield Finding("fine", found, details=details)
        return
    if all(why is None for why in answers.values()):
        yield _late("the repositories", subject, details)
        return
    # A recipe whose source is on the index needs git only to compile companions, which can be copied instead.
    without = [
        loaded.recipe.name
        for loaded in subject.recipes
        if isinstance(loaded.recipe.source, GitSource) and not set(loaded.recipe.source.urls) & set(reached)
    ]
    yield Finding(
        "wrong" if len(without) == len(subject.recipes) else "note",
        found + (f", but none with the source of {', '.join(without)}" if without else ""),
        "all of them, to compile everything from source",
        "name clones: dca wheel --source CLONE --companion NAME=CLONE, or set HTTPS_PROXY",
        details,
    )


def kits(subject: Subject) -> Iterator[Finding]:
    """Download servers of CUDA toolkits."""
    fitting = [source for source in toolkits.load_sources(platform.machine()) if source.line in subject.cuda_lines]
    answers = [(source, {place: subject.network.of(place) for place in source.places}) for source in fitting]
    details = tuple(
        f"{source.title}, {source.version}: {_words(why, subject)}"
        for source, asked in answers
        for place, why in asked.items()
        if place != "index"
    )
    reached = sorted({source.version for source, asked in answers if all(why == "" for why in asked.values())})
    kept = sorted(
        {source.version for source in fitting if any(subject.cache.glob(f"toolkit/{source.name}-*/bin/nvcc"))}
    )
    if reached:
        yield Finding("fine", f"nvcc {', '.join(reached)} can be downloaded", details=details)
    elif kept:
        yield Finding("fine", f"nvcc {', '.join(kept)} is in the cache", details=details)
    elif any(why is None for _, asked in answers for why in asked.values()):
        yield _late("the download servers of CUDA toolkits", subject, details)
    else:
        usable = any(not kit.missing and subject.takers(kit.line) for kit in subject.toolkits)
        yield Finding(
            "note" if usable else "wrong",
            "no CUDA toolkit can be downloaded",
            "a toolkit that fits, downloaded or installed",
            "install a toolkit and name it with --toolkit DIR, or name a mirror with DCA_REDIST_URL",
            details,
        )


def _words(why: str | None, subject: Subject) -> str:
    return f"no answer within {subject.network.seconds:g} s" if why is None else why or "answers"


def _late(what: str, subject: Subject, details: tuple[str, ...] = ()) -> Finding:
    remedy = f"dca doctor --only network waits {PATIENCE:g} s"
    return Finding("unknown", f"{what}: {_words(None, subject)}", "an answer", remedy, details)
