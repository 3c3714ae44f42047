"""Device code in made-up and real modules."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
import zstandard

from dca.binaries import fatbin
from dca.binaries.fatbin import FatbinError
from dca.catalogue import toolkits
from dca.catalogue.plan import Plan
from dca.toolchain import provide
from tests.support.fatbins import (
    FAMILY,
    LZ4,
    NEW_HEADER,
    ONLY,
    PTX,
    SASS,
    ZSTD,
    Header,
    Stored,
    container,
    cubin,
    entry,
    stored_entry,
    text,
)

COUNTED = ("sass", "ptx", "exact", "exact_ptx", "code_bytes", "families", "tools", "problems")


def frame(content: bytes, size: int | None = None) -> bytes:
    """A zstd frame that says another size than it has, or none."""
    if size is None:
        return zstandard.ZstdCompressor(write_content_size=False).compress(content)
    block = struct.pack("<I", len(content) << 3 | 1)[:3] + content
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size) + block


ZEROS = frame(bytes(64 << 20))


def more_compressed_than_stored() -> bytes:
    head = bytearray(entry(SASS, 80, flags=LZ4))
    struct.pack_into("<I", head, 16, len(head))
    return bytes(head)


@pytest.fixture(autouse=True)
def _no_endless_loop() -> Iterator[None]:
    """End a test that reads in circles, by its CPU time: other programs may slow it down."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError("still reading after five seconds")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, 5)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def test_cubins_and_ptx_are_counted_by_architecture() -> None:
    large, small = cubin(80, {"kernel": 5000}), cubin(80)
    section = container(entry(SASS, 80, large), entry(SASS, 90), entry(PTX, 90), entry(SASS, 80, small))
    code = fatbin.parse(section)
    assert code.sass == {"8.0": 2, "9.0": 1}
    assert code.ptx == {"9.0": 1}
    assert code.sass_bytes == {"8.0": len(large) + len(small), "9.0": len(small)}
    assert code.ptx_bytes == {"9.0": len(text(90))}
    assert code.code_bytes == {"8.0": 5128, "9.0": 128}
    assert code.problems == ()


def test_several_containers_with_padding_between_them_are_read() -> None:
    section = container(entry(SASS, 80)) + bytes(24) + container(entry(SASS, 80), entry(PTX, 80)) + bytes(3)
    code = fatbin.parse(section)
    assert (code.sass, code.ptx) == ({"8.0": 2}, {"8.0": 1})


@pytest.mark.parametrize("how", [LZ4, ZSTD])
def test_whether_an_entry_is_compressed_makes_no_difference_but_in_its_size(how: int) -> None:
    content = cubin(86, {"first": 4000, "second": 96})
    plain, packed = (
        fatbin.parse(container(entry(SASS, 86, content, flags=flags), entry(PTX, 86, flags=flags)))
        for flags in (0x11, 0x11 | how)
    )
    assert packed.problems == ()
    assert (packed.sass, packed.ptx, packed.code_bytes) == (plain.sass, plain.ptx, plain.code_bytes)
    assert [(family.name, family.kernels) for family in packed.families] == [
        (family.name, family.kernels) for family in plain.families
    ]
    assert packed.sass_bytes["8.6"] < plain.sass_bytes["8.6"] == len(content)


def test_a_zstd_frame_that_does_not_say_its_size_is_read() -> None:
    content = cubin(86, {"first": 4_000_000, "second": 96}, extra=((".note", 7, os.urandom(5000)),))
    code = fatbin.parse(container(stored_entry(SASS, 86, Stored(frame(content), ZSTD, len(content)))))
    assert code.problems == ()
    assert code.code_bytes == {"8.6": 4_000_096}


def test_code_that_no_later_architecture_runs_is_told_apart() -> None:
    code = fatbin.parse(
        container(
            entry(SASS, 90),
            entry(SASS, 90, flags=ONLY),
            entry(SASS, 100, cubin(100, header=Header(layout=8)), flags=FAMILY),
            entry(PTX, 90, flags=ONLY | LZ4),
            entry(SASS, 80),
        )
    )
    assert code.sass == {"8.0": 1, "9.0": 2, "10.0": 1}
    assert code.exact == ("8.0", "9.0", "9.0a", "10.0f")
    assert code.exact_ptx == ("9.0a",)
    assert code.problems == ()


