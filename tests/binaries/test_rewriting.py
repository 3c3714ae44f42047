"""Fat binaries of small modules are replaced: what is loaded, what tools read, and what is rejected."""

from __future__ import annotations

import io
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dca.binaries import elf, fatbin, rewriting
from dca.binaries.elf import ElfError
from dca.binaries.fatbin import FatbinError
from dca.binaries.rewriting import RewritingError
from tests.support import fat_modules
from tests.support.fatbins import PTX, SASS, container, cubin, entry

# Some pages each, so that there is something to cut out.
OLD = [container(entry(SASS, 80, cubin(80, {f"kernel{number}": 30_000})), entry(PTX, 80)) for number in range(4)]
EMPTY = container(entry(SASS, 80, cubin(80, {})), entry(SASS, 90, cubin(90, {})))
SMALL = container(entry(SASS, 90, cubin(90, {"kernel1": 600})))
# The third wrapper and the first share a container.
NEW = [EMPTY, SMALL, EMPTY, OLD[3]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A module of g++ with four containers."""
    return fat_modules.build(tmp_path_factory.mktemp("module"), OLD).read_bytes()


def written(content: bytes, folder: Path, name: str = "new.so") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def containers(content: bytes) -> list[bytes]:
    module = rewriting.read(content)
    return [module.container(slot) for slot in module.slots]


@pytest.mark.slow
def test_the_wrappers_and_their_containers_are_found(built: bytes) -> None:
    assert containers(built) == OLD


@pytest.mark.slow
def test_a_loaded_module_reaches_its_new_containers_and_is_as_much_smaller(built: bytes, tmp_path: Path) -> None:
    content = rewriting.replaced(rewriting.read(built), NEW)
    assert containers(content) == NEW
    unused = sum(map(len, OLD)) - sum(map(len, {*NEW}))
    assert 0 <= unused - (len(built) - len(content)) < 3 * 4096
    path = written(content, tmp_path)
    assert fat_modules.reached(path, [len(new) for new in NEW]) == NEW
    assert fat_modules.catches(path)
    code = fatbin.read(path)
    assert (code.sass, code.ptx, code.problems) == ({"8.0": 2, "9.0": 2}, {"8.0": 1}, ())


def test_the_same_module_and_containers_give_the_same_bytes(built: bytes) -> None:
    first, second = (rewriting.replaced(rewriting.read(bytes(built)), list(NEW)) for _ in range(2))
    assert first == second
    assert rewriting.replaced(rewriting.read(built), OLD) == built


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("-s",), ("-Wl,-z,max-page-size=0x10000",), ("-Wl,-z,noseparate-code",)])
def test_other_tools_read_a_rewritten_module(flags: tuple[str, ...], tmp_path: Path) -> None:
    before = fat_modules.build(tmp_path, OLD, *flags)
    path = written(rewriting.replaced(rewriting.read(before.read_bytes()), NEW), tmp_path)
    readelf = subprocess.run(["readelf", "-aW", path], text=True, capture_output=True, check=True)
    assert readelf.stderr == ""
    assert "Warning" not in readelf.stdout
    assert elf.read(path).needed == elf.read(before).needed
    subprocess.run(["strip", path], check=True, capture_output=True)
    assert fat_modules.reached(path, [len(new) for new in NEW]) == NEW
    assert fat_modules.catches(path)


def at(content: bytes, name: str) -> int:
    """The offset of a section."""
    section = elf.Image(io.BytesIO(content)).find(name)
    assert section is not None
    return section.offset


def with_word(section: str, offset: int, value: int, size: int = 8) -> Callable[[bytes], bytes]:
    """Writes a number into a section."""

    def edit(content: bytes) -> bytes:
        start = at(content, section) + offset
        return content[:start] + value.to_bytes(size, "little") + content[start + size :]

    return edit


def with_addend(change: Callable[[int], int]) -> Callable[[bytes], bytes]:
    """Changes where the relocation of the second wrapper points to."""

    def edit(content: bytes) -> bytes:
        place = rewriting.read(content).slots[1].addend
        (address,) = struct.unpack_from("<Q", content, place)
        return content[:place] + struct.pack("<Q", change(address)) + content[place + 8 :]

    return edit


def with_another_relocation(content: bytes) -> bytes:
    """A relocation elsewhere points into the containers too."""
    module = rewriting.read(content)
    place, first = at(content, ".rela.dyn"), module.slots[0].addend
    other = next(
        start
        for start in range(place, len(content), 24)
        if struct.unpack_from("<Q", content, start + 8)[0] == 8 and start + 16 not in {s.addend for s in module.slots}
    )
    return content[: other + 16] + content[first : first + 8] + content[other + 24 :]


def without_spare_header(content: bytes) -> bytes:
    """Every note's program header becomes one of an unknown type."""
    (table,), (count,) = struct.unpack_from("<Q", content, 32), struct.unpack_from("<H", content, 56)
    edited = bytearray(content)
    for start in range(table, table + 56 * count, 56):
        if struct.unpack_from("<I", edited, start)[0] == 4:
            struct.pack_into("<I", edited, start, 0x60000000)
    return bytes(edited)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        pytest.param(lambda content: content[:-10], "not a complete ELF file", id="cut off"),
        pytest.param(with_word(".nvFatBinSegment", 24, 0, 4), "is of an unknown kind", id="wrapper of another magic"),
        pytest.param(with_word(".nvFatBinSegment", 4, 2, 4), "is of an unknown kind", id="wrapper of another version"),
        pytest.param(with_word(".nvFatBinSegment", 16, 1), "is of an unknown kind", id="wrapper with a second address"),
        pytest.param(with_word(".nv_fatbin", 0, 0), "is not a fat binary", id="container without a header"),
        pytest.param(with_word(".nv_fatbin", 8, 1 << 40), "after the section", id="container that does not end"),
        pytest.param(with_addend(lambda address: address + 8), "is not a fat binary", id="inside of a container"),
        pytest.param(with_addend(lambda _: 0), "is none of a wrapper's address", id="outside of the containers"),
        pytest.param(with_another_relocation, "is none of a wrapper's address", id="another way to the containers"),
        pytest.param(without_spare_header, "none of its program headers is to spare", id="no spare header"),
        pytest.param(
            lambda content: content.replace(b".nvFatBinSegment", b".nvFatBinSegmenX"), "was linked", id="no wrappers"
        ),
        pytest.param(
            lambda content: content[:18] + struct.pack("<H", 183) + content[20:], "x86_64", id="another machine"
        ),
    ],
)
def test_what_is_laid_out_in_another_way_is_rejected(built: bytes, edit: Callable[[bytes], bytes], why: str) -> None:
    with pytest.raises((RewritingError, FatbinError, ElfError)) as rejected:
        rewriting.replaced(rewriting.read(edit(built)), NEW)
    assert why in str(rejected.value)


def test_containers_that_have_no_room_are_rejected(built: bytes) -> None:
    large = container(entry(SASS, 80, cubin(80, {"kernel": 200_000})))
    with pytest.raises(RewritingError, match="more than"):
        rewriting.replaced(rewriting.read(built), [large] * 4)


def test_a_damaged_module_is_rejected_or_rewritten_but_nothing_else(
    built: bytes, chance: random.Random, scale: Callable[[int], int]
) -> None:
    """Bytes of the headers and tables that are read here change at random."""
    wrappers, relocations = at(built, ".nvFatBinSegment"), at(built, ".rela.dyn")
    headers = [range(64), range(64, 64 + 56 * 11), range(len(built) - 64 * 34, len(built))]
    places = [*headers, range(wrappers, wrappers + 96), range(relocations, relocations + 600)]
    for _ in range(scale(5000)):
        content = bytearray(built)
        for _ in range(chance.randint(1, 3)):
            content[chance.choice(chance.choice(places))] = chance.choice([0, 1, 255, chance.randrange(256)])
        try:
            result = rewriting.replaced(rewriting.read(bytes(content)), NEW)
        except (RewritingError, FatbinError, ElfError):
            continue
        assert containers(result) == NEW
