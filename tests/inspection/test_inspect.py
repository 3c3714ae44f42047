"""Inspections of valid, damaged and wrongly labelled wheels."""

from __future__ import annotations

import base64
import hashlib
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from dca import inspection
from dca.catalogue.plan import Plan
from dca.foundation.errors import DcaError
from tests.support import odd_wheels
from tests.support.fatbins import PTX, SASS, container, cubin, entry, text
from tests.support.hostile_wheels import Part, library

NAME = "vllm-1.0-cp38-abi3-linux_x86_64.whl"
WHEEL = b"Wheel-Version: 1.0\nTag: cp38-abi3-linux_x86_64\n"
METADATA = b"Metadata-Version: 2.4\nName: vllm\nVersion: 1.0\nRequires-Dist: torch==2.8.0\nRequires-Dist: torch-x\n\n"


def row(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}"


def make(folder: Path, changed: dict[str, bytes | None], record: list[str] | None = None, name: str = NAME) -> Path:
    """A small wheel; None leaves a file out, and RECORD is right unless given."""
    files: dict[str, bytes | None] = {
        "vllm/__init__.py": b"",
        "vllm-1.0.dist-info/METADATA": METADATA,
        "vllm-1.0.dist-info/WHEEL": WHEEL,
        **changed,
    }
    present = {key: value for key, value in files.items() if value is not None}
    rows = record if record is not None else [row(key, value) for key, value in present.items()]
    path = folder / name
    with zipfile.ZipFile(path, "w") as wheel:
        for key, value in present.items():
            wheel.writestr(key, value)
        lines = "\n".join([*rows, "vllm-1.0.dist-info/RECORD,,", ""])
        wheel.writestr("vllm-1.0.dist-info/RECORD", lines.encode(errors="surrogateescape"))
    return path


def test_a_right_wheel_has_no_problems(tmp_path: Path) -> None:
    inspected = inspection.inspect(make(tmp_path, {}))
    assert inspected.problems == ()
    assert (inspected.version, inspected.torch, inspected.dca_backend) == ("1.0", "torch==2.8.0", False)


def test_a_file_that_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"no zip")
    (tmp_path / "name.whl").write_bytes(make(tmp_path, {}, name="vllm-2.0-cp38-abi3-linux_x86_64.whl").read_bytes())
    for name in (NAME, "name.whl"):
        with pytest.raises(DcaError) as refused:
            inspection.inspect(tmp_path / name)
        assert refused.value.code == "DCA-701"
    with pytest.raises(DcaError) as missing:
        inspection.inspect(tmp_path / "nothing.whl")
    assert missing.value.code == "DCA-204"


@pytest.mark.parametrize(
    ("changed", "record", "problem"),
    [
        ({"vllm/extra.py": b"x"}, [row("vllm/__init__.py", b"")], "RECORD does not list vllm/extra.py."),
        ({}, [row("vllm/gone.py", b"")], "RECORD lists vllm/gone.py, which is missing."),
        ({"vllm/a.py": b"x"}, [row("vllm/a.py", b"y")], "RECORD has another hash or size for vllm/a.py."),
        ({"vllm-1.0.dist-info/METADATA": METADATA.replace(b"1.0", b"2.0")}, None, "METADATA says version 2.0"),
        ({"vllm-1.0.dist-info/WHEEL": WHEEL.replace(b"abi3", b"none")}, None, "WHEEL says cp38-none-linux_x86_64"),
        ({"vllm/_C.abi3.so": b"\x7fELF cut off"}, None, "vllm/_C.abi3.so: not a complete ELF file"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, changed: dict[str, bytes | None], record: list[str] | None, problem: str
) -> None:
    inspected = inspection.inspect(make(tmp_path, changed, record))
    assert any(line.startswith(problem) for line in inspected.problems), inspected.problems


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    content = b"x = 1\n" * 1000
    path = make(tmp_path, {"vllm/a.py": content})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"x = 1") + 100] ^= 1
    path.write_bytes(raw)
    assert any("vllm/a.py is damaged" in problem for problem in inspection.inspect(path).problems)


