"""Wheels that readers see differently, or that install what they do not say: each is a problem, or told."""

from __future__ import annotations

import random
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import pytest
from packaging.utils import canonicalize_name

from dca import inspection
from dca.foundation import archives, store, zip_layout, zips
from dca.foundation.errors import DcaError
from dca.inspection import installed, metadata
from dca.trust import evidence
from tests.support.odd_wheels import (
    BAD_NAMES,
    FINE,
    GOOD_NAMES,
    HOSTILE,
    INFO,
    NAME,
    TOLD,
    Entry,
    archive,
    entries,
    write,
)
from tests.support.served import environment, pip, served, uv

PLAIN = FINE["plain"]()


def problems(wheel: Path) -> tuple[str, ...]:
    """What is wrong with a wheel, also if it cannot be inspected."""
    try:
        return inspection.inspect(wheel).problems
    except DcaError as error:
        return (f"{error.code}: {error.why}",) if error.code == "DCA-701" and error.why else ()


@pytest.mark.slow
def test_a_hostile_wheel_is_a_problem_that_can_be_printed(tmp_path: Path) -> None:
    found = {name: problems(write(tmp_path, make())) for name, make in HOSTILE.items()}
    assert [name for name, said in found.items() if not said] == []
    texts = [line for said in found.values() for text in said for line in text.splitlines()]
    assert [text for text in texts if not text.isprintable()] == []


def test_an_honest_wheel_is_none(tmp_path: Path) -> None:
    assert {name: problems(write(tmp_path, make())) for name, make in FINE.items()} == dict.fromkeys(FINE, ())


def test_what_a_wheel_installs_besides_its_package_is_told(tmp_path: Path) -> None:
    for name, (make, says) in TOLD.items():
        inspected = inspection.inspect(write(tmp_path, make()))
        assert inspected.problems == (), name
        assert any(says in told for told in inspected.installs), name
    assert inspection.inspect(write(tmp_path, PLAIN)).installs == ()


def test_file_names_are_those_that_pip_and_uv_take(tmp_path: Path) -> None:
    for good, makes in ((True, GOOD_NAMES), (False, BAD_NAMES)):
        for name, make in makes.items():
            wheel = tmp_path / name
            wheel.write_bytes(make(name))
            assert bool(problems(wheel)) is not good, (name, problems(wheel))


def test_compiled_modules_in_the_folder_of_pure_python_are_told() -> None:
    for name in ("demo/x.abi3.so", "x.cpython-311-x86_64-linux-gnu.so", "demo/x.cp311-win_amd64.pyd"):
        assert name in " ".join(installed.misplaced([name], pure=True))
        assert list(installed.misplaced([name], pure=False)) == []
        assert list(installed.misplaced([f"demo-1.0.data/platlib/{name}"], pure=True)) == []
    assert list(installed.misplaced(["demo/libx.so.1", "demo/libx.so"], pure=True)) == [], "no module of Python"
    assert metadata.is_pure(b"Root-Is-Purelib: TRUE\n")
    assert not metadata.is_pure(b"Root-Is-Purelib: false\n")


def test_a_wheel_for_linux_may_have_names_that_differ_in_capitals(tmp_path: Path) -> None:
    tag = "cp38-abi3-manylinux_2_28_x86_64"
    wheel = write(tmp_path, HOSTILE["capital letters"]().replace(b"Tag: py3-none-any", f"Tag: {tag}".encode()))
    there = wheel.rename(tmp_path / f"demo-1.0-{tag}.whl")
    assert not any("macOS" in problem for problem in problems(there))


def faults(wheel: Path) -> list[str]:
    try:
        with wheel.open("rb") as file, ZipFile(file) as opened:
            return list(zip_layout.faults(file, opened))
    except (BadZipFile, UnicodeDecodeError) as error:
        return [str(error)]


