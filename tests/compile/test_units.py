"""Sources that are compiled as one: which go together, and what happens when they do not compile."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from dca.compile import cpp, units
from dca.foundation import documents, store

SOURCE = """
#include "a.h"
// void in_a_comment() {}
#define BLOCK(name) \\
  void name() {}
namespace vllm {
template <typename T, int N>
__device__ __forceinline__ T silu(const T& x) {
  if (x > 0) { return x; }
  auto inner = [](int y) { return y; };
  return x / (T)(1 + expf(-(float)x));
}
namespace detail { struct Pair : Base<int> { void method() {} }; }
void declared(int x);
__global__ void __launch_bounds__(1024, 2) kernel(int* out, int (*f)(int)) { out[0] = f('{'); }
}  // namespace vllm
namespace { int hidden() { return 1; } }
extern "C" { void plain() { const char* text = "void in_a_string() {"; } }
void ns::method() const { }
"""


def test_the_names_that_a_source_defines() -> None:
    assert cpp.defined_names(SOURCE) == {
        "vllm::silu",
        "vllm::detail::Pair",
        "vllm::kernel",
        "hidden",
        "plain",
        "method",
    }
    assert cpp.defined_macros(SOURCE) == {"BLOCK"}


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Path]:
    """Four sources of which two define the same function."""
    texts = {
        "big.cu": "void big() {}\n" + ";" * 1000,
        "one.cu": "#define N 1\nvoid one() {}\nvoid same() {}\n",
        "two.cu": "void two() {}\nvoid same() {}\n",
        "sub/three.cu": "void three() {}\n",
    }
    for name, text in texts.items():
        store.write_bytes(tmp_path / "src" / name, text.encode())
    return {Path(name).stem: tmp_path / "src" / name for name in texts}


def test_every_source_is_in_one_unit_and_equal_names_are_apart(tree: dict[str, Path]) -> None:
    for count, order in itertools.product((1, 2, 3), itertools.permutations(tree.values())):
        arranged = units.arrange(order, count)
        assert sorted(itertools.chain(*arranged)) == sorted(order)
        assert len(arranged) == max(count, 2)
        assert not any({tree["one"], tree["two"]} <= set(unit) for unit in arranged)
    # About the same length of text, and the order of the list within.
    assert units.arrange(list(tree.values())) == ((tree["big"], tree["two"]), (tree["one"], tree["three"]))


def test_a_unit_holds_no_path_of_this_machine_and_no_macro_of_the_source_before(
    tree: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "generated/_C.units-1.cu"
    text = units.text([tree["one"], tree["three"]], file)
    assert text.splitlines()[1:] == ['#include "../src/one.cu"', "#undef N", '#include "../src/sub/three.cu"']
    store.write_bytes(file, text.encode())
    assert units.sources_of(file) == (tree["one"], tree["three"])


def test_sources_that_need_the_same_dear_headers_go_together(tmp_path: Path) -> None:
    texts = {
        "long.cu": ";" * 10_000 + "\nauto a = torch::from_blob(p, n);\n",
        "makes.cu": "auto a = torch::empty({1}, options);\n",
        "sorts.cu": ";" * 8_000 + "\n#include <cub/cub.cuh>\n",
        "sums.cu": "  # include <cub/util_type.cuh>\n",
        "plain.cu": "torch::Tensor a; // torch::empty({1})\n",
    }
    for name, text in texts.items():
        store.write_bytes(tmp_path / name, text.encode())
    arranged = units.arrange([tmp_path / name for name in texts])
    assert [[path.name for path in unit] for unit in arranged] == [
        ["long.cu", "makes.cu"],
        ["sorts.cu", "sums.cu", "plain.cu"],
    ]
    factories = [units.FACTORIES in units.text(unit, tmp_path / "generated/u.cu") for unit in arranged]
    assert factories == [True, False]
    # What did not compile is given everything.
    plain = tmp_path / "plain.cu"
    factories = [units.FACTORIES in units.text([plain], tmp_path / "generated/u.cu", alone) for alone in ((), {plain})]
    assert factories == [False, True]


def test_what_does_not_compile_is_taken_apart_down_to_its_sources(tree: dict[str, Path], tmp_path: Path) -> None:
    documents.write(units.Apart(placed="p"), tmp_path / units.APART)
    generated = tmp_path / "generated"
    store.write_bytes(generated / "u-1.cu", units.text([tree["one"], tree["three"]], generated / "u-1.cu").encode())
    store.write_bytes(generated / "u-2.cu", units.text([tree["big"]], generated / "u-2.cu").encode())
    store.write_bytes(generated / "other.cpp", b"")
    assert not units.take_apart(tmp_path, ["other.cpp.o", "gone.cu.o"])
    assert units.take_apart(tmp_path, ["u-1.cu.o"])
    apart = units.Apart.read(tmp_path, "p")
    assert apart.alone == {tree["one"], tree["three"]}
    assert not apart.plain
    assert units.take_apart(tmp_path, ["u-2.cu.o", "u-1.cu.o"])
    apart = units.Apart.read(tmp_path, "p")
    # A source by itself is tried once more with everything, and then with torch's own headers.
    assert tree["big"] in apart.alone
    assert not apart.plain & {tree["big"]}
    assert units.take_apart(tmp_path, ["u-2.cu.o"])
    assert units.Apart.read(tmp_path, "p").plain >= {tree["big"]}
    store.write_bytes(generated / f"_C{units.BINDINGS}", b"")
    assert units.take_apart(tmp_path, [f"_C{units.BINDINGS}.o"])
    assert units.Apart.read(tmp_path, "p").plain == {tree["big"], generated / f"_C{units.BINDINGS}"}
    # The same failure again is not the units' fault.
    assert not units.take_apart(tmp_path, ["u-2.cu.o", "u-1.cu.o"])
    # Of other sources nothing is known.
    assert units.Apart.read(tmp_path, "another") == units.Apart(placed="another")
    alone = units.arrange([tree["one"], tree["three"], tree["two"]], alone={tree["one"], tree["three"]})
    assert alone == ((tree["two"],), (tree["one"],), (tree["three"],))
