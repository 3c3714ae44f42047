"""Names read from symbols, compared with those of binutils' c++filt."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from dca.binaries import elf, mangled
from dca.binaries.mangled import MangledError, Name

needs_filter = pytest.mark.skipif(shutil.which("c++filt") is None, reason="there is no c++filt")

SOURCE = """
#include <array>
#include <functional>
#include <map>
#include <string>
#include <vector>
#define OUT __attribute__((visibility("default"), used, noinline))
namespace outer { namespace inner {
template <class T, int N> struct Box {
    template <class U> struct Deep { U u; OUT Deep(); OUT ~Deep() {} OUT operator int() const { return 1; } };
    OUT T get() const volatile { return T(); }
    OUT bool operator()(const Box&, T* const*) && { return true; }
};
template <class T, int N> template <class U> Box<T, N>::Deep<U>::Deep() {}
template struct Box<float, -3>;
template struct Box<float, -3>::Deep<std::string>;
enum class Kind { one, two };
template <Kind K, bool B, class... Ts> OUT Kind pack(Ts... values) { return K; }
template Kind pack<Kind::two, true, int, Box<char, 0>*, decltype(nullptr)>(int, Box<char, 0>*, decltype(nullptr));
template Kind pack<Kind::one, false>();
template <void (*F)(int*)> OUT void call(int* p) { F(p); }
OUT inline void target(int* p) { *p = 1; }
template void call<&target>(int*);
template <template <class, class> class C, class T> OUT void outer_of(const C<T, std::allocator<T>>&) {}
template void outer_of<std::vector, std::map<std::string, Box<int, 2>>>(
    const std::vector<std::map<std::string, Box<int, 2>>>&);
template <class T> OUT auto sum(T a, T b) -> decltype(a + b) { return a + b; }
template double sum<double>(double, double);
template <class T, std::enable_if_t<(sizeof(T) > 2 && !std::is_same<T, float>::value), int> = 0> OUT void only(T) {}
template void only<long>(long);
template <class T> OUT typename std::enable_if<(sizeof(T) == 1 || T(-1) < T(0)), T>::type guarded(T t) { return t; }
template int guarded<int>(int);
OUT void arrays(int (&)[4][2], const char* const (*)[3], int Box<int, 2>::*, long (Box<int, 2>::*)(char) const) {}
OUT void calls(std::function<void(const std::string&, int)>, int (*)(double) noexcept, char&&, __int128, _Float16) {}
template <class F> OUT void run(F f) { f(1); }
OUT inline void lambdas() { run([](int) {}); run([](auto) {}); struct Local { void operator()(int) {} }; run(Local()); }
void (*keep)() = lambdas;
OUT Box<int, 2> operator+(const Box<int, 2>& a, const Box<int, 2>&) { return a; }
OUT long double operator""_m(long double v) { return v; }
static OUT void hidden() {}
void (*keep_too)() = hidden;
struct Virtual { OUT virtual ~Virtual() {} OUT virtual void f(); };
OUT void Virtual::f() {}
struct More : Box<int, 2>, virtual Virtual { OUT void f() override; static thread_local std::string each; };
OUT void More::f() {}
thread_local std::string More::each = "x";
} }
OUT int plain(const std::vector<outer::inner::Box<int, 2>>&, std::vector<outer::inner::Box<int, 2>>*, ...) { return 0; }
"""


def plain(text: str) -> str:
    """What c++filt -p says, without template arguments and what else this reader leaves out."""
    text = re.sub(r"^(?:vtable|VTT|typeinfo name|typeinfo|guard variable|construction vtable) for ", "", text)
    text = re.sub(r"^(?:non-virtual|virtual) thunk to |^TLS (?:init|wrapper) function for |\[abi:\w+\]", "", text)
    text = re.sub(r"(?:CUB|THRUST)_\w+_NS::|_INTERNAL_\w+::", "", text)
    text = text.replace("(anonymous namespace)", "\1").replace("operator()", "\2")
    text = re.sub(r"\{lambda\([^{}]*\)#\d+\}", "{lambda}", text)
    depth, kept = 0, ""
    for letter in text:
        depth -= letter in ">)"
        kept += letter if depth == 0 and letter not in ">)" else ""
        depth += letter in "<("
        kept = kept.removesuffix(letter) if depth and letter in "<(" else kept
    return kept.replace(" const", "").replace("\1", "(anonymous namespace)").replace("\2", "operator()")


def filtered(symbols: list[str]) -> list[str]:
    done = subprocess.run(["c++filt", "-p"], input="\n".join(symbols), text=True, capture_output=True, check=True)
    return done.stdout.splitlines()


def kernels(file: Path) -> set[str]:
    """The mangled names of kernels in cubins that are not compressed: each has a section of code."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return {name.decode() for name in re.findall(rb"\0\.text\.(_Z\w+)(?=\0)", data)}


def unpacked(wheel: Path, folder: Path) -> list[Path]:
    with zipfile.ZipFile(wheel) as archive:
        return [Path(archive.extract(name, folder)) for name in archive.namelist() if name.endswith(".so")]


