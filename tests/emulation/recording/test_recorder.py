"""What the recorder keeps of launches, and what it says of their kernels, without a device."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dca.binaries import fatbin
from dca.emulation import forms, images, recording
from dca.emulation.ptx import parser
from dca.emulation.recording import MOST_OF_A_KERNEL, Recorder, Recording, Told, Wish
from dca.foundation import documents
from dca.foundation.errors import DcaError
from tests.support import fat_modules, fatbins

PTX = Path(__file__).with_name("kernels.ptx").read_text()
NOISE = random.Random(5)


def kernel(body: str) -> str:
    """A PTX text with a kernel of these instructions."""
    return f""".version 7.0
.target sm_80
.address_size 64
.func helper() {{ .reg .f32 %x; ex2.approx.f32 %x, %x; ret; }}
.visible .entry k() {{ .reg .f32 %x; .reg .b32 %r<9>; .reg .b16 %h; .reg .f64 %d; .reg .b64 %a; {body} ret; }}
"""


@pytest.mark.parametrize(
    ("body", "loose", "within"),
    [
        ("fma.rn.f32 %x, %x, %x, %x; div.rn.f32 %x, %x, %x;", [], 0.0),
        ("add.f32 %x, %x, %x; sub.f32 %x, %x, %x;", [], 0.0),
        ("mul.rn.f32 %x, %x, %x; add.f32 %x, %x, %x;", [], 0.0),
        ("mul.f32 %x, %x, %x; add.rn.f32 %x, %x, %x;", [], 0.0),
        ("mul.f32 %x, %x, %x; add.f64 %d, %d, %d;", [], 0.0),
        ("mul.lo.s32 %r1, %r1, %r1; add.s32 %r1, %r1, %r1;", [], 0.0),
        ("atom.global.add.u32 %r1, [%a], %r1;", [], 0.0),
        ("mul.f32 %x, %x, %x; sub.f32 %x, %x, %x;", ["mul.f32", "sub.f32"], 2**-18),
        ("ex2.approx.ftz.f32 %x, %x;", ["ex2.approx.ftz.f32"], 2**-18),
        ("div.full.f32 %x, %x, %x;", ["div.full.f32"], 2**-18),
        ("atom.global.add.f32 %x, [%a], %x;", ["atom.global.add.f32"], 2**-18),
        ("red.global.add.f32 [%a], %x;", ["red.global.add.f32"], 2**-18),
        ("rcp.approx.f32 %x, %x; cvt.rn.bf16.f32 %h, %x;", ["rcp.approx.f32"], 2**-7),
        ("rcp.approx.f32 %x, %x; cvt.rn.f16.f32 %h, %x;", ["rcp.approx.f32"], 2**-10),
        ("cvt.rn.bf16.f32 %h, %x;", [], 0.0),
        ("call helper, ();", ["ex2.approx.f32"], 2**-18),
    ],
)
def test_instructions_say_whether_results_are_defined_to_the_bit(body: str, loose: list[str], within: float) -> None:
    found = forms.rounding(kernel(body), "k")
    assert (list(found.forms), found.within) == (loose, within)


@pytest.mark.parametrize(
    ("form", "loose"),
    [
        ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", True),
        ("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16", True),
        ("mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32", False),
        ("tanh.approx.f32", True),
        ("red.global.add.noftz.bf16x2", True),
        ("atom.global.max.s32", False),
        ("ld.global.f32", False),
    ],
)
def test_the_order_of_sums_in_matrix_products_is_open(form: str, loose: bool) -> None:
    assert bool(forms._LOOSE.match(form)) == loose


def bits(kind: str, numbers: list[float]) -> bytes:
    if kind == "float16":
        return struct.pack(f"<{len(numbers)}e", *numbers)
    single = struct.pack(f"<{len(numbers)}f", *numbers)
    return single if kind == "float32" else b"".join(single[at + 2 : at + 4] for at in range(0, len(single), 4))


@pytest.mark.parametrize("scale", [1e-2, 1.0, 100.0])
@pytest.mark.parametrize("rounded_to", ["bfloat16", "float16"])
def test_data_types_are_told_apart_by_their_values(rounded_to: str, scale: float) -> None:
    numbers = [NOISE.gauss(0, scale) for _ in range(1000)]
    for kind in (rounded_to, "float32"):
        content = bits(kind, numbers)
        assert recording.dtype(b"\xff" * len(content), content, rounded_to) == kind
    lists = struct.pack("<1000i", *(NOISE.randrange(1 << 20) for _ in range(1000)))
    assert recording.dtype(bytes(4000), lists, rounded_to) == ""


def test_a_text_without_its_other_kernels_is_ptx() -> None:
    for name in fatbin.bare(PTX.encode()).kernels:
        text = parser.only(PTX, name)
        module = parser.module(text)
        assert (set(module.kernels), set(module.variables)) == ({name}, {"counted"})
        assert parser.function(module, name).body


@pytest.mark.slow
def test_fat_binaries_of_a_module_are_taken_apart(tmp_path: Path) -> None:
    one, other = (fatbins.container(fatbins.entry(fatbins.PTX, arch)) for arch in (80, 90))
    module = fat_modules.build(tmp_path, (one, other))
    assert [container.content for container in images.containers(module)] == [one, other]
    (tmp_path / "image").write_bytes(one)
    assert [container.content for container in images.containers(tmp_path / "image")] == [one]
    (tmp_path / "text").write_bytes(fatbins.text(80))
    assert not list(images.containers(tmp_path / "text"))


@pytest.fixture
def module(tmp_path: Path) -> Path:
    file = tmp_path / "image"
    file.write_bytes(fatbins.container(fatbins.entry(fatbins.PTX, 80, PTX.encode() + b"\0")))
    return file


def told(module: Path, **changed: Any) -> Told:
    return Told.model_validate(
        {
            "module": str(module),
            "address": 0,
            "kernel": "exact",
            "label": "",
            "stream": 0,
            "grid": (1, 1, 1),
            "block": (32, 1, 1),
            "shared": 0,
            "parameters": "00" * 24,
            "offsets": [0],
            "pointers": [{"at": 0, "buffer": 1, "offset": 0}],
            "buffers": [{"number": 1, "bytes": 4, "before": True, "after": True}],
            "ran": True,
            "left_out": "",
            **changed,
        }
    )


class Place:
    """A recording with what was said to the user."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.said: list[str] = []
        self.folder = folder
        wish = Wish(folder, limit).prepared()
        self.recorder = Recorder(
            wish, "8.0", lambda place, kernel: images.read(*place).ptx(kernel, "8.0"), self.said.append
        )

    @property
    def document(self) -> Recording:
        (file,) = self.folder.glob("launches-*.json")
        return documents.read(Recording, file)

    def files(self) -> Iterator[Path]:
        return (self.folder / "files").iterdir()


