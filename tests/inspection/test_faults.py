"""Faults planted in copies of the real wheel: `dca inspect` finds and names each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dca.catalogue.plan import Plan
from dca.foundation import documents
from tests.support import RunDca
from tests.support import crafted_wheels as wheels

MODULE, FLASH = "vllm/_C.abi3.so", "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"


class Bench:
    """A place to plant faults: the real wheel's files, and its plan.

    Most faults are planted in a wheel without the copied module, to save time; plan and record match that.
    """

    def __init__(self, wheel: Path, plan: Plan, folder: Path) -> None:
        self.name, self.folder = wheel.name, folder
        self.whole, self.whole_plan = wheels.members(wheel), plan
        self.plan = plan.model_copy(
            update={"modules": tuple(module for module in plan.modules if module.path == MODULE)}
        )
        self.files = {path: content for path, content in self.whole.items() if path != FLASH}
        self.set_plan(self.files, self.plan)

    @staticmethod
    def set_plan(files: dict[str, bytes], plan: Plan) -> None:
        path = f"{wheels.info(files)}/dca.json"
        paths = [module.path for module in plan.modules]
        record = json.loads(files[path])
        record["plan"] = plan.key
        record["modules"] = [module for module in record["modules"] if module["path"] in paths]
        files[path] = json.dumps(record).encode()

    def inspect(self, dca: RunDca, wheel: Path, plan: Plan, *more: str | Path) -> tuple[int, str]:
        documents.write(plan, self.folder / "plan.json")
        done = dca("inspect", wheel, "--plan", self.folder / "plan.json", "--quiet", *more)
        wheel.unlink()
        return done.returncode, done.stderr


@pytest.fixture(scope="module")
def bench(wheel: Path, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(wheel, plan, tmp_path_factory.mktemp("faults"))


def assert_is_found(code: int, message: str, *words: str) -> None:
    assert code == 7, message
    assert message.startswith("DCA-702"), message
    for word in words:
        assert word in message, message


@pytest.mark.long
def test_without_a_fault_nothing_is_found(bench: Bench, dca: RunDca, build_python: Path) -> None:
    wheel = wheels.write(dict(bench.files), bench.folder / bench.name)
    assert bench.inspect(dca, wheel, bench.plan, "--python", build_python) == (0, "")


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Replaces bytes by as many others, so that the rest of the file stays."""
    return lambda module: module.replace(old, new)