def test_longer_headers_are_skipped_by_their_own_size() -> None:
    section = container(entry(SASS, 80, header=96), entry(PTX, 120, header=80), header=32)
    code = fatbin.parse(section)
    assert (code.sass, code.ptx) == ({"8.0": 1}, {"12.0": 1})


def test_entries_that_are_not_looked_into_are_counted_and_named() -> None:
    packed = stored_entry(SASS, 90, Stored(b"packed by a compressor of tomorrow", 0x11, 999))
    code = fatbin.parse(container(entry(8, 80), entry(77, 80), entry(77, 90), packed, entry(SASS, 89)))
    assert (code.sass, code.ptx, code.problems) == ({"8.9": 1, "9.0": 1}, {}, ())
    assert code.unread == {
        "LTO-IR, which is compiled when it is linked": 1,
        "cubin for 9.0, compressed in an unknown way": 1,
        "of the unknown kind 77": 2,
    }


def test_code_larger_than_what_is_read_is_counted_and_named() -> None:
    size = (64 << 20) + 1
    content = zstandard.ZstdCompressor(level=1).compress(bytes(size))
    code = fatbin.parse(container(stored_entry(SASS, 80, Stored(content, ZSTD, size))))
    assert (code.sass, code.problems, code.unread) == ({"8.0": 1}, (), {"cubin for 8.0, larger than 64 MiB": 1})


def test_relocatable_cubins_are_counted_and_no_driver_loads_them() -> None:
    whole = bytearray(cubin(90))
    struct.pack_into("<H", whole, 16, 1)
    code = fatbin.parse(container(entry(SASS, 80), entry(SASS, 90, bytes(whole))))
    assert (code.sass, code.exact, code.relocatable) == ({"8.0": 1}, ("8.0",), {"9.0": 1})


def test_the_newest_version_of_ptx_is_told_by_arch() -> None:
    texts = [text(80).replace(b"8.4", version) for version in (b"8.9", b"8.10", b"7.0")]
    code = fatbin.parse(container(*(entry(PTX, 80, one) for one in texts), entry(PTX, 90)))
    assert code.ptx_versions == {"8.0": "8.10", "9.0": "8.4"}


def test_a_payload_that_holds_the_magic_number_is_not_read_as_a_container() -> None:
    content = cubin(80, extra=((".nv.constant0", 1, container(entry(SASS, 90))),))
    code = fatbin.parse(container(entry(SASS, 80, content)))
    assert (code.sass, code.problems) == ({"8.0": 1}, ())


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
    for size in range(1, len(whole)):
        with pytest.raises(FatbinError):
            pytest.fail(f"{size} bytes are accepted: {fatbin.parse(whole[:size])}")


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
        pytest.param(container(more_compressed_than_stored()), id="more compressed than stored"),
        pytest.param(container(entry(SASS, 80)[:-1]), id="an entry larger than its container"),
        pytest.param(container(entry(SASS, 80), bytes(10)), id="an entry that is cut off"),
    ],
)
def test_sizes_that_do_not_add_up_are_refused(section: bytes) -> None:
    with pytest.raises(FatbinError):
        fatbin.parse(section)


# --- kernels ---


def test_kernels_share_the_stored_bytes_of_their_cubin_by_their_code() -> None:
    first = cubin(80, {"_ZN2ns3runIfEEvPT_": 300, "_ZN2ns3runIiEEvPT_": 100, "plain": 200})
    second = cubin(90, {"_ZN2ns3runIfEEvPT_": 999}, functions={"helper": 5000})
    code = fatbin.parse(container(entry(SASS, 80, first), entry(SASS, 90, second)))
    run, plain = code.families
    assert (run.name, run.kernels, run.archs) == ("ns::run", 2, ("8.0", "9.0"))
    assert (plain.name, plain.kernels, plain.archs) == ("plain", 1, ("8.0",))
    assert abs(run.bytes - (len(first) * 400 / 600 + len(second))) <= 1
    assert run.bytes + plain.bytes == len(first) + len(second)
    assert code.code_bytes == {"8.0": 600, "9.0": 5999}


def test_a_cubin_without_kernels_is_in_no_family() -> None:
    code = fatbin.parse(container(entry(SASS, 52, cubin(52, {}, functions={"helper": 64}))))
    assert (code.families, code.code_bytes, code.problems) == ((), {"5.2": 64}, ())