RIGHT = row("vllm/__init__.py", b"")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (f"{RIGHT}x", "the size `0x`, which is not a number: pip installs such a wheel, uv refuses it."),
        (f"{RIGHT[:-1]}-1", "the size `-1`, which is not a number"),
        (f"{RIGHT[:-1]} 0", "the size ` 0`, which is not a number"),
        (f"{RIGHT[:-1]}0_0", "the size `0_0`, which is not a number"),
        (f"{RIGHT[:-1]}{'9' * 20}", "which is not a number"),
        (f"{RIGHT[:-1]}{'9' * 6000}", "which is not a number"),
        (f"{RIGHT},more", "(4 columns, not 3: pip installs such a wheel, uv refuses it)."),
        (RIGHT.rpartition(",")[0], "(2 columns, not 3: "),
        (f"{RIGHT[:-1]}7", "RECORD has another hash or size for vllm/__init__.py."),
        ("vllm/__init__.py,,0", "RECORD has no hash of vllm/__init__.py."),
        ("vllm/__init__.py,md5=abc,0", "a hash of the kind `md5`; sha256 or better is required."),
        ("vllm/__init__.py,shake_128=abc,0", "a hash of the kind `shake_128`"),
        ("vllm/__init__.py,nonsense=abc,0", "a hash of the kind `nonsense`"),
        (f"{RIGHT}\nvllm/\udcff.py,,", "RECORD is not UTF-8: neither pip nor uv installs such a wheel."),
        (f"{RIGHT}\n", "RECORD has an empty line: uv installs such a wheel, pip refuses it."),
    ],
)
def test_a_wrong_line_of_record_is_a_problem_that_says_who_refuses_it(tmp_path: Path, line: str, problem: str) -> None:
    rest = [row("vllm-1.0.dist-info/METADATA", METADATA), row("vllm-1.0.dist-info/WHEEL", WHEEL)]
    problems = inspection.inspect(make(tmp_path, {}, [line, *rest])).problems
    assert problem in problems[0]


@pytest.mark.parametrize("size", ["", "0", "+0", "00"])
def test_a_size_that_both_installers_take_is_no_problem(tmp_path: Path, size: str) -> None:
    rest = [row("vllm-1.0.dist-info/METADATA", METADATA), row("vllm-1.0.dist-info/WHEEL", WHEEL)]
    assert inspection.inspect(make(tmp_path, {}, [f"{RIGHT[:-1]}{size}", *rest])).problems == ()


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512", "blake2b"])
def test_a_file_is_compared_by_the_hash_that_record_names(tmp_path: Path, algorithm: str) -> None:
    def problems(content: bytes) -> tuple[str, ...]:
        digest = base64.urlsafe_b64encode(hashlib.new(algorithm, content).digest()).rstrip(b"=").decode()
        rest = [row("vllm-1.0.dist-info/METADATA", METADATA), row("vllm-1.0.dist-info/WHEEL", WHEEL)]
        return inspection.inspect(make(tmp_path, {}, [f"vllm/__init__.py,{algorithm}={digest},", *rest])).problems

    assert problems(b"") == ()
    assert problems(b"x") == ("RECORD has another hash or size for vllm/__init__.py.",)


@pytest.mark.parametrize("name", ["RECORD.jws", "RECORD.p7s"])
def test_a_signature_of_record_is_not_listed(tmp_path: Path, name: str) -> None:
    listed = {"vllm/__init__.py": b"", "vllm-1.0.dist-info/METADATA": METADATA, "vllm-1.0.dist-info/WHEEL": WHEEL}
    rows = [row(path, content) for path, content in listed.items()]
    assert inspection.inspect(make(tmp_path, {f"vllm-1.0.dist-info/{name}": b"{}"}, rows)).problems == ()
    elsewhere = inspection.inspect(make(tmp_path, {f"vllm/{name}": b"{}"}, rows)).problems
    assert elsewhere == (f"RECORD does not list vllm/{name}.",)


def test_the_metadata_of_a_package_that_the_wheel_carries_is_not_its_own(tmp_path: Path) -> None:
    vendored = {"a/_vendor/b-2.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: b\nVersion: 2.0\n"}
    assert inspection.inspect(make(tmp_path, dict(vendored))).problems == ()


@pytest.mark.parametrize(
    ("folder", "right"), [("DEMO-1.0", True), ("demo-1.0.0", True), ("demo-1.1", False), ("other-1.0", False)]
)
def test_the_metadata_folder_is_compared_as_a_name_and_a_version(tmp_path: Path, folder: str, right: bool) -> None:
    info = f"{folder}.dist-info"
    named = [replace(one, name=str(one.name).replace(odd_wheels.INFO, info)) for one in odd_wheels.entries()]
    problems = inspection.inspect(odd_wheels.write(tmp_path, odd_wheels.archive(named))).problems
    assert any("the metadata folder is" in problem for problem in problems) is not right


