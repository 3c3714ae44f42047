"""Which GPU is emulated for a wheel, and what is said of one that has no PTX."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dca.catalogue import kept_ptx
from dca.catalogue.kept_ptx import Text
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.smoke import emulated

OPS, ATTENTION = "vllm/_C.abi3.so", "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"
HASHES = {OPS: "1" * 64, ATTENTION: "2" * 64}


def subject(folder: Path, **ptx: tuple[str, ...]) -> Any:
    """A wheel whose modules have PTX for these archs."""
    archs = {OPS: ptx.get("ops", ()), ATTENTION: ptx.get("attention", ())}
    modules = tuple(
        SimpleNamespace(path=path, sha256=sha256, ptx=dict.fromkeys(archs[path], 1)) for path, sha256 in HASHES.items()
    )
    return SimpleNamespace(wheel=folder / "vllm-1-py3-none-any.whl", proven=modules)


def keep(folder: Path, module: str, *archs: str, sha256: str = "") -> Path:
    """The file of kept PTX beside that wheel, with a text of a module for each arch."""
    file = kept_ptx.beside(subject(folder).wheel)
    texts = []
    for arch in archs:
        content = f".target sm_{arch.replace('.', '')}".encode()
        record = Text(
            module=module,
            source="a.cu",
            arch=arch,
            toolkit="12.4",
            sha256=store.sha256_bytes(content),
            entries=("kernel",),
        )
        texts.append((record, content))
    kept_ptx.write(file, {module: sha256 or HASHES[module]}, texts)
    return file


@pytest.mark.parametrize(
    ("ops", "attention", "arch"),
    [
        (("8.0",), ("8.0",), "8.0"),
        (("8.9", "9.0"), ("8.0",), "8.9"),
        (("9.0a",), ("8.0",), "9.0"),
        (("7.0",), ("8.0", "9.0"), "8.0"),
        (("8.6",), ("8.9",), "8.9"),
    ],
)
def test_the_oldest_gpu_that_runs_all_modules_is_emulated(
    ops: tuple[str, ...], attention: tuple[str, ...], arch: str, tmp_path: Path
) -> None:
    chosen = emulated.choose(subject(tmp_path, ops=ops, attention=attention))
    assert chosen == emulated.EmulatedGpu(arch, None)


def test_kept_ptx_counts_for_the_modules_that_it_belongs_to(tmp_path: Path) -> None:
    file = keep(tmp_path, OPS, "8.6", "9.0")
    assert emulated.choose(subject(tmp_path, attention=("8.0",))) == emulated.EmulatedGpu("8.6", file)
    keep(tmp_path, OPS, "8.6", sha256="3" * 64)
    with pytest.raises(DcaError) as refused:
        emulated.choose(subject(tmp_path, attention=("8.0",)))
    assert refused.value.code == "DCA-838"
    assert "has none for this wheel" in refused.value.why


@pytest.mark.parametrize(
    ("ptx", "lacking"),
    [
        ({}, f"{OPS} and {ATTENTION} has no PTX"),
        ({"attention": ("8.0",)}, f"{OPS} has no PTX"),
        ({"ops": ("8.0",), "attention": ("10.0",)}, f"{ATTENTION} has no PTX"),
    ],
)
def test_a_wheel_of_machine_code_alone_is_refused_with_the_way_to_its_ptx(
    ptx: dict[str, tuple[str, ...]], lacking: str, tmp_path: Path
) -> None:
    with pytest.raises(DcaError) as refused:
        emulated.choose(subject(tmp_path, **ptx))
    assert refused.value.code == "DCA-838"
    assert refused.value.why.startswith(lacking)
    assert "is not beside the wheel" in refused.value.why
    assert "--rebuild" in refused.value.remedy


def test_a_damaged_file_is_not_taken_for_none(tmp_path: Path) -> None:
    kept_ptx.beside(subject(tmp_path).wheel).write_bytes(b"no archive")
    with pytest.raises(DcaError) as refused:
        emulated.choose(subject(tmp_path, ops=("8.0",), attention=("8.0",)))
    assert refused.value.code == "DCA-839"