def deep(levels: int) -> str:
    """A template argument that names a member of a class, which has such an argument."""
    return "1a1b" if levels == 0 else f"1aIXsr{deep(levels - 1)}EE1b"


DOUBLED = "_Z1fI1a" + "".join(f"ZS{digit}_ES{digit}_" for digit in "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") + "Evv"


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("plain", "plain"),
        ("_Z19permute_cols_kernelPK4int4PKiPS_iii", "permute_cols_kernel"),
        ("_ZN4vllm15rms_norm_kernelIfEEvPT_PKS1_S4_fii", "vllm::rms_norm_kernel"),
        (
            "_ZN4vllm16poly_norm_kernelIfLi0EEENSt9enable_ifIXooeqT0_Li0Entsr4vllm12_typeConvertIT_EE6existsEvE4typeEPS2_"
            "PKS2_S7_S7_fi",
            "vllm::poly_norm_kernel",
        ),
        (
            "_ZN6marlin6MarlinI6__halfLl562949953487106ELi128ELi1ELi4ELi8ELb0ELi4ELi1ELb0EEEvPK4int4S4_PS2_S5_S4_PKtS4_"
            "PKiiiiiiPibbi",
            "marlin::Marlin",
        ),
        (
            "_ZN5flash16flash_fwd_kernelI23Flash_fwd_kernel_traitsILi96ELi64ELi64ELi4ELb0ELb0EN7cutlass6half_tE19Flash_"
            "kernel_traitsILi96ELi64ELi64ELi4ES3_EELb0ELb1ELb0ELb0ELb0ELb1ELb0ELb0EEEvNS_16Flash_fwd_paramsE",
            "flash::flash_fwd_kernel",
        ),
        (
            "_ZN58_GLOBAL__N__f76192b6_25_marlin_qqq_gemm_kernel_cu_42eb67776MarlinILi128ELi1ELi4ELi8ELi4ELi8EEEvPK4int4"
            "S3_PS1_S4_PKfS3_S3_iiiPi",
            "(anonymous namespace)::Marlin",
        ),
        (
            "_Z13mul_mat_vec_qIfLi32ELi4E10block_q4_0Li2EXadL_ZN45_INTERNAL_2400c3dc_14_gguf_kernel_cu_cd24131917vec_dot_"
            "q4_0_q8_1EPKvPK10block_q8_1RKiEEEvS3_S3_PT_ii",
            "mul_mat_vec_q",
        ),
        # Launchers: what is run says more.
        (
            "_ZN7cutlass13device_kernelIN5flash19FlashAttnFwdCombineIN4cute5tupleIJNS3_1CILi16EEENS5_ILi64EEEEEELi4ELi256"
            "ELi1ELb0ELb0EffNS_4arch4Sm80EEEEEvNT_6ParamsE",
            "cutlass::device_kernel<flash::FlashAttnFwdCombine>",
        ),
        (
            "_ZN7cutlass13device_kernelIN5flash19enable_sm80_to_sm89INS1_16FlashAttnFwdSm80INS1_25CollectiveMainloopFwdSm"
            "80ILi8ELi1ELb1EN4cute5tupleIJNS5_1CILi128EEES8_S8_EEELi128ENS_6half_tEfNS_4arch4Sm80ELb0ELb0ELb0ELb1ELb0ELb0"
            "ELb1ELb0EEENS1_21CollectiveEpilogueFwdIS9_NS6_IJNS7_ILi1EEESF_SF_EEESA_SC_Li256ELb1ELb1ELb0ELb0EEENS1_19Sing"
            "leTileSchedulerILb1ELb0ELb1ELi128EEEEEEEEEvNT_6ParamsE",
            "cutlass::device_kernel<flash::FlashAttnFwdSm80>",
        ),
        (
            "_ZN7cutlass13device_kernelIN56_GLOBAL__N__e1cc7a35_23_sparse_scaled_mm_c3x_cu_48d786e622cutlass_sparse_3x_gem"
            "mINS_6half_tES3_N4vllm3c3x14ScaledEpilogueEN4cute5tupleIJNS7_1CILi128EEESA_SA_EEENS8_IJNS9_ILi1EEESC_SC_EEEN"
            "S_4gemm24KernelTmaWarpSpecializedENS_8epilogue18TmaWarpSpecializedEE10GemmKernelEEEvNT_6ParamsE",
            "cutlass::device_kernel<(anonymous namespace)::cutlass_sparse_3x_gemm::GemmKernel>",
        ),
        (
            "_ZN3cub17CUB_200700_520_NS23RadixSortScanBinsKernelINS0_21DeviceRadixSortPolicyIiiyE9Policy900EyEEvPT0_i",
            "cub::RadixSortScanBinsKernel<cub::DeviceRadixSortPolicy::Policy900>",
        ),
        ("_ZN3cub17CUB_200700_520_NS11EmptyKernelIvEEvv", "cub::EmptyKernel"),
        ("__nv_static_29__e6897202_10_kernels_cu_plain__ZN2ns8internalEPf", "ns::internal"),
        ("_Znonsense", "_Znonsense"),
        # Symbols that somebody made to be read for ever, or to take all memory.
        pytest.param(f"_Z1fIXsr{deep(30)}EEvv", "f", id="a scope in a scope"),
        pytest.param(DOUBLED, DOUBLED, id="names of names"),
        pytest.param(f"__nv_static_{'9' * 5000}_", f"__nv_static_{'9' * 5000}_", id="a long number"),
    ],
)
def test_a_kernel_is_known_by_its_family(symbol: str, name: str) -> None:
    assert fatbin.family_name(symbol) == name