@pytest.mark.slow
@needs_filter
def test_every_name_of_a_compiled_library_is_what_cppfilt_says(tmp_path: Path) -> None:
    (tmp_path / "names.cpp").write_text(SOURCE)
    library = tmp_path / "names.so"
    words: list[str | Path] = ["g++", "-std=c++17", "-w", "-shared", "-fPIC", "-o", library, tmp_path / "names.cpp"]
    subprocess.run(words, check=True, capture_output=True)
    symbols = sorted(name for name in elf.defined(library) if name.startswith("_Z"))
    assert len(symbols) > 50
    # Only the texts differ: conversions name a type, and standard names are shorter here.
    differ = {"cv", "TC", "li"}
    wrong = [
        (symbol, text, mangled.read(symbol).text)
        for symbol, text in zip(symbols, filtered(symbols), strict=True)
        if not any(code in symbol for code in differ) and plain(text) != mangled.read(symbol).text
    ]
    assert wrong == []
    for symbol in symbols:
        mangled.uses_old_string(symbol)  # reads the whole signature


@needs_filter
def test_every_kernel_of_the_wheel_is_what_cppfilt_says(wheel: Path, tmp_path: Path) -> None:
    """DCA_TEST_WHEELS names a folder of more wheels, official ones for example."""
    more = os.environ.get("DCA_TEST_WHEELS")
    for path in [wheel, *sorted(Path(more).glob("*.whl") if more else [])]:
        symbols: set[str] = set()
        for file in unpacked(path, tmp_path):
            symbols |= kernels(file)
            file.unlink()
        names = sorted(symbols)
        assert len(names) > 100
        # c++filt gives back what it cannot read.
        wrong = [
            (symbol, text)
            for symbol, text in zip(names, filtered(names), strict=True)
            if text != symbol and plain(text) != mangled.read(symbol).text
        ]
        assert wrong == []
        for symbol in names:
            mangled.uses_old_string(symbol)


@pytest.mark.parametrize(
    ("symbol", "text", "arguments"),
    [
        ("_Z5plainPf", "plain", ()),
        ("_ZL6hiddenv", "hidden", ()),
        ("_ZN2ns1fILi3EEEvv", "ns::f", ("",)),
        ("_ZNSt6vectorIiSaIiEE9push_backERKi", "std::vector::push_back", ()),
        ("_ZN2ns3runINS_1SIfEEEEvT_Pf", "ns::run", ("ns::S",)),
        ("_ZN33_GLOBAL__N__b6f98499_4_t_cu_plain4anonILi3EEEvPf", "(anonymous namespace)::anon", ("",)),
        ("_ZN45_INTERNAL_2400c3dc_14_gguf_kernel_cu_cd2413194dotsEPKv", "dots", ()),
        ("_ZN3cub17CUB_200700_520_NS11EmptyKernelIvEEvv", "cub::EmptyKernel", ("",)),
        ("_ZTVN3c1013intrusive_ptrIiEE", "c10::intrusive_ptr", ("",)),
        ("_ZThn16_N1A1fEv", "A::f", ()),
        ("_ZZN1A1fEvENKUlvE_clEv", "A::f::{lambda}::operator()", ()),
        ("_ZTHN3c104impl3keyE", "c10::impl::key", ()),
        ("_Z1fIJ1A1BEEvDpT_", "f", ("A", "B")),
    ],
)
def test_names(symbol: str, text: str, arguments: tuple[str, ...]) -> None:
    name = mangled.read(symbol)
    assert (name.text, tuple(argument.text for argument in name.arguments)) == (text, arguments)


def test_arguments_have_arguments() -> None:
    (guard,) = mangled.read("_ZN1k3runIN1f5guardINS1_2OpIfEEEEEEvv").arguments
    assert guard == Name("f::guard", (Name("f::Op", (Name(""),)),))


@pytest.mark.parametrize(
    ("symbol", "old"),
    [
        ("_ZN3c106detail14torchCheckFailEPKcS2_jRKSs", True),
        ("_ZN3c106detail14torchCheckFailEPKcS2_jRKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE", False),
        ("_ZN3c1011SsNotAStrng5ClassEi", False),
    ],
)
def test_the_old_string_is_told_by_the_signature(symbol: str, old: bool) -> None:
    assert mangled.uses_old_string(symbol) is old


@pytest.mark.parametrize(
    "symbol",
    [
        "",
        "main",
        "_Z",
        "_ZN",
        "_ZN3c10",
        "_ZN9c10E",
        "_ZNS_1fEv",
        "_ZN1fIXzzEEv",
        "_ZN1aIS",
        pytest.param("_Z" + "9" * 5000, id="a long number"),
        pytest.param("_Z1fIS" + "9" * 5000 + "_Ev", id="a long number of a substitution"),
        pytest.param("_Z1f" + "i" * 40_000, id="a long symbol"),
        pytest.param("_ZN" + "1a" * 15_000 + "E", id="a name of many parts"),
    ],
)
def test_what_is_no_mangled_name_is_refused(symbol: str) -> None:
    with pytest.raises(MangledError):
        mangled.read(symbol)


def test_a_name_that_is_cut_off_is_refused_or_read_but_never_trips() -> None:
    symbol = (
        "_ZN7cutlass13device_kernelIN5flash19enable_sm80_to_sm89INS1_3FwdILi8ELb1EN4cute5tupleIJNS4_1CILi1E"
        "EEEEEEEEEEEvNT_6ParamsE"
    )
    assert mangled.read(symbol).arguments[0].arguments[0].text == "flash::Fwd"
    for size in range(len(symbol)):
        for read in (mangled.read, mangled.uses_old_string):
            try:
                read(symbol[:size])
            except MangledError:
                continue


def test_a_name_nested_beyond_measure_is_refused() -> None:
    with pytest.raises(MangledError):
        mangled.read("_Z1fI" + "P" * 100_000 + "i")
