"""Inspections of valid, damaged and wrongly labelled wheels."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

import pytest

from dca import inspection
from dca.catalogue.plan import Plan
from dca.foundation.errors import DcaError

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
        wheel.writestr("vllm-1.0.dist-info/RECORD", "\n".join([*rows, "vllm-1.0.dist-info/RECORD,,"]) + "\n")
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


def test_ops_are_listed_by_loading_the_modules(wheel: Path, build_python: Path) -> None:
    inspected = inspection.inspect(wheel, inspection.schemas.loaded(build_python))
    assert inspected.problems == ()
    assert inspected.index_ops
    by_path = {module.path: module.ops or () for module in inspected.modules}
    assert "_C::apply_repetition_penalties_" in by_path["vllm/_C.abi3.so"]
    assert "_vllm_fa2_C::fwd_sparse" in by_path["vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"]
