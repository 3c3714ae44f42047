"""Debian's compiler, Python and emulator for aarch64: pinned by hash, unpacked, and not installed.

Also a CUDA toolkit and a torch to link with, for nvcc of this machine.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import pytest

from dca.binaries import elf
from dca.catalogue import machine
from dca.catalogue.recipes import IndexFile
from dca.catalogue.toolkits import Apt, AptPackage
from dca.foundation import runner, store
from dca.foundation.errors import DcaError
from dca.sources import index
from dca.toolchain import apt, environments
from dca.toolchain.environments import TorchFacts
from dca.toolchain.stand_ins import StandIn

TARGET = "aarch64-linux-gnu"
GCC = "12.2.0-14cross1"
# Host libraries of gcc itself are those of this machine's own gcc 12.
PACKAGES = (
    ("binutils-aarch64-linux-gnu", "2.40-2", "3d6f64a7a4ed6d73719f8fa2e85fd896f58ff7f211a6683942ba93de690aaa66"),
    ("cpp-12-aarch64-linux-gnu", GCC, "5921df4ad56e34e6257a1caf862474845aab6548ba7ae7852e8cdd7cb622394e"),
    ("gcc-12-aarch64-linux-gnu", GCC, "43747bbcd46a4062e66e855090b8ed9c2e06a93ae5a69fb304beebbc8c36d11f"),
    ("g++-12-aarch64-linux-gnu", GCC, "3693e31fe2b42fcbdd92fef3e5578e91dd86af30e3d2c5fff3f9821e34a1cb91"),
    ("libgcc-s1-arm64-cross", GCC, "af1e686fc6a416228222e7bfb68317dd2fa2685236301ae29141fc6108a66cac"),
    ("libgcc-12-dev-arm64-cross", GCC, "ff1324e262bae2c3aad685c2ed52bd531ab0a2a337a0fe35c3b720947d55b2ba"),
    ("libstdc++6-arm64-cross", GCC, "9cba984b64d0cf11698978fc5e0fe93c7441d29b9f42f70f1c6c734cc9e2ea41"),
    ("libstdc++-12-dev-arm64-cross", GCC, "942b5710c6b9792578dfa64f7a4633bc0d3cb205b56ded11297e240ff824f5da"),
    ("libc6-arm64-cross", "2.36-8cross1", "91936cbbee75771c360ed16513f6e734a25ca5517fe7c3e13dfd7835d7553186"),
    ("libc6-dev-arm64-cross", "2.36-8cross1", "5e4cf6abf0e89e89c4b3006bb8b7dc47aa831df25d94df9134929b8b968cacb4"),
    ("linux-libc-dev-arm64-cross", "6.1.4-1cross1", "66457f015d16b7d372db6591cff38db0da928362ff2ea1fa75491e28f6904d81"),
    ("qemu-user", "1:7.2+dfsg-7+deb12u18+b3", "02a7d6a2675a12dd7fdd474924295552470c0c933e0b543975887f493a84219f"),
    ("libcapstone4", "4.0.2-5", "41277f0388184f6e3b9fc02eda3184afbc999314b25b77ed75e8049428bdfe5e"),
    ("liburing2", "2.3-3", "c23077e3640e6cb4b819c134b3f41d5cf21b3edac099654b1b4142c3069a39a3"),
)
# Python 3.11 for aarch64, and the libraries that it and torch load.
PYTHON = (
    ("libbz2-1.0", "1.0.8-5+b1", "d3a96ece03326498b39ff093a76800dfcbcb1d4049d6ae6e9f6fa1aa7a590ad6"),
    ("libc6", "2.36-9+deb12u14", "01f4330719fd4f65580e16ea5a0527f372fca750e8f588d26deaf09f2d3b1cf4"),
    ("libexpat1", "2.5.0-1+deb12u2", "8dc1976735acf825e3a922d82f171e20feec7394da2b8c616091983e38706275"),
    ("libffi8", "3.4.4-1", "80b5c36177dc0e29d531c7eddbed3cc7355cb490e49f8cfa5959572d161f27b3"),
    ("libgcc-s1", "12.2.0-14+deb12u1", "576926b283613db80168ddf76380a3bd877602778cf0d226caa7bfbfa71eacf3"),
    ("libgomp1", "12.2.0-14+deb12u1", "a48b70dd1a95585466b40bd94564bce56ebcb2566e49ccdb6441e996aaab2098"),
    ("liblzma5", "5.4.1-1+deb12u1", "647ce9d81e41c30071ce6ac0d3324579216a33aaa1d28971d6952315f6a95a75"),
    ("libncursesw6", "6.4-4", "cf32cb6751718872c6def448b82211eec494f688e2f1a3e6c71bfdaf6b0722c5"),
    ("libpython3.11-minimal", "3.11.2-6+deb12u8", "c48bac178c0fc43a2bf8ace784c762b5ee83e2b981894a991dc3ccfd3ec7cd4b"),
    ("libpython3.11-stdlib", "3.11.2-6+deb12u8", "e79876de55c6c2dca10d044b2fa69ccd863950ea01714220c1982d16008105f9"),
    ("libreadline8", "8.2-1.3", "f3b162b7c1e05430607e792ebdbfc417cbd1f1d32cf83664133ae63d811a72d2"),
    ("libsqlite3-0", "3.40.1-2+deb12u2", "a690f7f2aa6435bd1fd7cbbd2216acb9acbb8c48c9721f2c195766375439eb13"),
    ("libssl3", "3.0.20-1~deb12u2", "a256e03cc3abd7243ac5c6ee91a9deb56478221ef0d3c2b0748551e13140c0bf"),
    ("libstdc++6", "12.2.0-14+deb12u1", "26e138c677a985775331373828a6c286c551ff397cb735d00e2383cb273d1cb2"),
    ("libtinfo6", "6.4-4", "baef0f6776f84c7eed4f1146d6e5774689567dad43216894d41da02e6608e4b3"),
    ("libuuid1", "2.38.1-5+deb12u3", "3b2d19df0f3190108cf54228c4cfc822226c06d8f3615a5ab16a7dffb1f58aed"),
    ("python3.11-minimal", "3.11.2-6+deb12u8", "6a07dd571f1a15af2f855d64571766fe44b73a57cc3b5ca79502bc89156a5e12"),
    ("zlib1g", "1:1.2.13.dfsg-1", "52b8b8a145bbe1956bba82034f77022cbef0c3d0885c9e32d9817a7932fe1913"),
)
CUDART = IndexFile(
    package="nvidia-cuda-runtime-cu12",
    version="12.4.127",
    file="nvidia_cuda_runtime_cu12-12.4.127-py3-none-manylinux2014_aarch64.whl",
    sha256="961fe0e2e716a2a1d967aab7caee97512f71767f852f67432d572e36cb3a11f3",
)
# What the modules of the lean project are linked with.
OF_TORCH = ("c10", "torch_cpu", "c10_cuda", "torch_cuda", "torch")


class Cross(NamedTuple):
    """What makes programs for aarch64 on this machine, and runs them.

    Args:
        root: where Debian's packages are unpacked.
    """

    root: Path

    @property
    def compiler(self) -> Path:
        """The g++; nvcc recognizes by the name what it compiles for."""
        return self.root / f"bin/{TARGET}-g++-12"

    @property
    def emulator(self) -> list[str | Path]:
        """What a command of an aarch64 program begins with."""
        return [self.root / "bin/qemu-aarch64", "-L", self.root / "usr" / TARGET]

    def compile(self, *words: str | Path) -> None:
        """Run the compiler."""
        done = runner.run([self.compiler, *words], timeout=300.0)
        assert done.ok, done.text

    def toolkit(self, own: Path, folder: Path, cache: store.Store) -> Path:
        """A toolkit whose programs are those of this machine's, and whose libraries are for aarch64.

        Args:
            own: the toolkit of this machine.
            folder: to write it to.
            cache: of downloads.
        """
        # Programs look for the others beside themselves, so these are copies.
        shutil.copytree(own / "bin", folder / "bin", symlinks=True)
        for name in ("include", "nvvm"):
            (folder / name).symlink_to(own / name)
        shutil.copytree(own / "lib64", folder / "lib64", symlinks=True)
        (folder / "lib64/libcudart.so.12").unlink()
        (folder / "lib64/libcudart.so.12").write_bytes(cudart(cache))
        return folder

    def python(self, folder: Path, lock: Path, cache: store.Store) -> Path:
        """A Python for aarch64 with the packages of a lock, for which the index has torch without CUDA; its program.

        Args:
            folder: to write it to; modules find the libraries in its folder `libraries`, CUDA's run time for now.
            lock: requirements with hashes.
            cache: of downloads.
        """
        root, libraries = folder / "root", folder / "libraries"
        store.write_bytes(libraries / "libcudart.so.12", cudart(cache))
        _unpack(PYTHON, "arm64", root, cache)
        words: list[str | Path] = [machine.find_uv(), "pip", "install", "--no-deps", "--require-hashes", "-r", lock]
        words += ["--only-binary", ":all:", "--python-platform", "aarch64-manylinux_2_35", "--python-version", "3.11"]
        words += ["--python", sys.executable, "--target", root / "usr/local/lib/python3.11/dist-packages"]
        done = runner.run(words, env=environments.uv_environment(cache), timeout=900.0)
        assert done.ok, done.text[-3000:]
        qemu = [self.root / "bin/qemu-aarch64", "-L", root, "-E", f"LD_LIBRARY_PATH={libraries}"]
        program, python = folder / "bin/python", root / "usr/bin/python3.11"
        text = f'#!/bin/sh\nexec {shlex.join(map(str, [*qemu, python]))} "$@"\n'
        store.write_bytes(program, text.encode(), mode=0o755)
        return program

    def emulated(self, toolkit: Path, folder: Path) -> Path:
        """A toolkit for aarch64 whose programs start others, with the emulator before each of them.

        Args:
            toolkit: the toolkit.
            folder: to write it to.
        """
        shutil.copytree(toolkit, folder, symlinks=True)
        for path in [path for path in folder.rglob("*") if path.parent.name == "bin" and path.is_file()]:
            if path.read_bytes()[:4] == b"\x7fELF":
                # Beside the old name, by which a program finds its own folder.
                real = path.rename(path.with_name(f"{path.name}.aarch64"))
                words = shlex.join(map(str, [*self.emulator, "-0", path, real]))
                store.write_bytes(path, f'#!/bin/sh\nexec {words} "$@"\n'.encode(), mode=0o755)
        return folder

    def torch(self, own: TorchFacts, folder: Path) -> TorchFacts:
        """A torch with the headers of this machine's, and stand-ins for aarch64 of its libraries.

        Args:
            own: the torch of this machine.
            folder: of a site-packages to write it to.
        """
        site = Path(own.libraries).parents[1]
        (folder / "torch/lib").mkdir(parents=True)
        for path in site.iterdir():
            if path.name != "torch":
                (folder / path.name).symlink_to(path)
        (folder / "torch/include").symlink_to(site / "torch/include")
        for name in OF_TORCH:
            library = Path(own.libraries) / f"lib{name}.so"
            StandIn(library.name, {"": elf.defined(library)}).write(folder / "torch/lib" / library.name, "aarch64")
        return own.with_paths(lambda path: path.replace(str(site), str(folder)))


def cudart(cache: store.Store) -> bytes:
    """CUDA's run time for aarch64."""
    with ZipFile(index.download(CUDART, cache)) as wheel:
        return wheel.read("nvidia/cuda_runtime/lib/libcudart.so.12")


