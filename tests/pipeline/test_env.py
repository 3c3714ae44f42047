"""Environments to work in: their files follow from recipes and toolkits, and conda, its relatives and uv make them."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dca import inspection
from dca.catalogue import machine, recipes, toolkits
from dca.foundation import data, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.pipeline import workspace
from dca.toolchain import conda
from tests.support import ROOT, RunDca, quiet_run
from tests.support.made_wheels import make
from tests.support.prepared import run_dca

ALL = recipes.compiling(recipes.load_all())
LINES = ("12.1", "12.3", "12.4")
OWN = "12.1"
"""That environment.yml is for."""


def wanted(line: str) -> conda.Environment:
    return conda.environment(line, ALL, toolkits.load_sources(), toolkits.load_versions())


# --- the file ------------------------------------------------------------------------------------------------


def test_the_file_of_the_project_is_the_one_that_follows_from_recipes_and_toolkits() -> None:
    written = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert written == wanted(OWN).text(), f"write it anew: dca env --cuda {OWN} --print > environment.yml"


@pytest.mark.parametrize("line", LINES)
def test_each_environment_is_what_its_recipes_ask_for(line: str) -> None:
    environment = wanted(line)
    takers = [loaded.recipe for loaded in ALL if line in loaded.recipe.cuda.supported]
    assert environment.recipes == tuple(recipe.name for recipe in takers)
    pins = dict(text.split("=", 1) for text in environment.dependencies if "=" in text and not text.startswith("cmake"))
    assert all(SpecifierSet(recipe.python).contains(pins["python"] + ".9") for recipe in takers)
    accepts = toolkits.load_versions().of(line)
    assert accepts is not None
    assert {pins["gcc_linux-64"], pins["gxx_linux-64"]} == {str(accepts.gcc_max)}
    assert pins["cuda-toolkit"] == line
    assert environment.channels[0].startswith(f"nvidia/label/cuda-{line}.")
    (cmake,) = (Requirement(text) for text in environment.dependencies if text.startswith("cmake"))
    for recipe in takers:
        (requirement,) = (Requirement(text) for text in recipe.build_requirements if text.startswith("cmake"))
        assert requirement.specifier == cmake.specifier
    assert {"ninja", "git", "ccache", "make", "uv"} <= set(environment.dependencies)


@pytest.mark.parametrize("line", LINES)
def test_each_file_is_yaml(line: str) -> None:
    yaml = pytest.importorskip("yaml")
    read = yaml.safe_load(wanted(line).text())
    assert read == {
        "name": wanted(line).name,
        "channels": list(wanted(line).channels),
        "dependencies": list(wanted(line).dependencies),
    }


@pytest.mark.parametrize(("line", "code"), [("11.8", "DCA-303"), ("13.0", "DCA-303"), ("12.9", "DCA-302")])
def test_a_cuda_that_there_is_no_environment_for_is_refused(line: str, code: str) -> None:
    with pytest.raises(DcaError) as refused:
        wanted(line)
    assert refused.value.code == code


def test_the_python_of_an_environment_is_in_every_range() -> None:
    assert conda.python_of([">=3.9,<3.13", ">=3.10"]) == conda.PYTHON
    assert conda.python_of([">=3.12,<3.14", ">=3.9"]) == "3.13"
    with pytest.raises(DcaError):
        conda.python_of(["<3.10", ">=3.12"])


# --- solved and installed from a made-up channel --------------------------------------------------------------

# Real names; beside the version that is to be taken stand some that must not be.
PACKAGES = {
    "python": ["3.11.13", "3.13.5", "3.10.18"],
    "pip": ["25.1.1"],
    "uv": ["0.8.0"],
    "git": ["2.49.0"],
    "make": ["4.4.1"],
    "cmake": ["3.31.6", "3.31.0", "3.25.2", "4.0.3"],
    "ninja": ["1.12.1"],
    "ccache": ["4.11.3"],
    "gcc_linux-64": ["11.4.0", "12.4.0", "13.3.0", "14.3.0"],
    "gxx_linux-64": ["11.4.0", "12.4.0", "13.3.0", "14.3.0"],
}
RELEASES = {"12.1": "12.1.1", "12.3": "12.3.2", "12.4": "12.4.1"}
PARTS = ("cuda-nvcc", "cuda-cudart-dev", "cuda-nvtx", "cuda-cccl")


def package(folder: Path, name: str, version: str, depends: list[str]) -> None:
    """A package of one file, with an entry in its channel's list."""
    index = {
        "name": name,
        "version": version,
        "build": "0",
        "build_number": 0,
        "depends": depends,
        "subdir": "linux-64",
        "arch": "x86_64",
        "platform": "linux",
    }
    content = f"{name} {version}\n".encode()
    place = f"share/made-up/{name}"
    paths = {
        "paths_version": 1,
        "paths": [
            {
                "_path": place,
                "path_type": "hardlink",
                "sha256": hashlib.sha256(content).hexdigest(),
                "size_in_bytes": len(content),
            }
        ],
    }
    members = {
        "info/index.json": json.dumps(index).encode(),
        "info/paths.json": json.dumps(paths).encode(),
        "info/files": f"{place}\n".encode(),
        place: content,
    }
    file = folder / "linux-64" / f"{name}-{version}-0.tar.bz2"
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:bz2") as archive:
        for member, inside in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(inside)
            archive.addfile(info, io.BytesIO(inside))
    entry = index | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "size": file.stat().st_size}
    listed = folder / "linux-64/repodata.json"
    known: dict[str, Any] = {"info": {"subdir": "linux-64"}, "packages": {}}
    if listed.exists():
        known = json.loads(listed.read_text())
    known["packages"][file.name] = entry
    listed.write_text(json.dumps(known))
    (folder / "noarch").mkdir(exist_ok=True)
    (folder / "noarch/repodata.json").write_text('{"info": {"subdir": "noarch"}, "packages": {}}')