def test_equal_contents_and_equal_launches_are_kept_once(module: Path, tmp_path: Path) -> None:
    place = Place(tmp_path / "launches", 1 << 20)
    moved = {"buffers": [{"number": 7, "bytes": 4, "before": True, "after": True}], "label": "again"}
    place.recorder.add(told(module), [b"aaaa", b"bbbb"])
    place.recorder.add(
        told(module, **moved, pointers=[{"at": 0, "buffer": 7, "offset": 0}], parameters="11" * 8 + "00" * 16),
        [b"aaaa", b"bbbb"],
    )
    assert (len(place.document.launches), place.document.left_out) == (1, {recording.AGAIN: 1})
    changes: tuple[dict[str, Any], ...] = (
        {"grid": (2, 1, 1)},
        {"parameters": "00" * 23 + "01"},
        {"pointers": [{"at": 0, "buffer": 1, "offset": 2}]},
    )
    for number, changed in enumerate(changes, start=2):
        place.recorder.add(told(module, **changed), [b"aaaa", b"bbbb"])
        assert len(place.document.launches) == number
    place.recorder.add(told(module), [b"bbbb", b"aaaa"])
    # Two contents, a PTX text and a fat binary.
    assert len(list(place.files())) == 4
    assert len(place.document.launches) == 5
    assert place.said == []


def test_enough_launches_of_one_kernel_leave_room_for_others(module: Path, tmp_path: Path) -> None:
    place = Place(tmp_path / "launches", 1 << 20)
    answers = [place.recorder.add(told(module), [b"aaaa", bytes([1, 2, 3, n])]) for n in range(MOST_OF_A_KERNEL)]
    assert answers == [""] * (MOST_OF_A_KERNEL - 1) + [recording.ENOUGH]
    assert place.recorder.add(told(module, kernel="approximate"), [b"aaaa", b"bbbb"]) == ""
    assert place.recorder.add(told(module, buffers=[], left_out="a reason"), []) == recording.ENOUGH
    assert len(place.document.launches) == MOST_OF_A_KERNEL + 1


def test_a_launch_beyond_the_limit_leaves_nothing_behind(module: Path, tmp_path: Path) -> None:
    place = Place(tmp_path / "launches", 20_000)
    place.recorder.add(told(module), [b"aaaa", b"bbbb"])
    before = set(place.files())
    large = NOISE.randbytes(15_000)
    place.recorder.add(
        told(module, buffers=[{"number": 1, "bytes": 15_000, "before": True, "after": True}]), [large, large[::-1]]
    )
    assert set(place.files()) == before
    assert len(place.document.launches) == 1
    assert "not recorded: a launch of exact: the recording would be larger than" in place.said[0]
    place.recorder.add(told(module), [b"aaaa", b"cccc"])
    assert len(place.document.launches) == 2


def test_a_fat_binary_takes_no_more_than_its_share(tmp_path: Path) -> None:
    file = tmp_path / "image"
    noise = fatbins.cubin(80, {"exact": 128}, extra=((".note", 7, NOISE.randbytes(9000)),))
    file.write_bytes(
        fatbins.container(
            fatbins.entry(fatbins.PTX, 80, PTX.encode() + b"\0"),
            fatbins.entry(fatbins.SASS, 90, fatbins.cubin(90)),
            fatbins.entry(fatbins.SASS, 80, noise.replace(b"exact", b"other")),
        )
    )
    place = Place(tmp_path / "launches", 16_000)
    place.recorder.add(told(file), [b"aaaa", b"bbbb"])
    assert place.document.fat_binaries == ()
    assert list(place.document.left_out) == ["a fat binary of image, for which there is no room"]
    assert len(place.document.launches) == 1


def test_what_the_device_leaves_out_is_counted(module: Path, tmp_path: Path) -> None:
    place = Place(tmp_path / "launches", 1 << 20)
    for _ in range(2):
        place.recorder.add(told(module, buffers=[], left_out="a reason"), [])
    assert place.said == ["not recorded: a launch of exact: a reason"]
    assert "not recorded: 2 (a reason)" in place.recorder.finish()
    assert (place.document.launches, place.document.left_out) == ((), {"a reason": 2})


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    for _ in range(2):
        Wish(tmp_path / "new").prepared()
    (tmp_path / "new" / "files" / "content").touch()
    for folder in (tmp_path, tmp_path / "file", tmp_path / "new"):
        (tmp_path / "file").touch()
        with pytest.raises(DcaError) as refused:
            Wish(folder).prepared()
        assert refused.value.code == "DCA-840"
