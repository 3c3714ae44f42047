"""The base images of containers that serve a wheel (build/hosts/images.toml)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags, parse_tag
from pydantic import Field

from dca.foundation import data, datafile
from dca.foundation.documents import Value

USER, UID = "serve", 10001
"""Who serves in an image; no user of a base image has this number."""
HOME = f"/home/{USER}"
_HEALTH = (
    "import http.client, os, sys; "
    "server = http.client.HTTPConnection('127.0.0.1', int(os.environ['HEALTH_PORT']), timeout=15); "
    "server.request('GET', '/health'); sys.exit(server.getresponse().status != 200)"
)
CACHE = f"{HOME}/.cache"
"""Where the server keeps what it downloads and compiles."""


class BaseImages(Value):
    """The known base images.

    Args:
        build: of the stage that makes the environment; `{}` is a version of Python.
        serve: of the stage that serves.
        pythons: versions of Python that both have, the preferred first.
        glibc: release of their C library.
        packages: of their distribution, which a server needs.
    """

    schema_: Literal["dca.images/1"] = Field(alias="schema")
    build: str = Field(pattern=r"^[a-z0-9/._-]+:[A-Za-z0-9._-]*\{\}[A-Za-z0-9._-]*$")
    serve: str = Field(pattern=r"^[a-z0-9/._-]+:[A-Za-z0-9._-]*\{\}[A-Za-z0-9._-]*$")
    pythons: tuple[str, ...] = Field(min_length=1)
    glibc: str = Field(pattern=r"^[0-9]+\.[0-9]+$")
    packages: tuple[str, ...]

    def python_for(self, tags: Iterable[str], requires_python: str) -> str:
        """The preferred version of Python that a wheel runs with; empty if there is none.

        Args:
            tags: of the wheel.
            requires_python: of its METADATA; empty for any.
        """
        every = frozenset(tag for text in tags for tag in parse_tag(text))
        return next((python for python in self.pythons if self._runs(every, requires_python, python)), "")

    def prepared(self) -> str:
        """Lines that make a base image of `serve` ready for an environment: packages, and the user who serves."""
        packages = (
            "# Triton compiles at run time. Debian keeps only the newest release of a package, so none is pinned.\n"
            "# hadolint ignore=DL3008\n"
            "RUN apt-get update \\\n"
            f" && apt-get install -y --no-install-recommends {' '.join(self.packages)} \\\n"
            " && rm -rf /var/lib/apt/lists/*\n"
        )
        return (packages if self.packages else "") + (
            f"RUN useradd --no-log-init --create-home --user-group --uid {UID} {USER} \\\n"
            f" && install --directory --owner={USER} --group={USER} {CACHE}"
        )

    def _runs(self, tags: frozenset[Tag], requires_python: str, python: str) -> bool:
        try:
            # A tag stands for the newest release.
            if not SpecifierSet(requires_python).contains(f"{python}.99"):
                return False
        except InvalidSpecifier:
            return False
        major, minor = map(int, python.split("."))
        fitting = [tag.platform for tag in tags if self._has(tag.platform)]
        supported = {*cpython_tags((major, minor), platforms=fitting)}
        supported |= {*compatible_tags((major, minor), f"cp{major}{minor}", fitting)}
        return not supported.isdisjoint(tags)

    def _has(self, platform: str) -> bool:
        """Whether the images have what wheels for a platform need; their processor is that of whoever builds."""
        if match := re.fullmatch(r"manylinux_(\d+)_(\d+)_\w+", platform):
            return (int(match[1]), int(match[2])) <= tuple(map(int, self.glibc.split(".")))
        return (
            platform == "any"
            or re.fullmatch(r"(linux|manylinux1|manylinux2010|manylinux2014)_\w+", platform) is not None
        )


def served(port: int) -> str:
    """Lines that end an image: who serves in it, and how it is seen that the server is well.

    Args:
        port: that the server listens on.
    """
    return f"USER {UID}:{UID}\nWORKDIR {HOME}\n{watched(port)}"


def watched(port: int, python: str = "python") -> str:
    """Lines that end an image of another user: how it is seen that the server is well.

    Args:
        port: that the server listens on.
        python: the image's Python.
    """
    return (
        "# The port that the health check asks; set it if the server listens on another one.\n"
        f"ENV HEALTH_PORT={port}\n"
        f"EXPOSE {port}\n"
        "# Loading a large model may take half an hour.\n"
        "HEALTHCHECK --interval=30s --timeout=20s --start-period=30m --retries=10 "
        f'CMD ["{python}", "-c", "{_HEALTH}"]\n'
        'CMD ["vllm", "--help"]'
    )


def load(file: Path | None = None) -> BaseImages:
    """The known base images.

    Raises:
        DcaError: DCA-202 for a wrong key or value.
    """
    return datafile.load(BaseImages, file or data.data_root() / "build" / "hosts" / "images.toml")
