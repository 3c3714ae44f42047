"""Which ptxas compiles PTX: stand-ins that only print a version."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.toolchain import device_tools
from dca.toolchain.device_tools import ToolError
from tests.support.machines import program

PACKAGE = "lib/python3.11/site-packages/triton/backends/nvidia/bin"


def tool(path: Path, version: str) -> Path:
    return program(path, f"echo 'Cuda compilation tools, release {version[:4]}, V{version}'")


@pytest.mark.parametrize(
    ("own", "cuda", "taken"),
    [
        ({"ptxas": "12.8.93"}, "12.8", f"env/{PACKAGE}/ptxas"),
        # Triton 3.3 has a second one, for newer GPUs.
        ({"ptxas": "12.4.99", "ptxas-blackwell": "12.8.61"}, "12.8", f"env/{PACKAGE}/ptxas-blackwell"),
        ({"ptxas": "12.4.99", "ptxas-blackwell": "12.8.61"}, "12.4", f"env/{PACKAGE}/ptxas"),
        ({"ptxas": "12.4.99"}, "12.8", "kit/bin/ptxas"),
        ({}, "12.8", "kit/bin/ptxas"),
    ],
)
def test_the_first_stand_in_that_is_new_enough_is_taken(
    own: dict[str, str], cuda: str, taken: str, tmp_path: Path
) -> None:
    for name, version in own.items():
        tool(tmp_path / "env" / PACKAGE / name, version)
    tool(tmp_path / "kit/bin/ptxas", "12.9.86")
    found = device_tools.find_ptxas(tmp_path / "env/bin/python", tmp_path / "kit", cuda)
    assert found.path == tmp_path / taken


def test_without_one_the_error_has_the_versions_that_were_found(tmp_path: Path) -> None:
    tool(tmp_path / "env" / PACKAGE / "ptxas", "12.4.99")
    with pytest.raises(ToolError, match=r"CUDA 12\.8 or later; found: 12\.4\.99, one that does not start"):
        device_tools.find_ptxas(tmp_path / "env/bin/python", tmp_path / "kit", "12.8")
