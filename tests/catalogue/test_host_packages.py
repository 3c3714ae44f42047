"""The commands that install what a build needs, on made-up distributions and for users with and without sudo."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dca.catalogue import host_packages
from dca.catalogue.host_packages import GIT, GXX_OF_A_VERSION, HEADERS, Installer
from tests.support.machines import program

DEBIAN_12 = 'ID=debian\nVERSION_ID="12"\n'
DEBIAN_13 = 'ID=debian\nVERSION_ID="13"\n'
ROCKY_9 = 'ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\n'
MINT = 'ID=linuxmint\nID_LIKE="ubuntu debian"\nVERSION_ID="22"\n'


def look(
    folder: Path, release: str, monkeypatch: pytest.MonkeyPatch, *, user: int = 0, sudo: bool = False
) -> Installer:
    (folder / "bin").mkdir()
    if sudo:
        program(folder / "bin/sudo", "")
    monkeypatch.setenv("PATH", str(folder / "bin"))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    (folder / "os-release").write_text(release)
    return host_packages.look(folder)


@pytest.mark.parametrize(
    ("release", "newest", "others", "command"),
    [
        # The distribution's own g++ is old enough, or is not.
        (DEBIAN_12, 13, False, "apt install g++"),
        (DEBIAN_12, 14, False, "apt install g++"),
        (DEBIAN_13, 13, False, "apt install g++-13"),
        (DEBIAN_13, 13, True, "apt install g++-13"),
        (DEBIAN_13, 14, False, "apt install g++"),
        ('ID=ubuntu\nVERSION_ID="24.04"\n', 12, True, "apt install g++-12"),
        ('ID=ubuntu\nVERSION_ID="22.04"\n', 12, False, "apt install g++"),
        # The versions of a derivative are not those of its parent.
        (MINT, 13, False, "apt install g++"),
        (MINT, 12, True, "apt install g++-12"),
        ('ID="rhel"\nVERSION_ID="9.6"\n', 12, False, "dnf install gcc-c++"),
        (ROCKY_9, 13, True, "dnf install gcc-toolset-13-gcc-c++ && source /opt/rh/gcc-toolset-13/enable"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\nVERSION_ID="15.6"\n', 13, True, "zypper install gcc13-c++"),
        # No command is known.
        ("ID=fedora\nVERSION_ID=43\n", 13, True, "install g++ 13 with your system's package manager"),
        ("ID=nixos\n", 13, False, "install g++ with your system's package manager"),
        ("", 13, True, "install g++ 13 with your system's package manager"),
    ],
)
def test_a_g_plus_plus_is_installed_in_a_release_that_the_toolkit_accepts(
    release: str, newest: int, others: bool, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert look(tmp_path, release, monkeypatch).gxx(newest, others=others) == command


@pytest.mark.parametrize(
    ("user", "sudo", "git", "compiler"),
    [
        (0, False, "apt install git", "apt install g++-13"),
        (1000, True, "sudo apt install git", "sudo apt install g++-13"),
        (1000, False, "su -c 'apt install git'", "su -c 'apt install g++-13'"),
    ],
)
def test_a_command_is_one_for_this_user(
    user: int, sudo: bool, git: str, compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installer = look(tmp_path, DEBIAN_13, monkeypatch, user=user, sudo=sudo)
    assert (installer.command(GIT), installer.command(GXX_OF_A_VERSION, "13")) == (git, compiler)


def test_only_the_command_that_installs_runs_as_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = look(tmp_path, ROCKY_9, monkeypatch, user=1000).gxx(12, others=True)
    assert command == "su -c 'dnf install gcc-toolset-12-gcc-c++' && source /opt/rh/gcc-toolset-12/enable"


def test_python_headers_are_those_of_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(tmp_path, DEBIAN_12, monkeypatch).command(HEADERS, "3.11") == "apt install python3.11-dev"