@pytest.mark.parametrize(
    ("change", "loaded", "words"),
    [
        pytest.param(
            lambda module: wheels.without_arch(module, 90),
            False,
            [f"{MODULE} lacks cubins for 9.0 (it has 8.0)."],
            id="missing arch",
        ),
        pytest.param(
            replaced(b"\0apply_repetition_pena", b"\0apply_repetition_penA"),
            True,
            [f"{MODULE} does not register _C::apply_repetition_penalties_."],
            id="missing op",
        ),
        pytest.param(
            replaced(b"Tensor weight, float epsilon", b"Tensor weight, float epsilom"),
            True,
            ["registers _C::rms_norm with another schema than the official wheel", "epsilom"],
            id="changed schema",
            marks=pytest.mark.long,
        ),
        pytest.param(wheels.with_a_cut_cubin, False, [f"{MODULE}: the cubin for 8.0 at offset"], id="cut cubin"),
        pytest.param(
            lambda module: module[: len(module) * 9 // 10],
            False,
            [f"{MODULE}: not a complete ELF file: "],
            id="module that ends early",
        ),
    ],
)
def test_a_fault_of_a_module_is_found(
    bench: Bench, dca: RunDca, build_python: Path, change: Callable[[bytes], bytes], loaded: bool, words: list[str]
) -> None:
    files = dict(bench.files)
    wheels.change_module(files, MODULE, change)
    wheel = wheels.write(files, bench.folder / bench.name)
    python: list[str | Path] = ["--python", build_python] if loaded else []
    code, message = bench.inspect(dca, wheel, bench.plan, *python)
    assert_is_found(code, message, *words)


def test_a_copied_module_that_was_planned_from_source_is_found(bench: Bench, dca: RunDca) -> None:
    modules = tuple(
        module.model_copy(update={"origin": "compiled", "sha256": "", "official": module.sha256})
        if module.path == FLASH
        else module
        for module in bench.whole_plan.modules
    )
    plan, files = bench.whole_plan.model_copy(update={"modules": modules}), dict(bench.whole)
    bench.set_plan(files, plan)
    code, message = bench.inspect(dca, wheels.write(files, bench.folder / bench.name), plan)
    assert_is_found(
        code, message, f"{FLASH} was planned to be compiled from source, but is copied from the official wheel."
    )


def without_its_origin(record: dict[str, Any]) -> None:
    del record["rewritten"]


def of_another_module(record: dict[str, Any]) -> None:
    record["rewritten"]["official"] = "0" * 64


def with_other_kernels(record: dict[str, Any]) -> None:
    record["rewritten"]["keeps"]["head_dims"] = [64]


@pytest.mark.parametrize("change", [without_its_origin, of_another_module, with_other_kernels])
def test_a_module_that_is_not_made_from_the_official_one_as_planned_is_found(
    bench: Bench, dca: RunDca, change: Callable[[dict[str, Any]], None]
) -> None:
    files = dict(bench.whole)
    path = f"{wheels.info(files)}/dca.json"
    document = json.loads(files[path])
    (record,) = [module for module in document["modules"] if module["path"] == FLASH]
    change(record)
    files[path] = json.dumps(document).encode()
    code, message = bench.inspect(dca, wheels.write(files, bench.folder / bench.name), bench.whole_plan)
    assert_is_found(code, message, f"{FLASH} is not the official wheel's: sha256 {record['sha256']}.")


def test_a_copied_module_without_a_planned_arch_is_found(bench: Bench, dca: RunDca) -> None:
    files = dict(bench.whole)
    wheels.change_module(files, FLASH, lambda module: wheels.without_arch(module, 90))
    code, message = bench.inspect(dca, wheels.write(files, bench.folder / bench.name), bench.whole_plan)
    assert_is_found(code, message, f"{FLASH} lacks cubins for 9.0 (it has 8.0).")


def test_a_wrong_line_of_record_is_found(bench: Bench, dca: RunDca) -> None:
    wheel = wheels.write(
        dict(bench.files),
        bench.folder / bench.name,
        record=lambda text: text.replace(b"vllm/_C.abi3.so,sha256=", b"vllm/_C.abi3.so,sha256=A", 1),
    )
    code, message = bench.inspect(dca, wheel, bench.plan)
    assert_is_found(code, message, f"RECORD has another hash or size for {MODULE}.")


@pytest.mark.parametrize(
    ("platform", "in_wheel", "problem"),
    [
        ("manylinux1_x86_64", False, "WHEEL says cp38-abi3-{own}, the file name says cp38-abi3-manylinux1_x86_64."),
        ("manylinux1_x86_64", True, "promises to run with glibc 2.5, but"),
        ("linux_aarch64", True, f"the tag says linux_aarch64, but {MODULE} is compiled for x86_64."),
    ],
)
def test_a_tag_that_lies_is_found(bench: Bench, dca: RunDca, platform: str, in_wheel: bool, problem: str) -> None:
    files, own = dict(bench.files), bench.name.removesuffix(".whl").rsplit("-", 1)[1]
    if in_wheel:
        path = f"{wheels.info(files)}/WHEEL"
        files[path] = files[path].replace(own.encode(), platform.encode())
    wheel = wheels.write(files, bench.folder / bench.name.replace(own, platform))
    code, message = bench.inspect(dca, wheel, bench.plan)
    assert_is_found(code, message, problem.replace("{own}", own))


@pytest.mark.parametrize("instead", [b"torch", b"torch>=2.0", b"torch==2.7.0"])
def test_metadata_without_the_pin_of_torch_is_found(bench: Bench, dca: RunDca, instead: bytes) -> None:
    files = dict(bench.files)
    path = f"{wheels.info(files)}/METADATA"
    pin = f"Requires-Dist: torch=={bench.plan.torch}\n".encode()
    assert pin in files[path]
    files[path] = files[path].replace(pin, b"Requires-Dist: " + instead + b"\n")
    code, message = bench.inspect(dca, wheels.write(files, bench.folder / bench.name), bench.plan)
    assert_is_found(code, message, f"METADATA requires `{instead.decode()}`", f"torch=={bench.plan.torch} was planned")
