"""Reads the configuration files of git, pip and uv, and hands on what git's says about proxies and certificates."""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dca.foundation import certificates, environment, runner

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GIT_SECONDS = 10.0
# Keys of git's configuration that are handed on, each with an optional URL: how to pass a proxy, whom to trust.
_GIT_PASSED = re.compile(
    r"http\.(?:.+\.)?(?:proxy|proxyauthmethod|proxyssl(?:cainfo|cert|key)|ssl(?:cainfo|capath|cert|key)|version)"
)
# What git finds its configuration by, and what it reads as a part of it.
_GIT_FINDS = ("XDG_CONFIG_HOME", "GIT_CONFIG_*")


class Setting(NamedTuple):
    """A key of a user's configuration file.

    Args:
        program: whose configuration it is.
        file: that has it.
        key: its name, with those of the tables around it.
        value: as text.
    """

    program: Literal["git", "pip", "uv"]
    file: Path
    key: str
    value: str


def read() -> tuple[Setting, ...]:
    """The settings of the user's and the system's configuration files; those that cannot be read have none."""
    return (*git(), *_pip(), *_uv())


def git() -> tuple[Setting, ...]:
    """Git's configuration of the system and the user, with the files that it includes; of no repository."""
    if shutil.which("git") is None:
        return ()
    # A repository above the working folder, whose configuration is not the user's, must not be found.
    env = {**environment.of("git"), **environment.passed(_GIT_FINDS), "GIT_DIR": "/nonexistent"}
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM", "XDG_CONFIG_HOME"):
        if name not in os.environ:
            env.pop(name)
        else:
            env[name] = os.environ[name]
    done = runner.run(
        ["git", "config", "--null", "--list", "--show-origin"],
        env=env,
        timeout=GIT_SECONDS,
        supervision=runner.Supervision(guarded=False, keep_lines=100_000),
    )
    if not done.ok:
        return ()
    words = done.text.split("\0")
    settings = []
    for origin, setting in zip(words[::2], words[1::2], strict=False):
        # A key without a value, which has no line of its own, is on.
        key, newline, value = setting.partition("\n")
        settings.append(Setting("git", Path(origin.removeprefix("file:")), key, value if newline else "true"))
    return tuple(settings)


def git_network() -> dict[str, str]:
    """Variables that hand on the user's proxies and certificates for git.

    Its configuration comes before the authorities that all programs trust.
    """
    trusted = certificates.variables().get("GIT_SSL_CAINFO")
    kept = [("http.sslCAInfo", trusted)] if trusted else []
    kept += [(setting.key, setting.value) for setting in git() if _GIT_PASSED.fullmatch(setting.key)]
    variables = {"GIT_CONFIG_COUNT": str(len(kept))}
    for number, (key, value) in enumerate(kept):
        variables |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return variables if kept else {}


def _pip() -> Iterator[Setting]:
    named = os.environ.get("PIP_CONFIG_FILE", "")
    places = [*_places("pip", "pip.conf"), Path("/etc/pip.conf"), _home() / ".pip/pip.conf"]
    for file in [Path(named)] if named else places:
        parser = configparser.RawConfigParser()
        with contextlib.suppress(OSError, ValueError, configparser.Error):
            parser.read_string(file.read_text(encoding="utf-8"))
            for section in parser.sections():
                for key, value in parser.items(section):
                    yield Setting("pip", file, f"{section}.{key}", " ".join(value.split()))


def _uv() -> Iterator[Setting]:
    named = os.environ.get("UV_CONFIG_FILE", "")
    for file in [Path(named)] if named else _places("uv", "uv.toml"):
        with contextlib.suppress(OSError, ValueError):
            for key, value in _flat(tomllib.loads(file.read_text(encoding="utf-8"))):
                yield Setting("uv", file, key, value)


def _flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        elif isinstance(value, list):
            # Each of uv's indexes is a table.
            texts = (str(one.get("url", "")) if isinstance(one, dict) else str(one) for one in value)
            yield f"{above}{name}", " ".join(texts)
        else:
            yield f"{above}{name}", str(value)


def _places(program: str, file: str) -> list[Path]:
    """Where a program that follows the XDG base directories looks: the system's folders, then the user's."""
    system = os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    own = os.environ.get("XDG_CONFIG_HOME")
    folders = [*map(Path, system.split(os.pathsep)), Path("/etc"), Path(own) if own else _home() / ".config"]
    return [folder / program / file for folder in dict.fromkeys(folders)]


def _home() -> Path:
    return Path(os.environ.get("HOME") or "/nonexistent")
