"""Checks of the network: proxies, and whether the places that a build takes its parts from answer."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from dca.catalogue import toolkits
from dca.catalogue.recipes import GitSource
from dca.doctor.probes import PATIENCE, repositories
from dca.doctor.values import Result, Subject
from dca.foundation.secrets import redact
from dca.sources import index

PROXIES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")


def proxies(subject: Subject) -> Iterator[Result]:
    """Proxies that programs are told of."""
    variables = {name: subject.env[name] for name in PROXIES if subject.env.get(name)}
    shown = ", ".join(
        f"{name}={value if name.lower() == 'no_proxy' else _place(value)}" for name, value in variables.items()
    )
    wrong = [name for name, value in variables.items() if name.lower() != "no_proxy" and not _is_proxy(value)]
    if wrong:
        yield Result(
            code="network.proxies",
            status="wrong",
            found=f"{wrong[0]} is no address",
            wanted="http://HOST:PORT",
            remedy=f"export {wrong[0]}=http://HOST:PORT, or unset {wrong[0]}",
        )
        return
    yield Result(code="network.proxies", status="fine", found=shown or "none is set")


def _place(value: str) -> str:
    """A proxy's address without its user and password, whatever these are made of."""
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


def package_index(subject: Subject) -> Iterator[Result]:
    """The package index, which every build needs."""
    where = redact(index.endpoint())
    why = subject.network.of("index")
    if why is None:
        yield _late("network.index", where, subject)
    elif why:
        kept = any(subject.cache.glob("env/*-build-*/.whole"))
        yield Result(
            code="network.index",
            status="note" if kept else "wrong",
            found=f"{where}: {why}",
            wanted="a package index in reach" + ("; what was downloaded before is kept" if kept else ""),
            remedy="export UV_DEFAULT_INDEX=URL of a mirror, or HTTPS_PROXY=http://HOST:PORT",
        )
    else:
        yield Result(code="network.index", status="fine", found=where)


def sources(subject: Subject) -> Iterator[Result]:
    """Git repositories, of which each recipe needs some."""
    answers = {url: subject.network.of(url) for url in repositories(subject.recipes)}
    details = tuple(f"{url}: {_words(why, subject)}" for url, why in answers.items())
    reached = [url for url, why in answers.items() if why == ""]
    found = f"{len(reached)} of {len(answers)} repositories answer"
    if len(reached) == len(answers):
        yield Result(code="network.sources", status="fine", found=found, details=details)
        return
    # A recipe whose source is on the index needs git only to compile companions that can be copied instead.
    without = [
        loaded.recipe.name
        for loaded in subject.recipes
        if isinstance(loaded.recipe.source, GitSource) and not set(loaded.recipe.source.urls) & set(reached)
    ]
    if all(why is None for why in answers.values()):
        yield _late("network.sources", "the repositories", subject, details)
        return
    none = len(without) == len(subject.recipes)
    yield Result(
        code="network.sources",
        status="wrong" if none else "note",
        found=found + (f", none of the source of {', '.join(without)}" if without else ""),
        wanted="all, to compile everything from source",
        details=details,
        remedy="name clones: dca wheel --source CLONE --companion NAME=CLONE, or set HTTPS_PROXY",
    )


def kits(subject: Subject) -> Iterator[Result]:
    """Places that CUDA toolkits are brought from."""
    fitting = [source for source in toolkits.load_sources() if source.line in subject.cuda_lines]
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
    usable = [kit for kit in subject.toolkits if not kit.missing and subject.takers(kit.line)]
    if reached:
        yield Result(
            code="network.toolkits", status="fine", found=f"nvcc {', '.join(reached)} can be brought", details=details
        )
    elif kept:
        yield Result(
            code="network.toolkits", status="fine", found=f"nvcc {', '.join(kept)} was brought before", details=details
        )
    elif any(why is None for _, asked in answers for why in asked.values()):
        yield _late("network.toolkits", "the places of CUDA toolkits", subject, details)
    else:
        yield Result(
            code="network.toolkits",
            status="note" if usable else "wrong",
            found="no CUDA toolkit can be brought",
            wanted="one that fits, or one on the machine",
            details=details,
            remedy="install a toolkit and name it with --toolkit DIR, or a mirror with DCA_REDIST_URL",
        )


def _words(why: str | None, subject: Subject) -> str:
    return f"no answer within {subject.network.seconds:g} s" if why is None else why or "answers"


def _late(code: str, what: str, subject: Subject, details: tuple[str, ...] = ()) -> Result:
    return Result(
        code=code,
        status="unknown",
        found=f"{what}: no answer within {subject.network.seconds:g} s",
        details=details,
        wanted="an answer",
        remedy=f"dca doctor --only network waits {PATIENCE:g} s",
    )