def test_the_toolkit_is_told_by_what_the_cubins_say() -> None:
    note = b"ptxas\0Cuda compilation tools, release 12.8, V12.8.93\0Build cuda_12.8\0"
    newer = cubin(100, header=NEW_HEADER, extra=((".note.nv.tkinfo", 7, note),))
    silent = cubin(100, header=NEW_HEADER)
    absurd = note.replace(b"V12.", b"V" + b"9" * 5000 + b".")
    odd = cubin(100, header=NEW_HEADER, extra=((".note.nv.tkinfo", 7, absurd),))
    assert fatbin.parse(container(entry(SASS, 80))).tools == ("12.4",)
    assert fatbin.parse(container(entry(SASS, 100, newer), entry(SASS, 80))).tools == ("12.4", "12.8.93")
    assert fatbin.parse(
        container(entry(SASS, 100, newer), entry(SASS, 80, cubin(80, header=Header(version=128))))
    ).tools == ("12.8.93",)
    assert fatbin.parse(container(entry(SASS, 100, silent))).tools == ()
    assert fatbin.parse(container(entry(SASS, 100, odd))).tools == ()


# --- damage ---


@pytest.mark.parametrize(
    ("damaged", "problem"),
    [
        pytest.param(entry(SASS, 80, cubin(90)), "its header says 9.0", id="another arch"),
        pytest.param(
            entry(SASS, 80, cubin(120, header=Header(layout=8))), "its header says 12.0", id="another arch, new layout"
        ),
        pytest.param(
            entry(SASS, 80, cubin(80, header=Header(machine=62))), "for another machine", id="another machine"
        ),
        pytest.param(entry(SASS, 80, os.urandom(999)), "not a complete ELF file", id="no ELF file"),
        pytest.param(entry(SASS, 80, b""), "not a complete ELF file", id="nothing"),
        pytest.param(entry(SASS, 80, flags=LZ4, unpacked=99), "cannot be decompressed", id="LZ4, said too short"),
        pytest.param(entry(SASS, 80, flags=LZ4, unpacked=9999), "not 9999", id="LZ4, said too long"),
        pytest.param(entry(SASS, 80, flags=ZSTD, unpacked=9999), "not 9999", id="zstd, said too long"),
        pytest.param(entry(SASS, 80, flags=ZSTD, unpacked=1 << 62), "its header claims", id="zstd, absurd"),
        pytest.param(entry(SASS, 80, flags=LZ4, unpacked=0), "its header claims 0", id="LZ4, of no size"),
        pytest.param(entry(SASS, 80, flags=LZ4, unpacked=1 << 30), "its header claims 10737", id="LZ4, too much"),
        pytest.param(
            stored_entry(SASS, 80, Stored(frame(b"12345", 1 << 62), ZSTD, 9999)),
            "it has 4611686018427387904 bytes uncompressed, not 9999",
            id="zstd, its frame is absurd",
        ),
        pytest.param(
            stored_entry(SASS, 80, Stored(ZEROS, ZSTD, 9999)),
            "it has more than 9999",
            id="zstd, its frame says nothing",
        ),
        pytest.param(
            stored_entry(SASS, 80, Stored(frame(bytes(9999))[:-1], ZSTD, 9999)),
            "it ends too early",
            id="zstd, its frame says nothing and is cut",
        ),
        pytest.param(entry(PTX, 80, text(90)), "its text is for 9.0", id="PTX for another arch"),
        pytest.param(entry(PTX, 80, text("9" * 5000)), "its text is for 99999999.9", id="PTX for no arch"),
        pytest.param(entry(PTX, 80, b"\0\0"), "it has no .target", id="no PTX"),
    ],
)
def test_a_damaged_entry_is_named_and_the_others_are_read(damaged: bytes, problem: str) -> None:
    code = fatbin.parse(container(entry(SASS, 90), damaged, entry(SASS, 89)))
    (line,) = code.problems
    assert problem in line
    assert re.match(rf"the (cubin|PTX) for 8\.0 at offset {16 + len(entry(SASS, 90))} is damaged: ", line)
    assert code.families[0].archs == ("8.9", "9.0")
    assert sum(code.sass.values()) + sum(code.ptx.values()) == 3


