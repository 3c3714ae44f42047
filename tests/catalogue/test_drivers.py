"""Drivers: the CUDA version that each supports, and which code it runs."""

from __future__ import annotations

from itertools import pairwise

import pytest
from packaging.version import Version

from dca.catalogue import toolkits

CUDA = toolkits.load_versions()
DRIVERS = CUDA.drivers


def test_later_branches_support_later_cuda_and_ptx_and_each_arch_comes_once() -> None:
    for older, newer in pairwise(DRIVERS.releases):
        assert older.driver < newer.driver
        assert Version(older.cuda) < Version(newer.cuda)
        assert Version(older.ptx) <= Version(newer.ptx)
    archs = [arch for release in DRIVERS.releases for arch in release.archs]
    assert len(set(archs)) == len(archs)


def test_every_cuda_version_has_its_branch_and_no_arch_that_a_later_one_brings() -> None:
    for version in CUDA.versions:
        release = DRIVERS.of(version.line)
        assert release.cuda == version.line
        known = {arch for earlier in DRIVERS.releases if earlier.driver <= release.driver for arch in earlier.archs}
        # Archs of Maxwell and Pascal are older than the table.
        assert {arch for arch in version.archs if not arch.endswith("a") and Version(arch) >= Version("7.0")} <= known


@pytest.mark.parametrize(
    ("version", "cuda"),
    [
        ("550.54.15", "12.4"),
        ("570", "12.8"),
        ("525.60", "12.0"),
        ("549.99", "12.3"),
        # Windows, by the release notes of CUDA 12.0, 12.4 and 13.0.
        ("527.41", "12.0"),
        ("551.61", "12.4"),
        ("581.42", "13.0"),
        ("340.108", ""),
        ("odd", ""),
        ("9999.1", DRIVERS.releases[-1].cuda),
    ],
)
def test_a_driver_supports_the_cuda_of_its_branch(version: str, cuda: str) -> None:
    assert DRIVERS.driver(version).cuda == cuda


def test_what_a_driver_reports_itself_counts() -> None:
    assert DRIVERS.driver("535.183.01", "12.8").cuda == "12.8"


@pytest.mark.parametrize(
    ("arch", "how", "cuda", "driver"),
    [
        # Machine code: the first branch of the major version.
        ("8.0", "native", "12.8", 525),
        ("8.6", "same major (8.0)", "12.9", 525),
        ("8.0", "native", "13.0", 580),
        ("8.0", "native", "11.8", 450),
        # A GPU that came later than the code's major version.
        ("12.0", "native", "12.8", 570),
        ("12.0", "same major (12.0)", "12.9", 570),
        ("10.3", "same major (10.0)", "12.8", 575),
        ("9.0a", "native", "11.8", 520),
        # PTX: the branch of its version. CUDA 12.6 has that of 12.5.
        ("9.0", "JIT from PTX 8.0", "12.8", 570),
        ("9.0", "JIT from PTX 8.0", "12.4", 550),
        ("9.0", "JIT from PTX 8.0", "12.6", 555),
        ("9.0", "JIT from PTX 8.0", "12.0", 525),
        ("12.0", "JIT from PTX 9.0", "12.1", 570),
        # A version between two of the table, and one after it.
        ("7.5", "JIT from PTX 7.5", "13.9", 0),
    ],
)
def test_the_oldest_driver_that_runs_code(arch: str, how: str, cuda: str, driver: int) -> None:
    assert DRIVERS.needed(arch, how, cuda).driver == driver


@pytest.mark.parametrize(
    ("version", "reported", "runs"),
    [
        ("570.86.15", "", True),
        ("580.65.06", "", True),
        ("565.57.01", "", False),
        ("535.183.01", "12.8", True),
        ("340.108", "", False),
    ],
)
def test_a_driver_runs_what_needs_no_newer_one(version: str, reported: str, runs: bool) -> None:
    assert DRIVERS.driver(version, reported).runs(DRIVERS.needed("9.0", "JIT from PTX 8.0", "12.8")) == runs