@pytest.fixture(scope="module")
def channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Channels of the names that the files have."""
    root = tmp_path_factory.mktemp("channels")
    for name, versions in PACKAGES.items():
        for version in versions:
            package(root / "conda-forge", name, version, [])
    for line, release in RELEASES.items():
        for part in PARTS:
            package(root / f"nvidia/label/cuda-{release}", part, release, [])
        package(root / f"nvidia/label/cuda-{release}", "cuda-toolkit", release, [f"{part} {line}.*" for part in PARTS])
    package(root / "conda-forge", "cuda-toolkit", "12.9.1", [])
    return root


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_each_environment_solves_and_installs(line: str, channels: Path, tmp_path: Path) -> None:
    rattler = pytest.importorskip("rattler")
    environment = wanted(line)

    async def made() -> list[Any]:
        records = await rattler.solve(
            [rattler.Channel((channels / name).as_uri()) for name in environment.channels if name != "nodefaults"],
            [rattler.MatchSpec(text) for text in environment.dependencies],
            platforms=["linux-64", "noarch"],
            gateway=rattler.Gateway(cache_dir=tmp_path / "lists"),
        )
        await rattler.install(records, target_prefix=tmp_path / "prefix", cache_dir=tmp_path / "packages")
        return list(records)

    versions = {record.name.normalized: str(record.version) for record in asyncio.run(made())}
    assert versions["cuda-toolkit"] == RELEASES[line]
    assert versions["cmake"] == "3.31.6"
    assert versions["python"].startswith(conda.PYTHON)
    assert versions["gxx_linux-64"].split(".")[0] == ("13" if line == "12.4" else "12")
    assert set(PARTS) | set(PACKAGES) <= set(versions)
    installed = {path.name for path in (tmp_path / "prefix/share/made-up").iterdir()}
    assert installed == set(versions)


# --- by conda and its relatives, with programs that stand in for them -------------------------------------------


def stand_in(folder: Path, name: str, prefix: Path, *, fails: bool = False) -> Path:
    """A program that notes how it was called, and what file it was given."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text(
        f'#!/bin/sh\necho "$@" >> "{folder}/asked"\n'
        'for word in "$@"; do case "$word" in *.yml) cat "$word" > "'
        + str(folder)
        + '/file";; esac; done\n'
        + ("echo CondaValueError: prefix already exists; exit 1\n" if fails else "")
        + f'[ "$1" = run ] && echo "{prefix}"\nexit 0\n'
    )
    program.chmod(0o755)
    return program


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    python = tmp_path / "prefix/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    return tmp_path / "prefix"


@pytest.mark.parametrize(("name", "verb"), [("micromamba", "create"), ("mamba", "env create"), ("conda", "env create")])
def test_each_engine_is_told_the_file_and_a_name(name: str, verb: str, prefix: Path, tmp_path: Path) -> None:
    program = stand_in(tmp_path / "bin", name, prefix)
    python = conda.create(wanted(OWN), program, None, Silent(), tmp_path / "log")
    assert python == prefix / "bin/python"
    first, second = (tmp_path / "bin/asked").read_text().splitlines()
    assert first.startswith(f"{verb} -n {wanted(OWN).name} -f ")
    assert second.startswith(f"run -n {wanted(OWN).name} python ")
    assert (tmp_path / "bin/file").read_text() == wanted(OWN).text()


