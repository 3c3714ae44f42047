"""Downloads packages of a Debian-like distribution with a private apt configuration: no root, nothing installed.

apt checks the archive's signature with the machine's keyring and downloads from the machine's mirror.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dca.catalogue.toolkits import Apt, AptPackage
from dca.foundation import environment, runner, store
from dca.foundation.errors import DcaError
from dca.sources import index

PROBE_SECONDS = 5.0
APT_SECONDS = 600.0


@dataclass(frozen=True)
class Mirror:
    """The mirror of the machine's own distribution.

    Args:
        uri: of the mirror.
        signed_by: its keyring; empty for apt's trusted keys.
    """

    uri: str
    signed_by: str


# The values by which apt turns a setting off.
_OFF = {"no", "false", "without", "off", "disable", "0"}


def mirror(distribution: str, etc: Path = Path("/etc")) -> Mirror | None:
    """The mirror of a distribution in the machine's own apt sources, if the machine runs that distribution."""
    release = _os_release(etc / "os-release")
    if release.get("ID") != distribution:
        return None
    codename = release.get("VERSION_CODENAME", "")
    for uri, suites, signed_by in _sources(etc / "apt"):
        if codename in suites and uri.startswith(("http://", "https://")):
            return Mirror(uri.rstrip("/"), signed_by)
    return None


def _os_release(path: Path) -> dict[str, str]:
    text = path.read_text() if path.is_file() else ""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {name: value.strip('"') for name, value in pairs}