def unpacked(folder: Path, cache: store.Store) -> Cross:
    """The compiler and the emulator, in a folder; a test is skipped where Debian's mirror cannot be reached."""
    cross = Cross(folder / "root")
    _unpack(PACKAGES, "amd64", cross.root, cache)
    # Programs find libraries of their packages only where these would be installed, or by a variable.
    libraries = cross.root / "usr/lib/x86_64-linux-gnu"
    for program in [*cross.root.glob(f"usr/bin/{TARGET}-*"), cross.root / "usr/bin/qemu-aarch64"]:
        text = f'#!/bin/sh\nLD_LIBRARY_PATH={shlex.quote(str(libraries))} exec {shlex.quote(str(program))} "$@"\n'
        store.write_bytes(cross.root / "bin" / program.name, text.encode(), mode=0o755)
    # A linker script, which names files where the package would be installed.
    script = cross.root / "usr" / TARGET / "lib/libc.so"
    script.write_text(script.read_text().replace(f"/usr/{TARGET}/lib/", ""))
    return cross


def _unpack(packages: tuple[tuple[str, str, str], ...], architecture: str, root: Path, cache: store.Store) -> None:
    """Unpack Debian's packages into a folder."""
    release = Apt(
        distribution="debian",
        suite="bookworm",
        components=("main",),
        architecture=architecture,
        packages=tuple(AptPackage(name=name, version=version, sha256=sha256) for name, version, sha256 in packages),
    )
    if why := apt.probe(release):
        pytest.skip(f"aarch64: {why}")
    try:
        files = apt.download(release, cache, root.with_name("log"))
    except DcaError as error:
        pytest.skip(f"aarch64: {error.what} {error.why}")
    for file in files:
        done = runner.run(["dpkg-deb", "-x", file, root])
        assert done.ok, done.text