def elf(sections: dict[str, Part], machine: int = 62) -> bytes:
    return b"".join(library(sections, machine=machine))


def requiring(*symbols: str, libraries: tuple[str, ...] = ()) -> dict[str, Part]:
    """Sections of a library that requires symbols and libraries; its strings come first."""
    strings, places = b"\0", []
    for name in (*symbols, *libraries):
        places.append(len(strings))
        strings += name.encode() + b"\0"
    table = b"".join(struct.pack("<IBBHQQ", place, 0x10, 0, 0, 0, 0) for place in places[: len(symbols)])
    needed = b"".join(struct.pack("<QQ", 1, place) for place in places[len(symbols) :]) + bytes(16)
    return {
        ".dynstr": Part(strings, kind=3),
        ".dynsym": Part(table, link=2, kind=11),
        ".dynamic": Part(needed, link=2, kind=6),
    }


CPP = "_ZN3c106detail14torchCheckFailEPKcS2_jS2_"


@pytest.mark.parametrize(
    ("symbols", "required", "wrong"),
    [
        (["aoti_torch_new_tensor_handle", "torch_call_dispatcher"], b"torch>=2.10", False),
        (["aoti_torch_new_tensor_handle", CPP], b"torch>=2.10", True),
        ([CPP], b"torch==2.8.0", False),
        (["cudaLaunchKernel"], b"torch", False),
    ],
)
def test_only_modules_that_use_torchs_cpp_need_one_version_of_it(
    tmp_path: Path, symbols: list[str], required: bytes, wrong: bool
) -> None:
    metadata = METADATA.replace(b"torch==2.8.0", required)
    wheel = make(tmp_path, {"vllm/_C.so": elf(requiring(*symbols)), "vllm-1.0.dist-info/METADATA": metadata})
    inspected = inspection.inspect(wheel)
    assert bool(inspected.problems) is wrong
    assert inspected.modules[0].stable_abi is (symbols[0].startswith("aoti") and CPP not in symbols)


MACH, PE = b"\xcf\xfa\xed\xfe" + bytes(60), b"MZ" + bytes(58) + struct.pack("<I", 128) + bytes(64)


@pytest.mark.parametrize(
    ("path", "content", "what", "cuda"),
    [
        ("_C.cpython-312-darwin.so", MACH, "macOS libraries (Mach-O)", False),
        ("libx.dylib", b"\xca\xfe\xba\xbe\0\0\0\2" + bytes(56), "macOS libraries (Mach-O)", False),
        ("_C.cp312-win_amd64.pyd", PE, "Windows libraries and programs (PE)", True),
        ("bin/tool", PE, "Windows libraries and programs (PE)", True),
        ("_C.so", b"\0asm\1\0\0\0", "WebAssembly modules", False),
        ("_C.so", b"\x7fELF\1\1\1" + bytes(9) + struct.pack("<HH", 3, 40) + bytes(40), "32-bit ELF files", False),
        ("_C.so", b"\x7fELF\2\2\1" + bytes(9) + struct.pack(">HH", 3, 22) + bytes(40), "big-endian ELF files", False),
        (
            "tool",
            b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 2, 62) + bytes(99),
            "ELF files without section headers",
            True,
        ),
        ("k.hsaco", b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 3, 224) + bytes(40), "AMD GPU code files", False),
        ("k.bc", b"BC\xc0\xde" + bytes(9), "LLVM bitcode files", False),
        ("libx.a", b"!<arch>\n" + bytes(9), "static libraries", False),
        ("inner.whl", b"PK\3\4" + bytes(99), "zip archives", False),
    ],
)
def test_what_is_not_looked_into_is_counted_and_named(
    tmp_path: Path, path: str, content: bytes, what: str, cuda: bool
) -> None:
    inspected = inspection.inspect(make(tmp_path, {f"vllm/{path}": content, f"vllm/2/{path}": content}))
    assert (inspected.problems, inspected.modules) == ((), ())
    (left,) = inspected.unread
    assert (left.what, left.files, left.bytes, left.cuda) == (what, 2, 2 * len(content), cuda)
    assert left.some == (f"vllm/2/{path}", f"vllm/{path}")