def test_a_cubin_that_is_cut_short_anywhere_is_damaged() -> None:
    whole = cubin(80)
    for size in range(len(whole)):
        assert len(fatbin.parse(container(entry(SASS, 80, whole[:size]))).problems) == 1, size


@pytest.mark.parametrize("how", [LZ4, ZSTD])
def test_a_compressed_cubin_that_is_cut_short_anywhere_is_damaged(how: int) -> None:
    whole = entry(SASS, 80, flags=how)
    (packed,) = struct.unpack_from("<I", whole, 16)
    for size in range(packed):
        cut = whole[:8] + struct.pack("<QI", size, size) + whole[20 : 64 + size]
        assert len(fatbin.parse(container(cut)).problems) == 1, size


@pytest.mark.parametrize("flip", range(0, 40, 3))
def test_a_compressed_cubin_with_other_bytes_never_trips(flip: int) -> None:
    for how in (LZ4, ZSTD):
        section = bytearray(container(entry(SASS, 80, flags=how)))
        section[80 + flip] ^= 0xA5
        fatbin.parse(bytes(section))


def test_memory_that_takes_no_room_in_a_cubin_is_no_damage() -> None:
    content = bytearray(cubin(80, extra=((".nv_debug.shared", 0x7000000A, b""), (".bss", 8, b""))))
    (table,) = struct.unpack_from("<Q", content, 40)
    for section in (5, 6):
        struct.pack_into("<Q", content, table + 64 * section + 32, 1 << 20)
    assert fatbin.parse(container(entry(SASS, 80, bytes(content)))).problems == ()


def test_the_arch_of_a_layout_that_is_not_known_is_not_held_against_a_cubin() -> None:
    assert fatbin.parse(container(entry(SASS, 80, cubin(80, header=Header(layout=9))))).problems == ()


# --- files ---------------------------------------------------------------------------------------------------


def module(**sections: bytes) -> bytes:
    """The smallest ELF file with these sections; names that begin with no "_" get a dot."""
    contents = {"": b"", ".shstrtab": b""}
    contents |= {name if name.startswith("_") else f".{name}": body for name, body in sections.items()}
    contents[".shstrtab"] = b"".join(name.encode() + b"\0" for name in contents)
    body, heads, start = b"", b"", 0
    for name, content in contents.items():
        kind = 3 if name == ".shstrtab" else 1 if name else 0
        heads += struct.pack("<IIQQQQIIQQ", start, kind, 2, 0, 64 + len(body), len(content), 0, 0, 8, 0)
        start += len(name) + 1
        body += content
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, 64 + len(body), 0, 64, 56, 0, 64, len(contents), 1)
    return ident + head + body + heads


def test_the_device_code_of_a_module_is_read(tmp_path: Path) -> None:
    section = container(entry(SASS, 80), entry(PTX, 90))
    (tmp_path / "module.so").write_bytes(module(nv_fatbin=section))
    assert fatbin.read(tmp_path / "module.so") == fatbin.parse(section)


def test_a_file_without_device_code_has_none(tmp_path: Path) -> None:
    (tmp_path / "module.so").write_bytes(module())
    for file in (tmp_path / "module.so", Path(sys.executable)):
        assert fatbin.read(file) == fatbin.DeviceCode()


