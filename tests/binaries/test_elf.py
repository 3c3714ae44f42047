"""Symbols that shared libraries require and define: tiny libraries that g++ compiles here, and torch's own."""

from __future__ import annotations

import io
import random
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dca.binaries import elf
from dca.binaries.elf import ElfError, Symbol
from dca.catalogue import recipes
from dca.catalogue.plan import Plan
from dca.compile import ops

# The libraries are compiled.
pytestmark = pytest.mark.slow

# A stand-in for torch's headers: only the mangled names matter.
C10 = """
#include <string>
namespace c10 { namespace detail {
int n;
void fail(const char* where, const std::string& why) { n += why.size() + *where; }
} void gone(int) {} struct Kept { virtual ~Kept(); }; Kept::~Kept() {} }
namespace at { int version() { return 3; } }
extern "C" int aoti_torch_device() { return 1; }
"""
MODULE = """
#include <string>
#include <vector>
namespace c10 { namespace detail { void fail(const char*, const std::string&); }
void gone(int); struct Kept { virtual ~Kept(); }; struct Own : Kept {}; void perhaps() __attribute__((weak)); }
namespace at { int version(); }
namespace other { int c10_like(); }
extern "C" int aoti_torch_device();
extern "C" int cuInit(unsigned);
extern "C" int use(int n) {
    c10::Own own;
    c10::detail::fail("x", std::string(n, 'y'));
    c10::gone(n);
    if (c10::perhaps) c10::perhaps();
    std::vector<std::string> all(n);
    return at::version() + other::c10_like() + aoti_torch_device() + cuInit(0) + (int)all.size();
}
"""
Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Compiles a shared library, linked to those given."""

    def compiled(name: str, source: str, *flags: str | Path) -> Path:
        (tmp_path / f"{name}.cpp").write_text(source)
        out = tmp_path / name
        words = ["g++", "-O1", "-shared", "-fPIC", "-w", "-o", out, tmp_path / f"{name}.cpp", *flags]
        subprocess.run(words, check=True, capture_output=True)
        return out

    return compiled


def test_what_a_library_says_of_itself(build: Build) -> None:
    c10 = build("libc10.so", C10, "-Wl,-soname,libc10.so.1")
    library = elf.read(build("module.so", MODULE, c10))
    assert "libc10.so.1" in library.needed
    assert "libstdc++.so.6" in library.needed
    names = {symbol.name: symbol for symbol in library.undefined}
    assert names["cuInit"] == Symbol("cuInit", "", False)
    assert names["_ZN3c107perhapsEv"].weak
    assert "use" not in names
    assert list(library.undefined) == sorted(library.undefined)


@pytest.mark.parametrize(("flag", "new"), [(1, True), (0, False)])
def test_the_abi_of_strings_is_told(build: Build, flag: int, new: bool) -> None:
    define = f"-D_GLIBCXX_USE_CXX11_ABI={flag}"
    c10 = build("libc10.so", C10, define)
    assert elf.read(build("module.so", MODULE, define, c10)).cxx11_abi is new


def test_a_library_that_passes_torch_no_string_tells_no_abi(build: Build) -> None:
    source = "#include <string>\nint f(std::string); int g() { return f(std::string()); }"
    assert elf.read(build("module.so", source)).cxx11_abi is None


def test_versions_are_what_readelf_lists(build: Build) -> None:
    library = build("module.so", MODULE + '#include <cstdio>\nvoid f() { puts("x"); throw std::string(); }')

    def readelf(*flags: str) -> str:
        return subprocess.run(["readelf", "-W", *flags, library], check=True, capture_output=True, text=True).stdout

    read = elf.read(library)
    for family, highest in (("GLIBC", read.glibc), ("GLIBCXX", read.glibcxx)):
        numbers = [
            tuple(map(int, number.split("."))) for number in re.findall(rf"Name: {family}_([\d.]+) ", readelf("-V"))
        ]
        assert tuple(map(int, highest.split("."))) == max(numbers)
    listed = re.findall(r" UND (\S+?)(?:@(\S+))?(?: \(\d+\))?$", readelf("--dyn-syms"), re.MULTILINE)
    assert {name: version.lstrip("@") for name, version in listed} == {
        symbol.name: symbol.version for symbol in read.undefined
    }


def test_versions_are_compared_as_numbers() -> None:
    assert (
        elf._highest("GLIBC", ["GLIBC_2.2.5", "GLIBC_2.34", "GLIBC_2.4", "GLIBCXX_3.4.30", "GLIBC_PRIVATE"]) == "2.34"
    )
    assert elf._highest("GLIBC", ["GLIBCXX_3.4"]) == ""
    assert elf._highest("GLIBC", ["GLIBC_2.34", "GLIBC_" + "9" * 5000]) == "2.34"


def test_the_sizes_add_up_to_the_file(build: Build) -> None:
    source = "int table[5000] = {1}; int zero[100000]; int f(int i) { return table[i] + zero[i]; }"
    library = build("module.so", source + '\nasm(".section .nv_fatbin,\\"a\\"; .zero 4096; .previous");')
    sizes = elf.read(library).sizes
    assert sum(sizes.values()) == library.stat().st_size
    assert sizes["device"] == 4096
    assert 20_000 <= sizes["data"] < 30_000  # what is zero takes no room
    assert 0 < sizes["code"] < 4096
    assert sizes["rest"] > 0


def test_torch_symbols_are_those_of_its_namespaces_and_c_interfaces(build: Build) -> None:
    library = elf.read(build("module.so", MODULE))
    assert elf.torch_symbols(library.undefined) == tuple(
        sorted(
            [
                "_ZN2at7versionEv",
                "_ZN3c104goneEi",
                "_ZN3c104KeptD2Ev",
                "_ZTIN3c104KeptE",
                "aoti_torch_device",
                "_ZN3c106detail4failEPKcRKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE",
            ]
        )
    )


@pytest.mark.parametrize(
    ("name", "torchs"),
    [
        ("_ZNK3c107SymBool10guard_boolEPKcl", True),
        ("_ZN5torch8autograd4NodeD2Ev", True),
        ("_ZTVN6caffe28TypeMetaE", True),
        ("_ZTHN3c104impl26raw_local_dispatch_key_setE", True),
        ("torch_library_impl", True),
        ("_ZNSt6vectorIN2at6TensorESaIS1_EED1Ev", False),
        ("_ZSt4moveIRN3c106DeviceEEvOT_", False),
        ("_ZN5thing3c10Ev", False),
        ("cudaLaunchKernel", False),
        ("PyObject_Call", False),
        ("_ZNSsC1ERKSs", False),
    ],
)
def test_whose_a_symbol_is(name: str, torchs: bool) -> None:
    assert bool(elf.torch_symbols([Symbol(name)])) is torchs
    assert elf.torch_symbols([Symbol(name, weak=True)]) == ()


def test_what_torch_does_not_define_is_missing(build: Build, tmp_path: Path) -> None:
    module = build("module.so", MODULE)
    folder = tmp_path / "lib"
    folder.mkdir()
    build("libc10.so", C10.replace("void gone(int) {}", "")).rename(folder / "libc10.so")
    assert elf.missing_symbols(module, folder) == ("_ZN3c104goneEi",)
    build("libmore.so", "namespace c10 { void gone(int) {} }").rename(folder / "libmore.so")
    assert elf.missing_symbols(module, folder) == ()
    assert elf.missing_symbols(module, tmp_path / "nothing") == elf.torch_symbols(elf.read(module).undefined)


def test_what_is_hidden_or_local_is_not_defined_for_others(build: Build) -> None:
    source = (
        'static int a() { return 1; } __attribute__((visibility("hidden"))) int b() { return a(); }'
        "int c() { return b(); } __attribute__((weak)) int d() { return 2; } extern int e; int f() { return e; }"
    )
    assert {"_Z1cv", "_Z1dv", "_Z1fv"} == {name for name in elf.defined(build("l.so", source)) if name.startswith("_Z")}
    assert "e" not in elf.defined(build("l.so", source))


def test_the_stand_in_of_the_driver_defines_what_a_module_wants(build: Build, tmp_path: Path) -> None:
    stand_in = ops.driver_stand_in(build("module.so", MODULE), tmp_path)
    assert "cuInit" in elf.defined(stand_in)


# --- damage ---


@pytest.mark.parametrize(
    "content", [b"", b"no ELF file", b"\x7fELF", b"PK\x03\x04" + bytes(100), b"\x7fELF\x01" + bytes(99)]
)
def test_what_is_no_elf_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "module.so").write_bytes(content)
    for read in (elf.read, elf.defined):
        with pytest.raises(ElfError):
            read(tmp_path / "module.so")


def test_a_library_that_is_cut_short_anywhere_is_refused(build: Build, tmp_path: Path) -> None:
    whole = build("module.so", MODULE).read_bytes()
    cut = tmp_path / "cut.so"
    for size in [*range(0, len(whole) - 1, 97), len(whole) - 1]:
        cut.write_bytes(whole[:size])
        with pytest.raises(ElfError, match="not a complete ELF file"):
            elf.read(cut)


def test_a_section_beyond_the_end_is_damage(build: Build) -> None:
    whole = bytearray(build("module.so", MODULE).read_bytes())
    (table,) = struct.unpack_from("<Q", whole, 40)
    struct.pack_into("<Q", whole, table + 64 * 3 + 32, len(whole))
    with pytest.raises(ElfError, match="a section ends"):
        elf.Image(io.BytesIO(whole))


def test_a_damaged_library_is_refused_or_read_but_never_trips(
    build: Build, tmp_path: Path, chance: random.Random
) -> None:
    whole = build("module.so", MODULE).read_bytes()
    (table,) = struct.unpack_from("<Q", whole, 40)
    hit = tmp_path / "hit.so"
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        start, end = chance.choice([(0, 64), (64, 4096), (table, len(whole))])
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(start, end)] = chance.choice([0, 1, 0x7F, 0xFF])
        hit.write_bytes(content)
        try:
            elf.read(hit)
        except ElfError:
            refused += 1
    assert 0 < refused < 300


# --- the real ones ---


def test_this_python_is_read() -> None:
    library = elf.read(Path(sys.executable).resolve())
    assert library.glibc
    assert sum(library.sizes.values()) == Path(sys.executable).stat().st_size


def test_torch_defines_what_the_wheel_wants(
    wheel: Path, plan: Plan, build_python: Path, all_recipes: tuple[recipes.Loaded, ...], tmp_path: Path
) -> None:
    torch = next(loaded.recipe.torch for loaded in all_recipes if loaded.recipe.name == plan.recipe)
    asked = subprocess.run(
        [build_python, "-c", "import importlib.util as u; print(*u.find_spec('torch').submodule_search_locations)"],
        check=True,
        capture_output=True,
        text=True,
    )
    folder = Path(asked.stdout.strip()) / "lib"
    for planned in plan.modules:
        with zipfile.ZipFile(wheel) as archive:
            module = Path(archive.extract(planned.path, tmp_path))
        library = elf.read(module)
        assert len(elf.torch_symbols(library.undefined)) > 20
        assert elf.missing_symbols(module, folder) == ()
        assert library.cxx11_abi is torch.cxx11_abi
        assert library.sizes["device"] > library.sizes["code"]
    # One that another torch had, and this one has not.
    content = module.read_bytes()
    symbol = next(name for name in elf.torch_symbols(library.undefined) if name.startswith("_ZN3c104"))
    module.write_bytes(content.replace(symbol.encode() + b"\0", symbol[:-1].encode() + b"Q\0"))
    assert elf.missing_symbols(module, folder) == (symbol[:-1] + "Q",)


def test_objects_are_the_same_whatever_the_name_of_the_source(tmp_path: Path) -> None:
    """As nvcc's are, whose temporary files have random names."""
    texts = {"a.cpp": "int f() { return 1; }", "longer.cpp": "int f() { return 1; }", "b.cpp": "int f() { return 2; }"}
    texts["c.cpp"] = "int g() { return 1; }"
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        subprocess.run(["g++", "-c", name], cwd=tmp_path, check=True)
    one = tmp_path / "a.o"
    assert one.read_bytes() != (tmp_path / "longer.o").read_bytes()
    assert elf.same_objects(one, tmp_path / "longer.o")
    assert not elf.same_objects(one, tmp_path / "b.o")
    assert not elf.same_objects(one, tmp_path / "c.o")
