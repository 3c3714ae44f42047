"""Stand-ins for libraries that are not there, made with the real g++ and loaded by the real loader."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dca.binaries import elf
from dca.foundation.errors import DcaError
from dca.toolchain import stand_ins
from dca.toolchain.stand_ins import StandIn

# A library with symbol versions, one without, and one that stays; torch's library uses all three, libc and Python.
SOURCES = {
    "nvidia/foo/lib/libfoo.so.1": 'extern "C" int fooDo() { return 1; } extern "C" int fooMore() { return 1; }',
    "bar/lib/libbar.so.2": 'extern "C" int barDo() { return 1; }',
    "nvidia/baz/lib/libbaz.so.3": 'extern "C" int bazDo() { return 1; }',
    "torch/lib/libtorch.so": """
        #include <cstdio>
        #include <string>
        extern "C" int fooDo(); extern "C" int barDo(); extern "C" int bazDo(); extern "C" int Py_IsInitialized();
        int use(const std::string& text) { return std::puts(text.c_str()) + fooDo() + barDo() + Py_IsInitialized(); }
        extern "C" int real() { return bazDo() + Py_IsInitialized(); }
    """,
}
VERSIONS = "libfoo.so.1 { global: *; };\n"
HEADER = "#define FOO 1\nint fooDo(void);\n  int fooMore (int, int);\nint sizeOther(int);\n"
PYTHON = Path(sys.executable)


def compiled(path: Path, source: str, *words: str | Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f"source of {path.name}.cc")
    file.write_text(source)
    command = ["g++", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", path, file, *words]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Packages of which two are then gone, as after an installation without them."""
    site, versions = tmp_path / "site", tmp_path / "versions"
    versions.write_text(VERSIONS)
    folders = ("nvidia/foo/lib", "bar/lib", "nvidia/baz/lib")
    links = [f"-Wl,-rpath,$ORIGIN/../../{folder}" for folder in folders]
    for name, source in SOURCES.items():
        words: list[str | Path] = []
        if "foo" in name:
            words = [f"-Wl,--version-script={versions}"]
        if "torch" in name:
            words = [*(path for folder in folders for path in (site / folder).glob("*.so.*[0-9]")), *links]
        compiled(site / name, source, *words)
    for name in ("nvidia/foo", "bar"):
        shutil.rmtree(site / name)
    (site / "nvidia/foo/include").mkdir(parents=True)
    (site / "nvidia/foo/include/foo.h").write_text(HEADER)
    return site


@pytest.fixture
def made(site: Path, tmp_path: Path) -> dict[Path, StandIn]:
    absent = [site / "nvidia/foo/lib/libfoo.so.1", site / "bar/lib/libbar.so.2", site / "nvidia/x/lib/libx.so.1"]
    return stand_ins.of_torch(site, absent, PYTHON, tmp_path / "log")


def write(libraries: dict[Path, StandIn], folder: Path) -> None:
    for path, library in libraries.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        stand_ins.compile_library(library, path, "g++", folder / "log", "DCA-407")


def load(*libraries: Path, code: str = "") -> subprocess.CompletedProcess[str]:
    lines = ["import ctypes, os", *(f"one = ctypes.CDLL({str(path)!r}, os.RTLD_NOW)" for path in libraries), code]
    return subprocess.run([PYTHON, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)


def test_a_stand_in_has_what_is_imported_from_the_library_and_what_its_headers_declare(
    made: dict[Path, StandIn],
) -> None:
    assert {library.soname: library.functions for library in made.values()} == {
        "libfoo.so.1": {"libfoo.so.1": {"fooDo", "fooMore"}},
        "libbar.so.2": {"": {"barDo"}},
    }


def test_torch_is_loaded_with_stand_ins_and_not_without(site: Path, made: dict[Path, StandIn], tmp_path: Path) -> None:
    torch = site / "torch/lib/libtorch.so"
    assert "libfoo.so.1" in load(torch).stderr
    write(made, tmp_path)
    # What is there is used as it is, Python's own functions too.
    done = load(torch, code="assert one.real() == 2")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_call_of_a_stand_in_does_not_go_unnoticed(site: Path, made: dict[Path, StandIn], tmp_path: Path) -> None:
    write(made, tmp_path)
    assert load(site / "bar/lib/libbar.so.2", code="one.barDo()").returncode < 0


@pytest.mark.parametrize(("name", "loads"), [("fooMore", True), ("fooUnknown", False)])
def test_a_module_may_import_what_the_library_has_and_nothing_else(
    name: str, loads: bool, site: Path, made: dict[Path, StandIn], tmp_path: Path
) -> None:
    write(made, tmp_path)
    source = f'extern "C" int {name}(); extern "C" int use() {{ return {name}(); }}'
    module = compiled(tmp_path / "module.so", source, "-Wl,--no-as-needed", site / "torch/lib/libtorch.so")
    done = load(site / "torch/lib/libtorch.so", module)
    assert (done.returncode == 0) is loads, done.stderr
    assert loads or f"undefined symbol: {name}" in done.stderr


def test_names_of_an_importer_whose_other_library_is_missing_are_left_undefined(site: Path, tmp_path: Path) -> None:
    """The driver's library is such a one: it has these names, where it is."""
    driver = compiled(tmp_path / "libdriver.so.1", 'extern "C" int drive() { return 1; }')
    bar = compiled(site / "bar/lib/libbar.so.2", SOURCES["bar/lib/libbar.so.2"])
    source = 'extern "C" int drive(); extern "C" int barDo(); extern "C" int use() { return drive() + barDo(); }'
    compiled(site / "torch/lib/libtorch_nvrtc.so", source, driver, bar)
    made = stand_ins.of_torch(site, [bar], PYTHON, tmp_path / "log")
    assert "drive" not in made[bar].functions[""]


@pytest.mark.parametrize("change", ["", "source", "gone"])
def test_a_stand_in_is_compiled_when_it_changes(change: str, tmp_path: Path) -> None:
    library, path = StandIn("libx.so.1", {"": ["one"]}), tmp_path / "libx.so.1"
    stand_ins.compile_library(library, path, "g++", None, "DCA-601")
    before = path.stat().st_mtime_ns
    if change == "gone":
        path.unlink()
    changed = StandIn("libx.so.1", {"": ["one", "two"]}) if change == "source" else library
    stand_ins.compile_library(changed, path, "g++", None, "DCA-601")
    assert (path.stat().st_mtime_ns == before) is (not change)
    assert {"one"} | ({"two"} if change == "source" else set()) <= elf.defined(path)


def test_a_stand_in_that_does_not_compile_is_refused_and_tried_again(tmp_path: Path) -> None:
    compile_it: Callable[[str], Path] = lambda compiler: stand_ins.compile_library(  # noqa: E731
        StandIn("libx.so.1", {"": ["one"]}), tmp_path / "libx.so.1", compiler, None, "DCA-407"
    )
    with pytest.raises(DcaError) as refused:
        compile_it("false")
    assert (refused.value.code, "libx.so.1" in refused.value.what) == ("DCA-407", True)
    assert compile_it("g++").is_file()
