"""Device code in made-up and real modules."""

from __future__ import annotations

import os
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from dca import fatbin
from dca.fatbin import FatbinError

PTX, SASS = 1, 2
COMPRESSED = 0x2000


def entry(kind: int, arch: int, size: int = 40, *, flags: int = 0x11, header: int = 64) -> bytes:
    """One entry: a header that names kind, size and architecture, and a payload."""
    head = struct.pack("<HHIQIIHHIIQQ", kind, 0x101, header, size, 0, 0, 4, 12, arch, 64, flags, 0)
    return head.ljust(header, b"\0") + os.urandom(size)


def container(*entries: bytes, version: int = 1, header: int = 16) -> bytes:
    payload = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, version, header, len(payload)).ljust(header, b"\0") + payload


@pytest.fixture(autouse=True)
def _no_endless_loop() -> Iterator[None]:
    """End a test that reads in circles."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError("still reading after five seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_cubins_and_ptx_are_counted_by_architecture() -> None:
    section = container(entry(SASS, 80, 100), entry(SASS, 90, 30), entry(PTX, 90), entry(SASS, 80, 11))
    code = fatbin.parse(section)
    assert code.sass == {"8.0": 2, "9.0": 1}
    assert code.ptx == {"9.0": 1}
    assert code.sass_bytes == {"8.0": 111, "9.0": 30}
    assert code.section_bytes == len(section)


def test_several_containers_with_padding_between_them_are_read() -> None:
    section = container(entry(SASS, 80)) + bytes(24) + container(entry(SASS, 80), entry(PTX, 80)) + bytes(3)
    code = fatbin.parse(section)
    assert (code.sass, code.ptx) == ({"8.0": 2}, {"8.0": 1})


def test_whether_an_entry_is_compressed_makes_no_difference() -> None:
    plain, packed = (container(entry(SASS, 86, 64, flags=flags)) for flags in (0, COMPRESSED))
    assert fatbin.parse(plain) == fatbin.parse(packed)


def test_longer_headers_are_skipped_by_their_own_size() -> None:
    section = container(entry(SASS, 80, header=96), entry(PTX, 120, header=80), header=32)
    code = fatbin.parse(section)
    assert (code.sass, code.ptx) == ({"8.0": 1}, {"12.0": 1})


def test_entries_of_other_kinds_are_passed_over() -> None:
    code = fatbin.parse(container(entry(8, 80), entry(SASS, 89)))
    assert (code.sass, code.ptx) == ({"8.9": 1}, {})


def test_a_payload_that_holds_the_magic_number_is_not_read_as_a_container() -> None:
    inner = container(entry(SASS, 90))
    head = struct.pack("<HHIQIIHHIIQQ", SASS, 0x101, 64, len(inner), 0, 0, 4, 12, 80, 64, 0, 0).ljust(64, b"\0")
    assert fatbin.parse(container(head + inner)).sass == {"8.0": 1}


def test_architectures_are_in_the_order_of_their_numbers() -> None:
    code = fatbin.parse(container(*(entry(SASS, arch) for arch in (120, 90, 75, 100, 80))))
    assert list(code.sass) == ["7.5", "8.0", "9.0", "10.0", "12.0"]


@pytest.mark.parametrize(("number", "name"), [(52, "5.2"), (80, "8.0"), (89, "8.9"), (90, "9.0"), (103, "10.3")])
def test_an_architecture_is_named_as_compute_capability(number: int, name: str) -> None:
    assert fatbin.arch_name(number) == name


@pytest.mark.parametrize("section", [b"", bytes(64), container()])
def test_a_section_without_entries_holds_no_code(section: bytes) -> None:
    code = fatbin.parse(section)
    assert (code.sass, code.ptx, code.sass_bytes) == ({}, {}, {})


def test_a_section_that_is_cut_short_anywhere_is_refused() -> None:
    whole = container(entry(SASS, 80), entry(PTX, 90))
    accepted = []
    for size in range(1, len(whole)):
        try:
            fatbin.parse(whole[:size])
        except FatbinError:
            continue
        accepted.append(size)
    assert accepted == []


def test_a_second_container_that_is_cut_short_is_refused() -> None:
    first, second = container(entry(SASS, 80)), container(entry(SASS, 90))
    for size in (7, 15, 16, len(second) - 1):
        with pytest.raises(FatbinError):
            fatbin.parse(first + bytes(8) + second[:size])


def test_a_section_of_something_else_is_refused() -> None:
    with pytest.raises(FatbinError):
        fatbin.parse(b"neither header nor padding" * 9)


@pytest.mark.parametrize(
    "section",
    [
        pytest.param(struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 1 << 62) + bytes(64), id="a container of impossible size"),
        pytest.param(struct.pack("<IHHQ", 0xBA55ED50, 1, 0, 0) + bytes(64), id="a header of no size"),
        pytest.param(struct.pack("<IHHQ", 0xBA55ED50, 1, 4, 4) + bytes(64), id="a header that is too short"),
        pytest.param(container(entry(SASS, 80).replace(b"\x40\0\0\0", bytes(4), 1)), id="an entry of no size"),
        pytest.param(container(entry(SASS, 80)[:-1]), id="an entry larger than its container"),
        pytest.param(container(entry(SASS, 80), bytes(10)), id="an entry that is cut off"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_add_up_are_refused(section: bytes) -> None:
    with pytest.raises(FatbinError):
        fatbin.parse(section)


# --- files ---------------------------------------------------------------------------------------------------


def elf(section: bytes | None) -> bytes:
    """The smallest ELF file with a section of device code, or without one."""
    names = b"\0.shstrtab\0.nv_fatbin\0"
    start = 64
    bodies = names + (section or b"")
    heads = [struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)]
    heads.append(struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, start, len(names), 0, 0, 1, 0))
    if section is not None:
        heads.append(struct.pack("<IIQQQQIIQQ", 11, 1, 2, 0, start + len(names), len(section), 0, 0, 8, 0))
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, start + len(bodies), 0, 64, 56, 0, 64, len(heads), 1
    )  # fmt: skip
    return ident + head + bodies + b"".join(heads)


def test_the_device_code_of_a_module_is_read(tmp_path: Path) -> None:
    section = container(entry(SASS, 80), entry(PTX, 90))
    (tmp_path / "module.so").write_bytes(elf(section))
    assert fatbin.read(tmp_path / "module.so") == fatbin.parse(section)


def test_a_module_without_device_code_has_none(tmp_path: Path) -> None:
    (tmp_path / "module.so").write_bytes(elf(None))
    code = fatbin.read(tmp_path / "module.so")
    assert (code.sass, code.ptx, code.section_bytes) == ({}, {}, 0)


def test_a_real_program_without_device_code_has_none() -> None:
    code = fatbin.read(Path(sys.executable))
    assert (code.sass, code.ptx, code.section_bytes) == ({}, {}, 0)


@pytest.mark.parametrize("content", [b"", b"not an ELF file", b"\x7fELF", b"PK\x03\x04" + bytes(100)])
def test_what_is_not_elf_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "module.so").write_bytes(content)
    with pytest.raises(FatbinError):
        fatbin.read(tmp_path / "module.so")


def test_a_module_that_is_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole = elf(container(entry(SASS, 80)))
    accepted = []
    for size in range(0, len(whole), 7):
        (tmp_path / "module.so").write_bytes(whole[:size])
        try:
            fatbin.read(tmp_path / "module.so")
        except FatbinError:
            continue
        accepted.append(size)
    assert accepted == []


def test_a_module_with_damaged_device_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "module.so").write_bytes(elf(container(entry(SASS, 80))[:-1]))
    with pytest.raises(FatbinError):
        fatbin.read(tmp_path / "module.so")