@pytest.mark.parametrize("content", [b"x = 1\n", b"MZ is no program", b"\xca\xfe\xba\xbe\0\0\0\x37 a Java class"])
def test_a_text_or_a_class_is_no_library(tmp_path: Path, content: bytes) -> None:
    inspected = inspection.inspect(make(tmp_path, {"vllm/a": content}))
    assert (inspected.unread, inspected.modules, inspected.problems) == ((), (), ())


def test_a_library_is_known_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    files: dict[str, bytes | None] = {f"vllm.libs/{name}": elf({}) for name in ("libx.so.1.2", "tool", "x.so")}
    assert [module.path for module in inspection.inspect(make(tmp_path, files)).modules] == sorted(files)


def test_gpu_code_in_files_of_its_own_is_inspected(tmp_path: Path) -> None:
    files: dict[str, bytes | None] = {
        "vllm/a.cubin": cubin(90),
        "vllm/b.fatbin": container(entry(SASS, 80), entry(PTX, 80)),
        "vllm/c.ptx": text("100a"),
    }
    inspected = inspection.inspect(make(tmp_path, files), asked=("9.0",))
    assert [(module.kind, module.exact_sass, module.exact_ptx) for module in inspected.modules] == [
        ("cubin", ("9.0",), ()),
        ("fat binary", ("8.0",), ("8.0",)),
        ("PTX", (), ("10.0a",)),
    ]
    assert [module.reached["9.0"] for module in inspected.modules] == ["native", "JIT from PTX 8.0", "not"]
    assert inspected.problems == ()


@pytest.mark.parametrize("name", ["a.cubin", "b.fatbin", "c.ptx", "d.so"])
def test_damaged_compiled_code_is_a_problem(tmp_path: Path, name: str) -> None:
    inspected = inspection.inspect(make(tmp_path, {f"vllm/{name}": b"version https://git-lfs.github.com/spec/v1"}))
    assert [problem.partition(":")[0] for problem in inspected.problems] == [f"vllm/{name}"]


def test_the_built_wheel_is_what_was_planned(wheel: Path, plan: Plan) -> None:
    inspected = inspection.inspect(wheel)
    assert inspection.compare(inspected, plan) == []
    assert inspected.dca_backend
    assert inspected.sparse_functions


def test_a_plan_that_the_wheel_does_not_keep_is_found(wheel: Path, plan: Plan) -> None:
    inspected = inspection.inspect(wheel)
    module = plan.modules[0].model_copy(update={"sass": ("8.6",)})
    for changed, difference in (
        ({"version": "9.9"}, "the version is"),
        ({"torch": "2.7.0"}, "torch==2.7.0 was planned"),
        ({"modules": (module, *plan.modules[1:])}, "lacks cubins for 8.6"),
        ({"modules": plan.modules[1:]}, "was not planned"),
        ({"modules": (*plan.modules, module.model_copy(update={"path": "vllm/_x.so"}))}, "vllm/_x.so is missing"),
    ):
        different = inspection.compare(inspected, plan.model_copy(update=changed))
        assert any(difference in line for line in different), (difference, different)


def test_a_module_that_may_hold_more_archs_than_planned_must_hold_the_planned_ones(wheel: Path, plan: Plan) -> None:
    inspected = inspection.inspect(wheel)

    def differences(**changes: object) -> str:
        compiled = {"origin": "compiled", "sha256": "", "official": "", "ptx": (), **changes}
        modules = (plan.modules[0].model_copy(update=compiled), *plan.modules[1:])
        return " ".join(inspection.compare(inspected, plan.model_copy(update={"modules": modules})))

    assert "which was not planned" in differences(sass=())
    assert "which was not planned" not in differences(sass=(), at_least=True)
    assert "lacks cubins for 8.6" in differences(sass=("8.6",), at_least=True)


@pytest.mark.long
def test_ops_are_listed_by_loading_the_modules(wheel: Path, build_python: Path) -> None:
    inspected = inspection.inspect(wheel, inspection.schemas.loaded(build_python))
    assert inspected.problems == ()
    assert inspected.index_ops
    by_path = {module.path: module.ops or () for module in inspected.modules}
    assert "_C::apply_repetition_penalties_" in by_path["vllm/_C.abi3.so"]
    assert "_vllm_fa2_C::fwd_sparse" in by_path["vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"]