@pytest.mark.parametrize("content", [b"", b"not an ELF file", b"\x7fELF", b"PK\x03\x04" + bytes(100)])
def test_what_is_not_elf_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "module.so").write_bytes(content)
    with pytest.raises(FatbinError):
        fatbin.read(tmp_path / "module.so")


def test_a_module_that_is_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole = module(nv_fatbin=container(entry(SASS, 80)))
    for size in range(0, len(whole), 7):
        (tmp_path / "module.so").write_bytes(whole[:size])
        with pytest.raises(FatbinError):
            pytest.fail(f"{size} bytes are accepted: {fatbin.read(tmp_path / 'module.so')}")


def test_a_module_with_damaged_device_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "module.so").write_bytes(module(nv_fatbin=container(entry(SASS, 80))[:-1]))
    with pytest.raises(FatbinError):
        fatbin.read(tmp_path / "module.so")


def test_relocatable_device_code_stands_in_a_section_of_its_own(tmp_path: Path) -> None:
    first, second = container(entry(SASS, 80)), container(entry(SASS, 90), entry(PTX, 90))
    (tmp_path / "module.so").write_bytes(module(nv_fatbin=first, __nv_relfatbin=second))
    code = fatbin.read(tmp_path / "module.so")
    assert (code.sass, code.ptx, code.relocatable) == ({"8.0": 1}, {}, {"9.0": 2})


# --- what nvcc writes ---

KERNELS = """
namespace { template <int N> __global__ void hidden(float* p) { p[threadIdx.x] *= N; } }
namespace ns {
template <class T> struct Add { __device__ void operator()(T* p) const { *p += 1; } };
template <class F, class T> __global__ void run(F f, T* p) { f(p); }
static __global__ void internal(float* p) { *p = 1; }
}
namespace cutlass { template <class F> __global__ void device_kernel(F f, float* p) { f(p); } }
extern "C" __global__ void plain(float* p) { *p = 3; }
void use(float* p, double* q) {
    hidden<3><<<1, 32>>>(p);
    hidden<4><<<1, 32>>>(p);
    ns::run<<<1, 1>>>(ns::Add<float>{}, p);
    ns::run<<<1, 1>>>(ns::Add<double>{}, q);
    ns::internal<<<1, 1>>>(p);
    cutlass::device_kernel<<<1, 1>>>(ns::Add<float>{}, p);
    plain<<<1, 1>>>(p);
}
"""
FAMILIES = {
    "(anonymous namespace)::hidden": 2,
    "ns::run": 2,
    "ns::internal": 1,
    "plain": 1,
    "cutlass::device_kernel<ns::Add>": 1,
}
ARCHS = (
    "-gencode",
    "arch=compute_80,code=[sm_80,compute_80]",
    "-gencode",
    "arch=compute_90a,code=sm_90a",
    "-gencode",
    "arch=compute_90,code=sm_90",
)
Compiler = Callable[..., Path]


def compiler(nvcc: Path, folder: Path, host: str) -> Compiler:
    (folder / "kernels.cu").write_text(KERNELS)

    def build(name: str, *flags: str) -> Path:
        out = folder / name
        if not out.exists():
            words = ["-ccbin", host, "-Xcompiler", "-fPIC", "-cudart", "none", *flags, *ARCHS, "-o"]
            env = provide.compiler_environment(nvcc.parent.parent)
            subprocess.run([nvcc, *words, out, folder / "kernels.cu"], check=True, env=env, capture_output=True)
        return out

    return build


