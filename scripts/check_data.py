"""Loads every TOML file of build/ as `dca` does. Run by `make check` and before each commit."""

from __future__ import annotations

import sys
from collections.abc import Callable

from dca.catalogue import (
    base_images,
    compiler_caches,
    failures,
    host_packages,
    partial_wheels,
    recipes,
    registries,
    toolkits,
    torch_releases,
)
from dca.config import classes, models, readers
from dca.emulation import known
from dca.engines import values as cpu_engines
from dca.foundation.errors import DcaError
from dca.serve import engines, gpus, versions
from dca.serve.check.ruler import known as ruler

LOADERS: tuple[Callable[[], object], ...] = (
    recipes.load_all,
    toolkits.load_versions,
    toolkits.load_sources,
    partial_wheels.load_all,
    torch_releases.load,
    compiler_caches.load_all,
    host_packages.load,
    base_images.load,
    failures.load,
    known.load,
    models.load_all,
    classes.load,
    readers.load_all,
    cpu_engines.load_all,
    engines.load_all,
    gpus.load,
    versions.load,
    registries.load,
    ruler.load,
)


def mistake(load: Callable[[], object]) -> str:
    """The first mistake in the files of one loader."""
    try:
        load()
    except DcaError as error:
        return str(error)
    return ""


def main() -> None:
    """Exit 1 with the mistakes."""
    sys.exit("\n".join(filter(None, map(mistake, LOADERS))) or 0)


if __name__ == "__main__":
    main()
