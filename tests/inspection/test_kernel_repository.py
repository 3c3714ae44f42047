"""Kernel repositories: what is written keeps the rules, and a broken rule is told. The modules are small, but real."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dca.catalogue.kernel_layout import METADATA, VARIANT, Digest, Metadata, stable_variant, torch_variant
from dca.foundation.errors import DcaError
from dca.inspection import inspect
from dca.wheelfile.kernel_repository import ATTENTION, INDEX, Variant, write
from tests.support import RunDca

pytestmark = pytest.mark.slow
ID, CXX, STABLE = "_dca_index_1a2b3c4", torch_variant("2.8.0+cu128", True, "12.8"), stable_variant("2.8.0", "12.4")
C_LIBRARY = 'extern "C" int aoti_torch_library_def(const char*); int on = aoti_torch_library_def("ID");\n'
BREAKS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "C++ in a stable variant": ("namespace c10 { void warn(); } void* also = (void*)&c10::warn;", (), "torch's C++"),
    "a newer C library": (
        "#include <unistd.h>\nint who() { return gettid(); }",
        (),
        "manylinux_2_28 does not have: gettid",
    ),
    "Python's whole API": (
        'extern "C" void PyUnicode_AsUTF8AndSize(); void* it = (void*)&PyUnicode_AsUTF8AndSize;',
        (),
        "limited API",
    ),
    "a foreign library": ('extern "C" int deflate(); int z = deflate();', ("-l:libz.so.1",), "linked with libz.so.1"),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """Compiles a library that registers ops as an id."""

    def compile_it(more: str = "", flags: tuple[str, ...] = (), name: str = ID) -> bytes:
        folder = tmp_path_factory.mktemp("module")
        (folder / "module.cpp").write_text(C_LIBRARY.replace("ID", name) + more)
        subprocess.run(
            ["g++", "-O2", "-shared", "-fPIC", "-s", "module.cpp", *flags, "-o", "module.so"], cwd=folder, check=True
        )
        return (folder / "module.so").read_bytes()

    return compile_it


def variant(content: bytes, name: str = STABLE) -> Variant:
    return Variant(name, ID, content, ("8.0+PTX", "9.0"), "It was made by a test.")


@pytest.fixture
def repository(tmp_path: Path, compiled: Callable[..., bytes]) -> Path:
    return write(tmp_path, INDEX, variant(compiled()))


def again(folder: Path) -> None:
    """Write the digest of a variant anew."""
    file = folder / METADATA
    about = json.loads(file.read_text())
    files = {name: (folder / name).read_bytes() for name in about["digest"]["files"] if (folder / name).exists()}
    file.write_text(json.dumps(about | {"digest": Digest.of(files).model_dump(mode="json")}))


def test_what_is_written_keeps_the_rules(repository: Path, compiled: Callable[..., bytes], dca: RunDca) -> None:
    found = inspect(repository)
    assert (found.problems, found.kernel_variants) == ((), (STABLE,))
    write(repository.parent, INDEX, variant(compiled(), CXX))
    assert inspect(repository).kernel_variants == tuple(sorted((STABLE, CXX)))
    done = dca("inspect", repository)
    assert done.returncode == 0, done.stderr
    assert "keeps the rules of kernel repositories" in re.sub(r"\s+", " ", done.stdout)
    about = Metadata.model_validate_json((repository / "build" / STABLE / METADATA).read_bytes())
    assert (about.name, about.id, about.version, about.backend.archs) == ("dca-index", ID, 0, ("8.0+PTX", "9.0"))


@pytest.mark.parametrize("rule", BREAKS)
def test_a_module_that_breaks_a_rule_is_told(tmp_path: Path, compiled: Callable[..., bytes], rule: str) -> None:
    source, flags, said = BREAKS[rule]
    (problem,) = inspect(write(tmp_path, INDEX, variant(compiled(source, flags)))).problems
    assert said in problem


def test_a_module_with_ops_under_another_name_is_told(tmp_path: Path, compiled: Callable[..., bytes]) -> None:
    (problem,) = inspect(write(tmp_path, INDEX, variant(compiled(name="_C")))).problems
    assert f"does not register its ops as {ID}" in problem


def test_a_broken_layout_is_told(repository: Path, dca: RunDca) -> None:
    folder = repository / "build" / STABLE
    (folder / "__init__.py").write_text("print()\n")
    assert inspect(repository).problems == (f"build/{STABLE}: __init__.py has another hash than the digest says.",)
    done = dca("inspect", repository)
    assert done.returncode == 7
    assert "`dca kernels` writes a right one" in done.stderr.replace(".venv/bin/", "")
    (folder / "__init__.py").unlink()
    (folder / "dca_index" / "__init__.py").unlink()
    (folder / "more.py").write_text("")
    again(folder)
    said = " ".join(inspect(repository).problems)
    assert "has no __init__.py" in said
    assert "no dca_index/__init__.py" in said
    assert "more.py is not in the digest" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "no-name"}, "id: "),
        ({"version": "1"}, "version: "),
        ({"name": "Dca"}, "name: "),
        ({"digest": None}, "has no digest"),
        ({"backend": {"type": "cuda"}}, "names no GPU architectures"),
        ({"digest": {"algorithm": "md5", "files": {}}}, "digest.algorithm: "),
        ({"python-depends": None}, "python-depends: "),
    ],
)
def test_wrong_metadata_is_told(repository: Path, change: dict[str, object], said: str) -> None:
    file = repository / "build" / STABLE / METADATA
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    (problem,) = inspect(repository).problems
    assert said in problem


def test_damaged_metadata_and_a_foreign_folder_are_told(repository: Path, tmp_path: Path) -> None:
    (repository / "build" / STABLE).rename(repository / "build" / "somewhere")
    assert any("is not named as a variant" in problem for problem in inspect(repository).problems)
    (repository / "build" / "somewhere" / METADATA).write_text("{")
    assert any(METADATA in problem for problem in inspect(repository).problems)
    with pytest.raises(DcaError) as refused:
        write(tmp_path, INDEX, variant(b""))
    assert refused.value.code == "DCA-207"
    (tmp_path / ATTENTION.name).mkdir()
    (tmp_path / ATTENTION.name / "note").write_text("mine")
    with pytest.raises(DcaError):
        write(tmp_path, ATTENTION, variant(b""))
    assert (tmp_path / ATTENTION.name / "note").read_text() == "mine"


def test_the_variant_for_a_torch_is_the_one_that_the_library_takes(
    repository: Path, compiled: Callable[..., bytes], dca: RunDca
) -> None:
    write(repository.parent, INDEX, variant(compiled(), CXX))

    def answer(torch: str) -> str:
        return re.sub(r"\s+", " ", dca("inspect", repository, "--torch", torch).stdout)

    # Both fit the release; the stable ABI is preferred. A later release, and CUDA of a later minor version, fit too.
    for torch in ("2.8.0+cu128", "2.9.0+cu126", "2.11.0+cu128"):
        assert f"its variant for this torch is {STABLE}" in answer(torch)
    assert "it has no variant for torch 2.11.0+cu130" in answer("2.11.0+cu130")
    assert "it has no variant for torch 2.7.1+cu128" in answer("2.7.1+cu128")
    # Of a newer stable ABI, and for a processor that this machine has not.
    other = stable_variant("2.9.0", "12.4", "aarch64" if platform.machine() == "x86_64" else "x86_64")
    shutil.copytree(repository / "build" / STABLE, repository / "build" / other)
    assert f"its variant for this torch is {STABLE}" in answer("2.11.0+cu128")


@pytest.mark.parametrize(
    ("name", "fits"),
    [(CXX, True), (STABLE, True), ("torch212-cu130-x86_64-linux", True), ("torch-2.8", False), ("build", False)],
)
def test_names_of_variants(name: str, fits: bool) -> None:
    assert (VARIANT.fullmatch(name) is not None) == fits
