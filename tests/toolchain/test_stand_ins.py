"""Stand-ins for libraries that are not there, loaded by the real loader and linked by the real linker."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dca.binaries import elf
from dca.compile import ops
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


def write(libraries: dict[Path, StandIn]) -> None:
    for path, library in libraries.items():
        library.write(path)


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
    write(made)
    # What is there is used as it is, Python's own functions too.
    done = load(torch, code="assert one.real() == 2")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_call_of_a_stand_in_does_not_go_unnoticed(site: Path, made: dict[Path, StandIn], tmp_path: Path) -> None:
    write(made)
    assert load(site / "bar/lib/libbar.so.2", code="one.barDo()").returncode < 0


@pytest.mark.parametrize(("name", "loads"), [("fooMore", True), ("fooUnknown", False)])
def test_a_module_may_import_what_the_library_has_and_nothing_else(
    name: str, loads: bool, site: Path, made: dict[Path, StandIn], tmp_path: Path
) -> None:
    write(made)
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
def test_a_stand_in_is_written_when_it_changes(change: str, tmp_path: Path) -> None:
    library, path = StandIn("libx.so.1", {"": ["one"]}), tmp_path / "libx.so.1"
    library.write(path)
    before = path.stat().st_mtime_ns
    if change == "gone":
        path.unlink()
    changed = StandIn("libx.so.1", {"": ["one", "two"]}) if change == "source" else library
    changed.write(path)
    assert (path.stat().st_mtime_ns == before) is (not change)
    assert {"one"} | ({"two"} if change == "source" else set()) == elf.defined(path)


def test_without_a_compiler_a_driver_is_stood_in_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = compiled(tmp_path / "module.so", 'extern "C" int cuInit(int); extern "C" int use() { return cuInit(0); }')
    monkeypatch.setenv("PATH", str(tmp_path))
    driver = ops.driver_stand_in(module, tmp_path)
    code = f"ctypes.CDLL({str(driver)!r}, os.RTLD_GLOBAL); two = ctypes.CDLL({str(module)!r}); print(two.use())"
    assert load(code=code).stdout == "100\n"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 40, 2000])
def test_every_name_is_found_by_the_loader_and_by_the_linker(count: int, tmp_path: Path) -> None:
    """The linker takes the names of each version, and the loader then binds a program to them."""
    names = [f"f{number * 7919}" for number in range(count)]
    functions = {"": names[::3], "V_1": names[1::3], "libz.so.9": names[2::3]}
    library = StandIn("libx.so.1", functions, "no device").write(tmp_path / "libx.so.1")
    assert elf.defined(library) == set(names)
    source = "".join(f'extern "C" int {name}(); ' for name in names)
    calls = " + ".join(f"{name}()" for name in names) or "0"
    user = compiled(
        tmp_path / "user.so",
        f'{source} extern "C" int use() {{ return {calls}; }}',
        library,
        "-Wl,--no-undefined,-z,now",
        f"-Wl,-rpath,{tmp_path}",
    )
    done = load(user, code="print(one.use())")
    assert (done.stdout, done.stderr) == (f"{100 * count}\n", "")
    wanted = {symbol.name: symbol.version for symbol in elf.imports(user).undefined if symbol.name in names}
    assert wanted == {name: version for version, own in functions.items() for name in own}


def test_a_library_without_any_function_is_loaded(tmp_path: Path) -> None:
    done = load(StandIn("libx.so.1", {"": [], "V_1": []}).write(tmp_path / "libx.so.1"))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_loader_asks_for_no_stack_that_can_be_executed(tmp_path: Path) -> None:
    library = StandIn("libx.so.1", {"": ["one"]}).write(tmp_path / "libx.so.1")
    code = "print([line for line in open('/proc/self/maps') if '[stack]' in line and 'x' in line.split()[1]])"
    assert load(library, code=code).stdout == "[]\n"