@pytest.fixture(scope="module")
def own(planned: Plan, toolkit: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    """Compiles KERNELS with the plan's toolkit."""
    return compiler(toolkit / "bin/nvcc", tmp_path_factory.mktemp("nvcc"), planned.host_compiler)


@pytest.fixture(scope="module")
def newest(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    """Compiles KERNELS with a toolkit of the machine that knows zstd."""
    installed = [
        toolkit for toolkit in toolkits.discover() if not toolkit.missing and int(toolkit.version.split(".")[0]) >= 13
    ]
    if not installed:
        pytest.skip("no CUDA 13 on this machine")
    return compiler(Path(installed[0].path) / "bin/nvcc", tmp_path_factory.mktemp("nvcc"), "g++")


@pytest.fixture(scope="module")
def plain(own: Compiler) -> Path:
    return own("plain.so", "-shared")


@pytest.fixture(scope="module")
def packed(own: Compiler) -> Path:
    return own("packed.so", "-shared", "-Xfatbin", "-compress-all")


@pytest.fixture(scope="module")
def objects(own: Compiler) -> Path:
    return own("relocatable.o", "-c", "-rdc=true")


@pytest.fixture(
    scope="module",
    params=[pytest.param("none", marks=pytest.mark.whole), "speed", pytest.param("size", marks=pytest.mark.whole)],
)
def of_newest(newest: Compiler, request: pytest.FixtureRequest) -> Path:
    return newest(f"{request.param}.so", "-shared", "-Xfatbin", "-compress-all", "--compress-mode", request.param)


def check(code: fatbin.DeviceCode) -> None:
    assert code.problems == ()
    assert (code.sass, code.ptx) == ({"8.0": 1, "9.0": 2}, {"8.0": 1})
    assert (code.exact, code.exact_ptx) == (("8.0", "9.0", "9.0a"), ("8.0",))
    assert {family.name: family.kernels for family in code.families} == FAMILIES
    assert {family.archs for family in code.families} == {("8.0", "9.0")}
    assert sum(family.bytes for family in code.families) == sum(code.sass_bytes.values())
    assert [family.bytes for family in code.families] == sorted(
        (family.bytes for family in code.families), reverse=True
    )


@pytest.mark.long
def test_device_code_of_the_planned_toolkit(plain: Path, packed: Path, plan: Plan) -> None:
    code = fatbin.read(plain)
    check(code)
    check(fatbin.read(packed))
    assert fatbin.read(packed).code_bytes == code.code_bytes
    assert sum(fatbin.read(packed).sass_bytes.values()) < sum(code.sass_bytes.values()) / 2
    assert plan.toolkit is not None
    assert code.tools in {(plan.toolkit.version,), (toolkits.cuda_line(plan.toolkit.version),)}


def test_device_code_of_the_newest_toolkit(of_newest: Path) -> None:
    code = fatbin.read(of_newest)
    check(code)
    (tool,) = code.tools
    assert re.fullmatch(r"\d+\.\d+\.\d+", tool)


def test_relocatable_device_code_of_nvcc(objects: Path) -> None:
    assert b"__nv_relfatbin" in objects.read_bytes()
    code = fatbin.read(objects)
    assert (code.sass, code.ptx, code.relocatable) == ({}, {}, {"8.0": 2, "9.0": 1, "9.0a": 1})


@pytest.mark.network
@pytest.mark.parametrize("name", ["plain", "packed"])
def test_damage_in_what_nvcc_wrote_is_found(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    whole: bytes = request.getfixturevalue(name).read_bytes()
    start = whole.index(fatbin.MAGIC)
    (header,) = struct.unpack_from("<H", whole, start + 6)
    first = start + header
    copy = tmp_path / "module.so"

    def problems(place: int, value: bytes) -> tuple[str, ...]:
        copy.write_bytes(whole[:place] + value + whole[place + len(value) :])
        return fatbin.read(copy).problems

    kind, _, size, _, packed_size = struct.unpack_from("<HHIQI", whole, first)
    assert kind in {PTX, SASS}
    assert problems(first, whole[first : first + 1]) == ()
    assert len(problems(first + 28, b"\x4b")) == 1  # says sm_75
    assert len(problems(first + size, bytes(64))) == 1
    assert len(problems(first + size + (packed_size or 64) // 2, bytes(16))) <= 1
    if packed_size:
        assert len(problems(first + 56, b"\x10\0\0\0")) == 1  # says 16 bytes


def test_every_cubin_of_the_wheel_is_whole_and_its_kernels_are_named(wheel: Path, plan: Plan, tmp_path: Path) -> None:
    for planned_module in plan.modules:
        with zipfile.ZipFile(wheel) as archive:
            code = fatbin.read(Path(archive.extract(planned_module.path, tmp_path)))
        assert code.problems == ()
        assert set(code.sass) == set(planned_module.sass)
        assert set(code.ptx) == set(planned_module.ptx)
        assert {arch.rstrip("af") for arch in code.exact} == set(code.sass)
        assert code.families
        assert not [family.name for family in code.families if family.name.startswith("_Z")]
        # All but what holds no kernel at all, such as the libraries' own empty cubins.
        assert sum(family.bytes for family in code.families) > 0.99 * sum(code.sass_bytes.values())
        # A rewritten module's cubins are compressed.
        assert planned_module.keeps or all(code.code_bytes[arch] < code.sass_bytes[arch] for arch in code.sass)