def test_an_environment_may_have_a_folder_of_its_own(prefix: Path, tmp_path: Path) -> None:
    program = stand_in(tmp_path / "bin", "micromamba", prefix)
    conda.create(wanted(OWN), program, prefix, Silent(), tmp_path / "log")
    assert (tmp_path / "bin/asked").read_text().startswith(f"create -p {prefix} ")


def test_an_engine_that_fails_is_quoted(prefix: Path, tmp_path: Path) -> None:
    program = stand_in(tmp_path / "bin", "conda", prefix, fails=True)
    with pytest.raises(DcaError) as refused:
        conda.create(wanted(OWN), program, None, Silent(), tmp_path / "log")
    assert refused.value.code == "DCA-107"
    assert "prefix already exists" in refused.value.why
    assert "conda env remove -n" in refused.value.remedy


def test_micromamba_is_taken_before_mamba_and_mamba_before_conda(
    prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert conda.engine() is None
    for name in reversed(conda.ENGINES):
        program = stand_in(tmp_path / "bin", name, prefix)
        assert conda.engine() == program


def call(*arguments: str | Path, path: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {
        "PATH": path,
        "HOME": str(cwd),
        "PYTHONPATH": str(ROOT / "scripts"),
        "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple/",
    }
    return run_dca("env", *arguments, cwd=cwd, env=env, timeout=60)


@pytest.mark.slow
def test_conda_can_be_insisted_on(tmp_path: Path) -> None:
    done = call("--engine", "conda", path="/usr/bin:/bin", cwd=tmp_path)
    assert (done.returncode, done.stderr.startswith("DCA-103: none of micromamba, mamba, conda")) == (1, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cuda", "twelve"], "write it as 12.1"),
        (["--cuda", "13.0"], "DCA-303"),
        (["--wheel", "none.whl"], "is not a file"),
        (["--wheel", str(ROOT / "README.md"), "--print"], "only be combined with --out"),
        (["--engine", "pip"], "DCA-201"),
        # uv would take the machine's, of which no release need be known.
        (["--engine", "uv", "--cuda", "12.6"], "no toolkit of CUDA 12.6 is installed"),
        (["--engine", "uv", "--cuda", "12.1", "--recipe", "vllm-0.10.2"], "DCA-303"),
    ],
)
def test_a_mistake_gets_one_message(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = call(*arguments, path="/usr/bin:/bin", cwd=tmp_path)
    assert done.returncode in (2, 3)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != ".cache"] == []


# --- by uv -----------------------------------------------------------------------------------------------------


def test_the_tools_of_an_environment_come_from_the_recipes_lock() -> None:
    for loaded in ALL:
        text = workspace.locked(data.build_lock(loaded.recipe.name, "lean"), workspace.TOOLS)
        names = [line.split("==")[0] for line in text.splitlines() if "==" in line]
        assert sorted(names) == sorted(workspace.TOOLS)
        assert text.count("--hash=sha256:") >= len(names)


def test_the_recipe_of_an_environment_takes_the_line_and_this_python() -> None:
    for python in ("3.12.4", "3.13.1"):
        takers = [loaded.recipe for loaded in ALL if SpecifierSet(loaded.recipe.python).contains(python)]
        assert workspace.recipe_for("12.4", ALL, python) == next(
            taker for taker in takers if "12.4" in taker.cuda.supported
        )
    newest = next(loaded for loaded in ALL if "3.13.1" in SpecifierSet(loaded.recipe.python))
    assert workspace.recipe_for("12.4", (newest,), "3.13.1") == newest.recipe
    oldest = next(loaded for loaded in ALL if "3.13.1" not in SpecifierSet(loaded.recipe.python))
    for known, line, python, code in (((oldest,), "12.4", "3.13.1", "DCA-306"), (ALL, "11.8", "3.12.0", "DCA-303")):
        with pytest.raises(DcaError) as refused:
            workspace.recipe_for(line, known, python)
        assert refused.value.code == code


def test_a_lock_without_a_tool_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("cmake==3.31.4 \\\n    --hash=sha256:00\n")
    with pytest.raises(DcaError, match="lacks one of"):
        workspace.locked(tmp_path / "lock", workspace.TOOLS)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/pyvenv.cfg").touch()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "file").touch()
    for name in ("mine", "link", "file"):
        with pytest.raises(DcaError) as refused:
            workspace._claim(tmp_path / name)
        assert refused.value.code == "DCA-204"
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["pyvenv.cfg"]
    workspace._claim(tmp_path / "new")
    (tmp_path / "new/old").touch()
    workspace._claim(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [workspace.MARK]


@pytest.mark.parametrize(
    ("profile", "python", "lock"),
    [
        ("lean", "3.9.1", "run.txt"),
        ("full", "3.12.1", "run.txt"),
        (None, "3.12.1", "run.txt"),
        ("kernels", "3.14.1", "kernels.txt"),
        ("lean", "3.14.1", ""),
        ("kernels", "3.9.1", ""),
    ],
)
def test_the_environment_of_a_wheel_is_that_of_its_profile(
    profile: str | None, python: str, lock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = SimpleNamespace(recipe="vllm-0.10.2", profile=profile) if profile else None
    subject = SimpleNamespace(version="0.10.2+x", recorded=recorded, problems=())
    ran: list[list[str]] = []
    monkeypatch.setattr(inspection, "inspect", lambda *_: subject)
    monkeypatch.setattr(machine, "own_python", lambda: machine.Python(version=python, path="/python", headers=True))
    monkeypatch.setattr(workspace, "_run", lambda words, *_: ran.append([str(word) for word in words]))
    monkeypatch.setenv("VLLM_PLUGINS", "lora")
    named = "vllm" if profile != "kernels" else "dca_kernels"
    path = tmp_path / f"{named}-0.10.2+x-cp38-abi3-manylinux1_x86_64.whl"
    arguments = (path, tmp_path / "run", quiet_run(tmp_path, store.Store(tmp_path / "cache")))
    if not lock:
        with pytest.raises(DcaError) as refused:
            workspace.with_wheel(*arguments)
        assert refused.value.code == "DCA-306"
        assert (ran, (tmp_path / "run").exists()) == ([], False)
        return
    result = workspace.with_wheel(*arguments)
    lock_file = data.locks_folder("vllm-0.10.2") / lock
    assert lock_file.is_file()
    assert [words[-1] for words in ran[1:]] == [str(lock_file), str(path)]
    assert any(str(lock_file) in note for note in result.notes)
    # A plugin that is not loaded cannot say so itself.
    assert "VLLM_PLUGINS=lora leaves out dca_guards" in result.notes[-1]
    assert "export VLLM_PLUGINS=lora,dca_guards" in result.notes[-1]


@pytest.mark.parametrize("damage", ["a changed file", "a file more"])
def test_nothing_is_installed_for_a_wheel_that_differs_from_its_record(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is gigabytes, and uv compares no hash of RECORD."""
    ran: list[object] = []
    monkeypatch.setattr(workspace, "_run", lambda words, *_: ran.append(words))
    wheel = make(tmp_path, "0.10.2+x", cuda="12.4")
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    package = next(name for name in contents if name.endswith(".py"))
    contents |= {package: contents[package] + b"#"} if damage == "a changed file" else {"more.py": b""}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    with pytest.raises(DcaError) as refused:
        workspace.with_wheel(wheel, tmp_path / "run", quiet_run(tmp_path, store.Store(tmp_path / "cache")))
    assert refused.value.code == "DCA-701"
    assert (package if damage == "a changed file" else "more.py") in refused.value.why
    assert (ran, (tmp_path / "run").exists()) == ([], False)


@pytest.mark.whole
def test_uv_makes_the_same_without_conda(dca: RunDca, toolkit: Path, tmp_path: Path) -> None:
    line = toolkits.cuda_line(toolkits.nvcc_version(toolkit / "bin/nvcc"))
    done = dca(
        "env", "--engine", "uv", "--cuda", line, "--out", tmp_path / "work", "--json", env={"CUDA_HOME": str(toolkit)}
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["schema"], document["engine"]) == ("dca.environment/1", "uv")
    script = "which cmake ninja nvcc dca && nvcc --version && cmake --version && dca --version && echo $CUDAHOSTCXX"
    inside = subprocess.run(
        ["/bin/bash", "-c", f"{document['activate']} && {script}"],
        text=True,
        capture_output=True,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    ).stdout
    places = inside.splitlines()[:4]
    assert all(place.startswith(str(tmp_path / "work")) for place in places), places
    assert f"V{document['cuda']}" in inside
    assert inside.rstrip().splitlines()[-1] == document["compiler"].split()[0]
    # A project that knows nothing of this tool is configured, compiled and linked there.
    project = tmp_path / "project"
    project.mkdir()
    (project / "k.cu").write_text("__global__ void k() {}\nint main() { k<<<1, 1>>>(); }\n")
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.26)\nproject(k LANGUAGES CXX CUDA)\nadd_executable(k k.cu)\n"
    )
    script = "nvcc k.cu -o by-nvcc && cmake -B b -D CMAKE_CUDA_ARCHITECTURES=80 && cmake --build b"
    done = subprocess.run(
        ["/bin/bash", "-c", f"{document['activate']} && {script}"],
        text=True,
        capture_output=True,
        cwd=project,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "by-nvcc").exists()
    assert (project / "b/k").exists()