@pytest.mark.slow
def test_only_an_archive_without_faults_is_unpacked(tmp_path: Path) -> None:
    """The archive's own faults; what only a wheel can have is not looked at."""
    refused = 0
    for name, make in HOSTILE.items():
        wheel = write(tmp_path, make())
        if faults(wheel):
            refused += 1
            with pytest.raises(DcaError) as error:
                archives.unpack_wheel(wheel, tmp_path / "out")
            assert error.value.code == "DCA-404", name
            assert not (tmp_path / "out").exists(), name
    assert refused > 40
    for make in FINE.values():
        archives.unpack_wheel(write(tmp_path, make()), tmp_path / "out")


def damaged(chance: random.Random) -> bytes:
    """A wheel with some bytes changed, removed or inserted."""
    content = bytearray(archive(entries(Entry(f"{INFO}/entry_points.txt", b"[console_scripts]\nx=a:b\n"))))
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        place, size = chance.randrange(len(content)), chance.choice((1, 2, 4, 30))
        odd = chance.choice((chance.randbytes(size), b"\xff" * size, bytes(size), b"PK\x01\x02"))
        how = chance.randrange(3)
        content[place : place + (0 if how == 0 else size)] = b"" if how == 1 else odd
    return bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("count", [200, pytest.param(20_000, marks=pytest.mark.whole)])
def test_damage_never_ends_in_a_traceback(count: int, tmp_path: Path, chance: random.Random) -> None:
    for _ in range(count):
        wheel = write(tmp_path, damaged(chance))
        problems(wheel)
        for read in (lambda one: archives.unpack_wheel(one, tmp_path / "out"), evidence.carried_sbom):
            try:
                read(wheel)
            except DcaError as error:
                assert error.code in ("DCA-404", "DCA-701")  # noqa: PT017 - most are refused, some are not


@pytest.mark.whole
def test_nothing_is_accepted_that_pip_or_uv_refuse(tmp_path: Path, chance: random.Random) -> None:
    """Also not after random damage, which some readers do not notice."""
    python = environment(tmp_path / "venv")
    makes = [*HOSTILE.items(), *((name, make) for name, (make, _) in TOLD.items()), *FINE.items()]
    odd = [(f"damage {number}", damaged(chance)) for number in range(2000)]
    judged = {"pip": 0, "uv": 0}
    every = [(name, NAME, make()) for name, make in makes] + [(name, NAME, content) for name, content in odd]
    every += [(name, name, make(name)) for names in (GOOD_NAMES, BAD_NAMES) for name, make in names.items()]
    for number, (name, file, content) in enumerate(every):
        wheel = write(tmp_path / f"{number}", content, file)
        if problems(wheel):
            continue
        judged["uv"] += 1
        installed = ("--no-deps", "--target", str(tmp_path / f"{number}/out"))
        project = canonicalize_name(file.split("-")[0])
        page = tmp_path / f"{number}/simple/{project}/index.html"
        page.parent.mkdir(parents=True)
        page.write_text(
            f'<!DOCTYPE html><a href="../../{wheel.name}#sha256={store.sha256_bytes(content)}">{wheel.name}</a>'
        )
        with served(page.parents[2]) as web:
            # Then uv unpacks a wheel while it arrives, and is stricter than with a file.
            index = ("--prerelease", "allow", "--index-url", f"{web.url}simple/", project)
            done = uv("pip", "install", "--python", str(python), *installed, *index)
        assert done.returncode == 0, (name, done.stderr)
        if not name.startswith("damage"):
            judged["pip"] += 1
            done = pip(python, *installed, "--no-index", str(wheel), "--upgrade")
            assert done.returncode == 0, (name, done.stderr)
    assert judged["pip"] == len(TOLD) + len(FINE) + len(GOOD_NAMES)
    assert judged["uv"] > judged["pip"]


def test_the_metadata_of_a_carried_package_is_not_the_wheels(tmp_path: Path) -> None:
    """Its folder is sorted in front of the wheel's own."""
    wheel = write(tmp_path, archive([Entry("demo/_vendor/a-1.0.dist-info/METADATA", b"Name: a\n"), *entries()]))
    with zips.opened(wheel) as opened:
        assert metadata.read_own(opened, "METADATA").startswith(b"Metadata-Version: 2.1\nName: demo")
