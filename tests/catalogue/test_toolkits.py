"""Toolkits on the machine, made up from folders and small scripts."""

from __future__ import annotations

import platform
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from dca.catalogue import targets, toolkits
from dca.catalogue.toolkits import AptPackage, FoundToolkit, Layout, ToolkitSource
from tests.support import MATH_FUNCTIONS

PARTS = ("bin/ptxas", "nvvm/bin/cicc", "include/cuda_runtime.h", "lib64/libcudart.so")


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def toolkit(folder: Path, version: str = "12.4.131", *, without: str = "") -> Path:
    """A folder that looks like a CUDA toolkit, with an nvcc that says what it is and where."""
    script(
        folder / "bin/nvcc",
        'case "$1" in\n'
        f"--version) echo 'nvcc: NVIDIA (R) Cuda compiler driver'; "
        f"echo 'Cuda compilation tools, release {version.rsplit('.', 1)[0]}, V{version}';;\n"
        f"--dryrun) echo '#$ _SPACE_= '; echo '#$ TOP={folder}/bin/..';;\n"
        "*) exit 1;;\nesac",
    )
    for part in PARTS:
        if part != without:
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            (folder / part).touch()
    (folder / "include/crt").mkdir(parents=True, exist_ok=True)
    (folder / "include/crt/math_functions.h").write_text(MATH_FUNCTIONS)
    return folder


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that tells of no toolkit; the folder is all of PATH."""
    for name in ("CUDA_HOME", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def found(tmp_path: Path, named: Path | None = None) -> list[FoundToolkit]:
    """What was found, without the toolkits that this machine really has."""
    return [kit for kit in toolkits.discover(named) if Path(kit.path).is_relative_to(tmp_path.resolve())]


def test_a_machine_without_toolkits_has_none(tmp_path: Path, bare: Path) -> None:
    assert found(tmp_path) == []


def test_toolkits_come_in_the_order_they_are_preferred(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONDA_PREFIX", str(toolkit(tmp_path / "conda", "12.1.105")))
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "home", "12.6.20")))
    (bare / "nvcc").symlink_to(toolkit(tmp_path / "path-toolkit", "12.5.40") / "bin/nvcc")
    named = toolkit(tmp_path / "named", "12.4.131")
    assert [(Path(kit.path).name, kit.version, kit.origin) for kit in found(tmp_path, named)] == [
        ("named", "12.4.131", "--toolkit"),
        ("home", "12.6.20", "CUDA_HOME"),
        ("path-toolkit", "12.5.40", "nvcc on PATH"),
        ("conda", "12.1.105", "the conda environment"),
    ]
    assert toolkits.discover(named)[0].origin == "--toolkit"


def test_a_whole_toolkit_lacks_nothing(tmp_path: Path, bare: Path) -> None:
    (kit,) = found(tmp_path, toolkit(tmp_path / "cuda"))
    assert kit == FoundToolkit(
        path=str((tmp_path / "cuda").resolve()),
        version="12.4.131",
        origin="--toolkit",
        fixes={"sinpi": "needed", "rsqrt": "needed"},
    )
    assert kit.line == "12.4"


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("bin/ptxas", "ptxas"),
        ("nvvm/bin/cicc", "cicc"),
        ("include/cuda_runtime.h", "runtime headers"),
        ("lib64/libcudart.so", "cudart"),
    ],
)
def test_an_incomplete_toolkit_says_what_is_missing(part: str, what: str, tmp_path: Path, bare: Path) -> None:
    (kit,) = found(tmp_path, toolkit(tmp_path / "cuda", without=part))
    assert kit.missing == (what,)


def test_parts_in_the_folder_of_the_target_count(tmp_path: Path, bare: Path) -> None:
    folder = toolkit(tmp_path / "cuda", without="lib64/libcudart.so")
    (folder / "targets/x86_64-linux/lib").mkdir(parents=True)
    (folder / "targets/x86_64-linux/lib/libcudart.so").touch()
    assert found(tmp_path, folder)[0].missing == ()


def test_a_link_to_nothing_is_missing(tmp_path: Path, bare: Path) -> None:
    folder = toolkit(tmp_path / "cuda", without="lib64/libcudart.so")
    (folder / "lib64").mkdir(exist_ok=True)
    (folder / "lib64/libcudart.so").symlink_to("libcudart.so.12")
    assert found(tmp_path, folder)[0].missing == ("cudart",)


def test_a_toolkit_that_several_places_name_is_listed_once(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toolkit(tmp_path / "cuda-12.4")
    (tmp_path / "cuda").symlink_to(folder)
    (bare / "nvcc").symlink_to(tmp_path / "cuda/bin/nvcc")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("CONDA_PREFIX", f"{folder}/")
    assert [(kit.path, kit.origin) for kit in found(tmp_path)] == [(str(folder.resolve()), "CUDA_HOME")]


def test_a_wrapper_script_leads_to_the_toolkit_it_starts(tmp_path: Path, bare: Path) -> None:
    folder = toolkit(tmp_path / "real")
    script(bare / "nvcc", f'exec "{folder}/bin/nvcc" "$@"')
    assert [(kit.path, kit.origin) for kit in found(tmp_path)] == [(str(folder.resolve()), "nvcc on PATH")]


def test_a_program_named_nvcc_that_belongs_to_no_toolkit_is_left_out(tmp_path: Path, bare: Path) -> None:
    script(bare / "nvcc", "echo hello")
    assert found(tmp_path) == []


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_path_with_spaces_and_other_letters_is_kept(wrapped: bool, tmp_path: Path, bare: Path) -> None:
    folder = toolkit(tmp_path / "Werkzeug für CUDA 12 東京")
    if wrapped:
        script(bare / "nvcc", f'exec "{folder}/bin/nvcc" "$@"')
    else:
        (bare / "nvcc").symlink_to(folder / "bin/nvcc")
    assert [kit.path for kit in found(tmp_path)] == [str(folder.resolve())]


def test_a_folder_without_an_nvcc_is_no_toolkit(tmp_path: Path, bare: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert found(tmp_path, tmp_path / "empty") == []
    assert found(tmp_path, tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        pytest.param(b"#!/bin/sh\nexit 1\n", 0o755, id="fails"),
        pytest.param(b"#!/bin/sh\necho nonsense\n", 0o755, id="no version"),
        pytest.param(b"#!/bin/sh\necho 'release 12.4, V12.4.131'; exit 2\n", 0o755, id="fails after its version"),
        pytest.param(b"#!/bin/sh\necho\n", 0o644, id="not executable"),
        pytest.param(b"\x7fELF\x02\x01\x01" + bytes(99), 0o755, id="for another processor"),
        pytest.param(b"#!/nonexistent/sh\n", 0o755, id="interpreter missing"),
    ],
)
def test_an_nvcc_that_does_not_work_is_left_out(
    content: bytes, mode: int, tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = toolkit(tmp_path / "broken") / "bin/nvcc"
    nvcc.write_bytes(content)
    nvcc.chmod(mode)
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "good")))
    assert [Path(kit.path).name for kit in found(tmp_path, tmp_path / "broken")] == ["good"]


# --- the data files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "line"), [("12.4.131", "12.4"), ("13.0", "13.0"), ("12.10.1", "12.10")])
def test_the_line_of_a_version_is_major_and_minor(version: str, line: str) -> None:
    assert toolkits.cuda_line(version) == line


def test_known_cuda_versions_ask_for_no_older_compilers_and_drivers_than_those_before() -> None:
    versions, drivers = toolkits.load_versions().versions, toolkits.load_versions().drivers
    lines = [tuple(map(int, version.line.split("."))) for version in versions]
    assert lines == sorted(set(lines))
    for older, newer in pairwise(versions):
        assert older.gcc_max <= newer.gcc_max
        assert drivers.of(older.line).driver < drivers.of(newer.line).driver
    assert toolkits.load_versions().of("1.0") is None


def test_every_toolkit_that_can_be_brought_is_of_a_known_cuda_version_and_complete() -> None:
    for source in toolkits.load_sources():
        assert toolkits.load_versions().of(source.line) is not None
        targets = {target for _, target in source.layout.copies} | {link for link, _ in source.layout.links}
        for part in ("bin/nvcc", "bin/ptxas", "nvvm/bin/cicc", "lib64/libcudart.so", "include"):
            # It is there by its own name, or in a folder that is taken whole.
            assert targets & {part, *map(str, Path(part).parents)}, (source.name, part)


def test_each_toolkit_is_of_one_processor_by_its_file_names_too() -> None:
    for source in toolkits.load_sources():
        assert source.machine in targets.PROCESSORS
        assert all(wheel.file.endswith(f"_{source.machine}.whl") for wheel in source.wheels)
    by_processor = [toolkits.load_sources(processor) for processor in targets.PROCESSORS]
    assert all(by_processor)
    every = [source.name for sources in by_processor for source in sources]
    assert sorted(every) == sorted(source.name for source in toolkits.load_sources())
    assert toolkits.load_sources("ppc64le") == ()


def test_on_aarch64_a_whole_toolkit_has_its_libraries_in_a_folder_for_it(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = toolkit(tmp_path / "kit")
    for name in ("include/cuda_runtime.h", "lib64/libcudart.so"):
        target = kit / "targets/sbsa-linux" / name.replace("lib64", "lib")
        target.parent.mkdir(parents=True, exist_ok=True)
        (kit / name).rename(target)
    missing = ("runtime headers", "cudart")
    for processor, lacks in (("x86_64", missing), ("aarch64", ()), ("ppc64le", missing)):
        monkeypatch.setattr(platform, "machine", lambda processor=processor: processor)
        assert [one.missing for one in found(tmp_path, kit)] == [lacks]


def test_a_toolkit_is_taken_from_the_places_of_its_parts_and_from_one_at_least() -> None:
    places = {source.name: source.places for source in toolkits.load_sources()}
    assert places["nvidia-12.4"] == ("redist:nvidia-12.4",)
    assert places["debian-12.4"] == ("apt:debian-12.4", "index")
    assert places["index-13.0"] == ("index",)
    source = toolkits.load_sources()[0]
    nothing = {"redist": None, "apt": None, "wheels": ()}
    with pytest.raises(ValidationError, match=r"made of parts"):
        ToolkitSource.model_validate(source.model_dump(by_alias=True) | nothing)


@pytest.mark.parametrize("pair", [("/etc/passwd", "x"), ("../x", "x"), ("x", "bin/../../x"), ("x", "/x")])
def test_a_layout_cannot_name_what_lies_outside(pair: tuple[str, str]) -> None:
    with pytest.raises(ValidationError):
        Layout(copies=(pair,))
    with pytest.raises(ValidationError):
        Layout(copies=(), links=(pair,))


@pytest.mark.parametrize(
    ("name", "version"), [("-oAPT::x", "1"), ("a b", "1"), ("Name", "1"), ("name", "1 2"), ("name", "1;id"), ("", "1")]
)
def test_a_package_that_apt_could_take_for_something_else_is_refused(name: str, version: str) -> None:
    with pytest.raises(ValidationError):
        AptPackage(name=name, version=version, sha256="0" * 64)
