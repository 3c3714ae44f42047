"""PTX is set aside in objects: the linked bytes are those of an object without it, and the text stays in the object."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dca.binaries import fatbin, objects
from dca.binaries.fatbin import FatbinError
from tests.support.fatbins import FAMILY, LZ4, ONLY, PTX, SASS, ZSTD, container, entry, text

SOURCE = """
asm(".pushsection .nv_fatbin,\\"a\\"\\n.balign 8\\nfatbin: .incbin \\"NAME\\"\\n.popsection");
extern "C" const char fatbin[] __attribute__((visibility("hidden")));
__attribute__((section(".nvFatBinSegment"))) const void* wrapper[] = {fatbin, nullptr};
extern "C" int answer() { return 42; }
"""


def compiled(folder: Path, name: str, content: bytes) -> Path:
    """An object with a fat binary, as nvcc lets g++ make it."""
    (folder / name).write_bytes(content)
    (folder / "source.cpp").write_text(SOURCE.replace("NAME", name))
    command = ["g++", "-c", "-fPIC", "-ffunction-sections", "-o", f"{name}.o", "source.cpp"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / f"{name}.o"


def linked(file: Path) -> bytes:
    flags = ["-shared", "-Wl,--strip-all", "-Wl,--build-id=none"]
    subprocess.run(["g++", *flags, "-o", file.with_suffix(".so"), file], check=True)
    return file.with_suffix(".so").read_bytes()


CUBINS = [entry(SASS, 80), entry(SASS, 90, flags=LZ4)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dropped", "stays"),
    [
        ((), ("8.0", "9.0a", "10.0f")),
        (("100f",), ("8.0", "9.0a")),
        (("80",), ("9.0a", "10.0f")),
        (("80", "90", "100"), ("9.0a", "10.0f")),
        (("80", "90a", "100f"), ()),
    ],
)
def test_a_linker_makes_the_same_of_an_object_whose_ptx_is_set_aside(
    dropped: tuple[str, ...], stays: tuple[str, ...], tmp_path: Path
) -> None:
    texts = {
        "8.0": entry(PTX, 80, flags=LZ4),
        "9.0a": entry(PTX, 90, text("90a"), flags=ONLY | ZSTD),
        "10.0f": entry(PTX, 100, text("100f"), flags=FAMILY),
    }
    file = compiled(tmp_path, "all", container(CUBINS[0], texts["8.0"], CUBINS[1], texts["9.0a"], texts["10.0f"]))
    linked_texts = {arch: one for arch, one in texts.items() if arch in stays}
    first = [linked_texts.pop("8.0")] if "8.0" in stays else []
    expected = compiled(tmp_path, "some", container(CUBINS[0], *first, CUBINS[1], *linked_texts.values()))
    file.chmod(0o640)
    objects.main([str(file), *dropped])
    assert linked(file) == linked(expected)
    found = objects.texts(file)
    assert found is not None
    assert [(code.kind, code.arch) for code in found] == [(PTX, arch) for arch in texts]
    assert file.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["all", "all.o", "all.so", "some", "some.o", "some.so", "source.cpp"]
    )
    once = file.read_bytes()
    objects.main([str(file), *dropped])
    assert file.read_bytes() == once


def test_a_hard_link_to_the_object_keeps_its_bytes(tmp_path: Path) -> None:
    file = compiled(tmp_path, "all", container(entry(PTX, 80)))
    before = file.read_bytes()
    (tmp_path / "in a cache").hardlink_to(file)
    objects.main([str(file), "80"])
    assert (tmp_path / "in a cache").read_bytes() == before != file.read_bytes()


@pytest.mark.parametrize("content", [b"", b"preprocessed", b"int main() { }"])
def test_what_is_no_object_stays(content: bytes) -> None:
    assert objects.set_aside(content, ["8.0"]) == content


def test_an_object_without_device_code_stays(tmp_path: Path) -> None:
    (tmp_path / "host.cpp").write_text("int answer() { return 42; }")
    subprocess.run(["g++", "-c", "host.cpp"], cwd=tmp_path, check=True)
    before = (tmp_path / "host.o").read_bytes()
    assert objects.set_aside(before, ["8.0"]) == before
    assert objects.texts(tmp_path / "host.o") is None


@pytest.mark.parametrize("content", [b"nothing", container(CUBINS[0])[:-1], container(CUBINS[0]) * 2])
def test_a_fat_binary_in_an_unknown_form_ends_with_one_line(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = compiled(tmp_path, "all", content)
    before = file.read_bytes()
    with pytest.raises(SystemExit) as ended:
        objects.main([str(file), "80"])
    assert str(ended.value).startswith(f"dca: error: the PTX in {file} cannot be set aside: ")
    assert file.read_bytes() == before


def test_damage_to_a_text_is_found(tmp_path: Path) -> None:
    file = compiled(tmp_path, "all", container(entry(PTX, 80)))
    objects.main([str(file), "80"])
    file.write_bytes(file.read_bytes().replace(b".target sm_80", b".target sm_90"))
    with pytest.raises(FatbinError, match=r"its text is for 9\.0"):
        objects.texts(file)


def test_a_container_is_divided_without_a_change_of_its_entries() -> None:
    one = entry(PTX, 80, flags=LZ4)
    without, of_ptx = fatbin.divided(container(CUBINS[0], one, CUBINS[1]), ["8.0"])
    assert without == container(*CUBINS)
    assert of_ptx == container(one)