def _sources(folder: Path) -> Iterator[tuple[str, list[str], str]]:
    """(URI, suites, keyring) of every source of binary packages, in both of apt's formats."""
    for path in sorted((folder / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text(errors="replace")):
            # Lines that begin with a space continue a field's value; comments may stand between them.
            lines = [line for line in stanza.splitlines() if not line.startswith("#")]
            text = re.sub(r"\n[ \t]+", " ", "\n".join(lines))
            fields = {
                key.strip().lower(): value.strip()
                for key, _, value in (line.partition(":") for line in text.splitlines())
            }
            if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() not in _OFF:
                signed_by = fields.get("signed-by", "")
                for uri in fields.get("uris", "").split():
                    yield (
                        uri,
                        fields.get("suites", "").split(),
                        signed_by if signed_by.startswith("/") else "",
                    )
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*.list"))]:
        if not path.is_file():
            continue
        for line in path.read_text(errors="replace").splitlines():
            match = re.match(r"\s*deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)", line)
            if match:
                signed = re.search(r"signed-by=(/\S+)", match["options"] or "")
                yield match["uri"], [match["suite"]], signed[1] if signed else ""


def probe(release: Apt) -> str:
    """Why the packages cannot be downloaded on this machine; empty when they can."""
    import requests

    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            return f"this machine has no {program}"
    origin = mirror(release.distribution)
    if origin is None:
        return f"this machine's apt has no {release.distribution} mirror"
    try:
        with index.session() as http:
            answer = http.head(
                f"{origin.uri}/dists/{release.suite}/InRelease", timeout=PROBE_SECONDS, allow_redirects=True
            )
    except requests.RequestException as error:
        return f"the {release.distribution} mirror does not answer ({type(error).__name__})"
    return "" if answer.ok else f"the mirror has no {release.distribution} {release.suite}"


def download(release: Apt, cache: store.Store, log: Path, waiting: Callable[[], None] = lambda: None) -> list[Path]:
    """The packages, each with its pinned hash, in the order of the data file.

    Args:
        waiting: called when another process is downloading from the same suite.

    Raises:
        DcaError: DCA-402 when they cannot be downloaded, DCA-401 when one differs from its pin, DCA-409 when --offline
            forbids downloading them.
    """
    kept = {package: cache.download(package.sha256, f"{package.name}.deb") for package in release.packages}
    if missing := _missing(kept):
        cache.must_fetch(f"{missing[0].name} {missing[0].version}")
        # Each download creates the folder of apt's lists and partial files again, so two must not share it.
        with cache.lock("apt", release.suite, waiting):
            if missing := _missing(kept):
                _fetch(release, missing, kept, cache, log)
    return list(kept.values())


def _missing(kept: dict[AptPackage, Path]) -> list[AptPackage]:
    return [package for package, path in kept.items() if not store.has_hash(path, package.sha256)]


def _fetch(
    release: Apt, missing: list[AptPackage], kept: dict[AptPackage, Path], cache: store.Store, log: Path
) -> None:
    """Download the missing packages to their places in the cache."""
    origin = mirror(release.distribution)
    if origin is None:
        raise DcaError(
            "DCA-402",
            f"this machine's apt has no {release.distribution} mirror.",
            remedy="give a CUDA toolkit with --toolkit DIR.",
        )
    state = cache.folder("apt", release.suite)
    if state.exists():
        store.remove(state)
    config = _configure(release, origin, state)
    env = environment.of("network", {"APT_CONFIG": str(config), "DEBIAN_FRONTEND": "noninteractive"})
    updated = runner.run(["apt-get", "update"], env=env, log=log, timeout=APT_SECONDS)
    if not updated.ok:
        raise _failed("its package lists could not be downloaded", updated)
    folder = state / "debs"
    folder.mkdir()
    names = [f"{package.name}={package.version}" for package in missing]
    done = runner.run(["apt-get", "download", *names], cwd=folder, env=env, log=log, timeout=APT_SECONDS)
    if not done.ok:
        raise _failed(f"{', '.join(names)} could not be downloaded", done)
    by_hash = {store.sha256_file(path): path for path in folder.glob("*.deb")}
    for package in missing:
        path = by_hash.get(package.sha256)
        if path is None:
            raise index.wrong_hash(package.name, package.sha256, "another file of that name and version")
        kept[package].parent.mkdir(parents=True, exist_ok=True)
        path.replace(kept[package])
    store.remove(state)


def _failed(what: str, done: runner.Completed) -> DcaError:
    complaints = [line for line in done.tail if line.startswith(("E:", "W:", "Err:"))] or list(done.tail[-3:])
    return DcaError(
        "DCA-402",
        f"the distribution's mirror: {what}.",
        why="\n".join(complaints[:4]),
        output=done.tail,
        remedy="check the network and `apt-get update`, or give a toolkit with --toolkit DIR.",
    )


def _configure(release: Apt, origin: Mirror, state: Path) -> Path:
    """A configuration with all its folders below `state`, so that apt does not touch the system's lists."""
    for name in ("lists/partial", "cache/archives/partial", "etc/preferences.d", "etc/sources.list.d"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    signed = f"Signed-By: {origin.signed_by}\n" if origin.signed_by else ""
    (state / "etc/sources.list.d/dca.sources").write_text(
        f"Types: deb\nURIs: {origin.uri}\nSuites: {release.suite}\nComponents: {' '.join(release.components)}\n"
        f"Architectures: {release.architecture}\n{signed}"
    )
    lines = [
        f'Dir "{state}";',
        f'Dir::State "{state}";',
        f'Dir::State::lists "{state}/lists";',
        f'Dir::State::status "{state}/status";',
        f'Dir::Cache "{state}/cache";',
        f'Dir::Etc "{state}/etc";',
        'Dir::Etc::parts "/dev/null";',
        'Dir::Etc::main "/dev/null";',
        'Dir::Etc::sourcelist "/dev/null";',
        'Dir::Etc::trustedparts "/etc/apt/trusted.gpg.d";',
        'Acquire::Languages "none";',
        f'APT::Architecture "{release.architecture}";',
        'APT::Sandbox::User "root";',
        'Acquire::AllowInsecureRepositories "false";',
        'APT::Get::AllowUnauthenticated "false";',
        *_proxies(),
    ]
    config = state / "apt.conf"
    config.write_text("\n".join(lines) + "\n")
    return config


def _proxies() -> list[str]:
    """The machine's proxy settings, which are the only part of its configuration that is used."""
    dump = runner.run(["apt-config", "dump", "Acquire"], timeout=PROBE_SECONDS)
    return [line for line in dump.tail if re.match(r'Acquire::https?::Proxy\S* "', line)]
