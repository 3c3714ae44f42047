"""How a GPU of one architecture runs the code in a module.

Source: CUDA C++ programming guide, binary and PTX compatibility. SASS runs on the same major version from its own minor
version on, but that of a Jetson on no other GPU. A driver compiles PTX at load for the same or a newer architecture.
Code for an architecture with the suffix "a" runs only on that one, with "f" only on its family: the same major version.
"""

from __future__ import annotations

from collections.abc import Collection

NOT = "not"
JETSON = ("5.3", "6.2", "7.2", "8.7", "10.1", "11.0")
_AT_LOAD = "JIT from PTX "


def version(arch: str) -> tuple[int, int]:
    """Major and minor of an arch such as "9.0" or "9.0a"."""
    major, _, minor = arch.rstrip("af").partition(".")
    return int(major), int(minor)


def how_reached(arch: str, sass: Collection[str], ptx: Collection[str]) -> str:
    """How a GPU of one arch runs code: "native", "same major (8.0)", "JIT from PTX 8.0", or "not"."""
    if any(version(built) == version(arch) for built in sass):
        return "native"
    if same := _same_major(arch, sass):
        return f"same major ({same})"
    if older := compilable(arch, ptx):
        return _AT_LOAD + older
    return NOT


def compiled_at_load(how: str) -> bool:
    """Whether a GPU runs code only because the driver compiles its PTX at load."""
    return how.startswith(_AT_LOAD)


def compilable(arch: str, ptx: Collection[str]) -> str:
    """The newest PTX that can be compiled for an arch; "" if there is none."""
    return max((built for built in ptx if _compiles(built, version(arch))), key=version, default="")


def nearest(arch: str, sass: Collection[str], ptx: Collection[str]) -> str:
    """The arch of the best cubins for a GPU: its own if it has them or PTX can be compiled, else of the same major.

    "" if there are none.
    """
    if any(version(built) == version(arch) for built in sass) or compilable(arch, ptx):
        return arch
    return _same_major(arch, sass)


def _same_major(arch: str, sass: Collection[str]) -> str:
    """The newest older arch whose cubins a GPU runs; "" if there is none."""
    own = version(arch)
    same = [
        built
        for built in sass
        if not built.endswith("a") and built not in JETSON and version(built)[0] == own[0] and version(built) < own
    ]
    return max(same, key=version, default="")


def _compiles(ptx: str, own: tuple[int, int]) -> bool:
    """Whether a driver compiles PTX for a GPU."""
    if ptx.endswith("a"):
        return version(ptx) == own
    return version(ptx) <= own and (not ptx.endswith("f") or version(ptx)[0] == own[0])
