"""NVIDIA's drivers: the CUDA version that each supports, and the oldest that runs code of a CUDA version on a GPU.

Machine code runs on drivers of its own major version of CUDA and of later ones. PTX is compiled at load by the driver,
which accepts the PTX of its own CUDA version and of older ones. Both need a driver that knows the GPU.

Source: NVIDIA's CUDA compatibility guide, minor version compatibility and forward compatibility.
"""

from __future__ import annotations

from functools import cache

from packaging.version import Version
from pydantic import Field

from dca.catalogue.archs import compiled_at_load
from dca.foundation.documents import Value

# A plan compares the same few versions thousands of times.
_number = cache(Version)


class Release(Value):
    """The driver branch released with a CUDA version.

    Args:
        cuda: the CUDA version.
        driver: the branch: the first number of the versions of its drivers; 0 if it is not known.
        ptx: version of the newest PTX that it compiles, which is also that of the CUDA version's nvcc.
        archs: GPU archs that it is the first to know.
    """

    cuda: str
    driver: int
    ptx: str = ""
    archs: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The branch and later ones in words."""
        return f"{self.driver} (CUDA {self.cuda}) or newer" if self.driver else f"of CUDA {self.cuda} or newer"


class Driver(Value):
    """The driver of a machine.

    Args:
        version: its version ("550.54.15"); empty if only its CUDA version is known.
        cuda: the CUDA version that it supports; empty if it is older than all that are known. NVIDIA's package
            cuda-compat may raise it above the one of its branch.
    """

    version: str
    cuda: str

    def __str__(self) -> str:
        """The driver in words."""
        return " ".join(["driver", *filter(None, (self.version, f"(CUDA {self.cuda})" * bool(self.cuda)))])

    def runs(self, needed: Release) -> bool:
        """Whether it is as new as a release."""
        return bool(self.cuda) and _number(self.cuda) >= _number(needed.cuda)


class Drivers(Value):
    """The driver branches, the oldest first."""

    releases: tuple[Release, ...] = Field(min_length=1)

    def driver(self, version: str, cuda: str = "") -> Driver:
        """A driver with the CUDA version that it supports.

        Args:
            version: of the driver, on Linux or in Windows with WSL, whose branches have the same numbers or a little
                higher ones.
            cuda: what it reports itself.
        """
        number = version.split(".")[0]
        branch = int(number) if number.isdigit() else 0
        known = [release.cuda for release in self.releases if release.driver <= branch]
        return Driver(version=version, cuda=cuda or (known[-1] if known else ""))

    def of(self, cuda: str) -> Release:
        """The branch of a CUDA version, or the first later one."""
        later = (release for release in self.releases if _number(release.cuda) >= _number(cuda))
        return next(later, Release(cuda=cuda, driver=0))

    def compiling(self, cuda: str) -> Release:
        """The oldest branch that compiles the PTX of a CUDA version; some versions left PTX as it was."""
        own = self.of(cuda)
        return next((release for release in self.releases if release.ptx == own.ptx), own)

    def needed(self, arch: str, how: str, cuda: str) -> Release:
        """The oldest driver that runs code on a GPU.

        Args:
            arch: of the GPU.
            how: it runs the code, as `archs.how_reached` says.
            cuda: version of the compiler that made the code.
        """
        wanted = [self.of(f"{cuda.split('.')[0]}.0")]
        if compiled_at_load(how):
            wanted.append(self.compiling(cuda))
        wanted += [release for release in self.releases if arch.rstrip("af") in release.archs]
        return max(wanted, key=lambda release: _number(release.cuda))
