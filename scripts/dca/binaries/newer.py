"""Names the symbols that keep a library from older systems."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dca.binaries.elf import Symbol

OLDEST = "manylinux_2_28"
"""The policy that wheels of this tool should fit: current wheels of torch need no newer system."""
VERSIONS = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
"""The newest version of each family of symbols that the policy allows, by auditwheel's tables: of glibc, of libstdc++
(two families) and of libgcc."""
MOST_NAMED = 20
_VERSION = re.compile(rf"({'|'.join(VERSIONS)})_(\d{{1,9}}(?:\.\d{{1,9}})*)")


def newer(undefined: Iterable[Symbol]) -> tuple[str, ...]:
    """Symbols in versions that `OLDEST` does not have, such as "gettid (GLIBC_2.30)", sorted; at most `MOST_NAMED`.

    Args:
        undefined: symbols of a library.
    """
    names = {f"{symbol.name} ({symbol.version})" for symbol in undefined if _is_newer(symbol.version)}
    return tuple(sorted(names)[:MOST_NAMED])


def _is_newer(version: str) -> bool:
    match = _VERSION.fullmatch(version)
    return match is not None and tuple(map(int, match[2].split("."))) > VERSIONS[match[1]]
