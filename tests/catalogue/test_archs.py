"""How GPUs run code that was compiled for other ones."""

from __future__ import annotations

import pytest

from dca.catalogue.archs import how_reached, nearest


@pytest.mark.parametrize(
    ("arch", "sass", "ptx", "how"),
    [
        ("8.0", ("8.0",), (), "native"),
        ("8.6", ("8.0",), (), "same major (8.0)"),
        ("8.0", ("8.6",), (), "not"),
        ("9.0", ("8.0",), ("8.0",), "JIT from PTX 8.0"),
        ("9.0", ("8.0",), (), "not"),
        ("8.9", ("8.0", "8.6"), ("8.0",), "same major (8.6)"),
        # Machine code of a Jetson runs on no other GPU.
        ("8.9", ("8.0", "8.7"), (), "same major (8.0)"),
        ("10.3", ("10.1",), ("9.0",), "JIT from PTX 9.0"),
        ("8.7", ("8.7",), (), "native"),
        ("12.0", ("8.0", "9.0"), ("8.0", "9.0"), "JIT from PTX 9.0"),
        ("8.0", (), ("9.0",), "not"),
        # Code with an "a" runs on that arch only, with an "f" on its family.
        ("9.0", ("9.0a",), (), "native"),
        ("10.3", ("10.0a",), (), "not"),
        ("10.3", ("10.0f",), (), "same major (10.0f)"),
        ("10.3", (), ("10.0a",), "not"),
        ("12.0", (), ("10.0f",), "not"),
        ("10.3", (), ("10.0f", "9.0"), "JIT from PTX 10.0f"),
    ],
)
def test_how_an_arch_is_reached(arch: str, sass: tuple[str, ...], ptx: tuple[str, ...], how: str) -> None:
    assert how_reached(arch, sass, ptx) == how


@pytest.mark.parametrize(
    ("arch", "sass", "ptx", "built"),
    [
        ("8.0", ("8.0",), (), "8.0"),
        ("9.0", ("9.0a",), (), "9.0"),
        # A cubin compiled from PTX is better than that of an older arch.
        ("8.6", ("8.0",), ("8.0",), "8.6"),
        ("8.6", ("7.0", "8.0"), (), "8.0"),
        ("9.0", ("8.0",), ("9.0a",), "9.0"),
        ("9.0", ("8.0",), ("10.0",), ""),
    ],
)
def test_the_best_cubins_that_a_module_can_have_for_an_arch(
    arch: str, sass: tuple[str, ...], ptx: tuple[str, ...], built: str
) -> None:
    assert nearest(arch, sass, ptx) == built
