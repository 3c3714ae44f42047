"""Replays recorded kernel launches on a GPU, and compares what they write with what the emulation wrote.

It needs the driver and Python 3.9 alone: neither torch, nor CUDA's toolkit, nor dca. This file and a recording are all
that must be carried to a machine with a GPU. `dca emulate --record DIR` makes the recording; its documents and values
are described in scripts/dca/emulation/recording.py.

Each launch is replayed with the machine code that its module has for the GPU, and with its PTX, which the driver
compiles. What it writes must be the same bits as in the emulation, unless the kernel has instructions whose results are
not defined to the bit; then values may differ by a bound that the recording states. Each recorded fat binary is loaded,
and each of its kernels looked up in it. Launches that were recorded without contents are timed: large buffers get
random values.

The exit status is 0 if nothing differs, 1 if something does, and 2 if nothing could be compared.
"""

from __future__ import annotations

import argparse
import array
import ctypes
import functools
import hashlib
import json
import math
import os
import random
import statistics
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

SCHEMA = "dca.launches/1"
# Attributes of a device and of a function (cuda.h).
_MAJOR, _MINOR = 75, 76
_MAX_DYNAMIC_SHARED = 8
# Without a driver's version of its own, a GPU, or with one that a kernel has stopped, no later call succeeds.
_STICKY = {700, 702, 714, 715, 716, 717, 718, 719}
# Bytes of random content that are made here; the rest of a buffer repeats them.
_TILE = 1 << 20
_REPEATS = 5
_MOST_SHOWN = 5
# Seconds after which nothing new is begun, and those after which a kernel that does not end is given up.
_SECONDS, _MORE_SECONDS = 400.0, 45.0
# In their order: the driver takes its time to compile PTX.
KINDS = ("cubin", "ptx")
PARTS = ("fat-binaries", "cubin", "times", "ptx")
PASS, FAIL, SKIPPED, TIME = "pass", "FAIL", "not tested", "time"


_NOTHING = "Nothing was compared; run this on a machine with a GPU."
# What a document that is not as it was written leads to.
_DAMAGE = (AttributeError, LookupError, TypeError, ValueError, OverflowError, struct.error, ctypes.ArgumentError)


class ProofError(Exception):
    """The recording, the driver or the GPU does not let this part of the proof run; its text says why."""


class LostError(ProofError):
    """A kernel has stopped the GPU's context: nothing can be run after it."""


class Driver:
    """The functions of libcuda that a replay calls, on the first GPU.

    Args:
        library: file name, or path of the library.

    Raises:
        ProofError: there is no driver or no GPU.
    """

    def __init__(self, library: str) -> None:
        try:
            self._cuda = ctypes.CDLL(library)
        except OSError as error:
            raise ProofError(f"no NVIDIA driver was found ({error}). {_NOTHING}") from None
        try:
            self.call("cuInit", ctypes.c_uint(0))
            device = ctypes.c_int()
            self.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        except ProofError as error:
            raise ProofError(f"no GPU was found ({error}). {_NOTHING}") from None
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, ctypes.c_int(len(name)), device)
        version = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.name = name.value.decode()
        self.cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
        self.arch = (self._attribute(_MAJOR, device), self._attribute(_MINOR, device))

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function.

        Raises:
            ProofError: it returned an error, or the driver does not have it.
        """
        found = getattr(self._cuda, function, None) or getattr(self._cuda, f"{function}_v2", None)
        if found is None:
            raise ProofError(f"the driver has no {function}; it is older than this proof supports")
        status = found(*arguments)
        if status:
            text = ctypes.c_char_p()
            known = self._cuda.cuGetErrorName(status, ctypes.byref(text)) == 0 and text.value
            kind = LostError if status in _STICKY else ProofError
            raise kind(f"{function} failed: {text.value.decode() if known and text.value else ''} ({status})")

    def _attribute(self, number: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(number), device)
        return value.value

    def load(self, code: bytes, function: str = "cuModuleLoadData") -> ctypes.c_void_p:
        """A module of a cubin, of PTX or of a fat binary."""
        module = ctypes.c_void_p()
        # PTX ends with a zero.
        self.call(function, ctypes.byref(module), ctypes.c_char_p(code + b"\0"))
        return module

    def unload(self, module: ctypes.c_void_p) -> None:
        """Give a module back."""
        self.call("cuModuleUnload", module)

    def function(self, module: ctypes.c_void_p, kernel: str) -> ctypes.c_void_p:
        """A kernel of a module."""
        function = ctypes.c_void_p()
        self.call("cuModuleGetFunction", ctypes.byref(function), module, kernel.encode())
        return function

    def alloc(self, size: int) -> int:
        """The address of a new buffer of some bytes."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def free(self, address: int) -> None:
        """Give a buffer back."""
        self.call("cuMemFree_v2", ctypes.c_uint64(address))

    def write(self, address: int, content: bytes) -> None:
        """Copy bytes to the device."""
        self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), content, ctypes.c_size_t(len(content)))

    def copy(self, to: int, source: int, size: int) -> None:
        """Copy bytes on the device."""
        self.call("cuMemcpyDtoD_v2", ctypes.c_uint64(to), ctypes.c_uint64(source), ctypes.c_size_t(size))

    def read(self, address: int, size: int) -> bytes:
        """Copy bytes from the device."""
        content = ctypes.create_string_buffer(size)
        self.call("cuMemcpyDtoH_v2", content, ctypes.c_uint64(address), ctypes.c_size_t(size))
        return content.raw

    def launch(self, function: ctypes.c_void_p, shape: dict[str, Any], parameters: bytes) -> None:
        """Start a kernel with the grid, the block and the shared memory of a recorded launch."""
        if shape["shared"]:
            self.call("cuFuncSetAttribute", function, ctypes.c_int(_MAX_DYNAMIC_SHARED), ctypes.c_int(shape["shared"]))
        held = ctypes.create_string_buffer(parameters, max(len(parameters), 1))
        each = (ctypes.c_void_p * max(len(shape["offsets"]), 1))(
            *(ctypes.addressof(held) + offset for offset in shape["offsets"])
        )
        numbers = [ctypes.c_uint(number) for number in (*shape["grid"], *shape["block"], shape["shared"])]
        self.call("cuLaunchKernel", function, *numbers, None, each, None)

    def wait(self) -> None:
        """Wait for everything that was started; a fault of a kernel is raised here."""
        self.call("cuCtxSynchronize")

    def milliseconds(self, function: ctypes.c_void_p, shape: dict[str, Any], parameters: bytes) -> float:
        """The median time of a launch, after one that warms up."""
        times = []
        begun, ended = ctypes.c_void_p(), ctypes.c_void_p()
        for event in (begun, ended):
            self.call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(0))
        try:
            for _ in range(1 + _REPEATS):
                self.call("cuEventRecord", begun, None)
                self.launch(function, shape, parameters)
                self.call("cuEventRecord", ended, None)
                self.call("cuEventSynchronize", ended)
                elapsed = ctypes.c_float()
                self.call("cuEventElapsedTime", ctypes.byref(elapsed), begun, ended)
                times.append(elapsed.value)
        finally:
            for event in (begun, ended):
                self.call("cuEventDestroy_v2", event)
        return statistics.median(times[1:])


@dataclass(frozen=True)
class Recording:
    """A folder of recorded launches, of which nothing is believed that its hashes do not confirm.

    Args:
        folder: where it is.
        documents: the launches of each process.
    """

    folder: Path
    documents: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Recording:
        """Read one.

        Raises:
            ProofError: it is missing, damaged, or of another version.
        """
        files = sorted(folder.glob("launches-*.json"))
        if not files:
            raise ProofError(f"there is no recording in {folder}; make one with `dca emulate --record DIR -- PROGRAM`.")
        documents = []
        for file in files:
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ProofError(f"{file} cannot be read: {error}. Copy the recording again.") from None
            if not isinstance(content, dict) or content.get("schema") != SCHEMA:
                raise ProofError(f"{file} is no document {SCHEMA}; record it again with this version of dca.")
            documents.append(content)
        return cls(folder, documents)

    def content(self, sha256: str) -> bytes:
        """A content by its hash.

        Raises:
            ProofError: its file is missing or damaged.
        """
        path = self.folder / "files" / Path(sha256).name
        try:
            content = zlib.decompress(path.read_bytes())
        except (OSError, zlib.error) as error:
            raise ProofError(f"{path} cannot be read: {error}. Copy the recording again.") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ProofError(f"{path} is damaged. Copy the recording again.")
        return content


@dataclass
class Row:
    """One line of the report.

    Args:
        claim: what it is about.
        verdict: PASS, FAIL, SKIPPED or TIME.
        detail: figures, or why it failed or was not tested.
        kernel: the symbol.
        label: what the program that was recorded said of the launch.
        launches: how many were replayed.
        values: how many values were compared.
        unequal: how many of them were not the same bits.
        largest: difference between values, relative to the larger of the expected value and the root mean square.
        within: the bound for that; 0 if bits must be equal.
        wrong: the first few differences beyond the bound.
        milliseconds: of a timed launch.
    """

    claim: str
    verdict: str = PASS
    detail: str = ""
    kernel: str = ""
    label: str = ""
    launches: int = 0
    values: int = 0
    unequal: int = 0
    largest: float = 0.0
    within: float = 0.0
    wrong: list[str] = field(default_factory=list)
    milliseconds: float | None = None

    def text(self) -> str:
        """The line, and what is wrong below it."""
        words = [f"{self.verdict:10}", self.claim]
        if self.values:
            bound = f"largest difference {self.largest:.2g} of {self.within:.2g}" if self.within else "bit for bit"
            words.append(f": {self.launches} launches, {self.values} values, {self.unequal} with other bits, {bound}")
        if self.milliseconds is not None:
            words.append(f": {self.milliseconds:.3f} ms")
        if self.detail:
            words.append(f": {self.detail}")
        return "\n           ".join([words[0] + " " + "".join(words[1:]), *self.wrong])


def _float32(bits: int) -> float:
    value: float = struct.unpack("<f", struct.pack("<I", bits))[0]
    return value


@functools.cache
def _table(dtype: str) -> list[float]:
    """The value of each 16 bits."""
    if dtype == "bfloat16":
        return [_float32(bits << 16) for bits in range(1 << 16)]
    return [value for (value,) in struct.iter_unpack("<e", array.array("H", range(1 << 16)).tobytes())]


def _values(content: bytes, dtype: str) -> Any:
    """A content as floats."""
    if dtype == "float32":
        return array.array("f", content)
    table = _table(dtype)
    return [table[bits] for bits in array.array("H", content)]


def compare(got: bytes, buffer: dict[str, Any], contents: tuple[bytes, bytes], row: Row) -> None:
    """Compare a buffer with its expected content, and note differences.

    Args:
        got: content on the GPU.
        buffer: of the recorded launch. With a `dtype`, values may differ by the row's bound; otherwise bits must be
            equal.
        contents: before and after the launch in the emulation.
        row: where it is noted.

    Raises:
        ProofError: the recording has another size for it.
    """
    before, want = contents
    if not len(got) == len(want) == len(before):
        raise ProofError(f"the recording has {len(want)} bytes for a buffer of {len(got)}")
    dtype = buffer["dtype"] if row.within else ""
    size = {"": 1, "float32": 4}.get(dtype, 2)
    row.values += len(want) // size
    if got == want:
        return
    whole = len(want) // size * size
    kind = {1: "B", 2: "H", 4: "I"}[size]
    first, second = array.array(kind, got[:whole]), array.array(kind, want[:whole])
    places = [place for place, (a, b) in enumerate(zip(first, second)) if a != b]
    row.unequal += len(places) + (got[whole:] != want[whole:])
    name = f"buffer {buffer['number']}"
    if got[whole:] != want[whole:]:
        _note(row, f"{name}: its last bytes differ")
    if not dtype:
        for place in places[:_MOST_SHOWN]:
            _note(row, f"{name}, byte {place}: {first[place]:#04x}, and {second[place]:#04x} in the emulation")
        return
    one, other = _values(got[:whole], dtype), _values(want[:whole], dtype)
    scale = _scale(other, array.array(kind, before[:whole]), second)
    for place in places:
        a, b = one[place], other[place]
        if a == b or (math.isnan(a) and math.isnan(b)):
            continue
        # An infinity or NaN in place of a number is a difference beyond any bound.
        finite = math.isfinite(a) and math.isfinite(b)
        difference = abs(a - b) / max(scale, abs(b)) if finite else math.inf
        row.largest = max(row.largest, difference)
        if difference > row.within:
            _note(row, f"{name}, {dtype} {place}: {a!r}, and {b!r} in the emulation")


def _scale(values: Any, before: Any, after: Any) -> float:
    """The root mean square of the finite values that the launch wrote; tiny, but not 0, if all are 0."""
    written = [value for value, a, b in zip(values, before, after) if a != b and math.isfinite(value)]
    return math.sqrt(sum(value * value for value in written) / len(written)) or 1e-30 if written else 1e-30


def _note(row: Row, text: str) -> None:
    row.verdict = FAIL
    if len(row.wrong) < _MOST_SHOWN:
        row.wrong.append(text)


@functools.cache
def _random(dtype: str) -> bytes:
    """A tile of normally distributed values."""
    chance = random.Random(0)  # noqa: S311  # inputs of kernels
    floats = [chance.gauss(0.0, 1.0) for _ in range(_TILE // 4)]
    if dtype == "float16":
        return struct.pack(f"<{len(floats)}e", *floats) * 2
    single = struct.pack(f"<{len(floats)}f", *floats)
    return array.array("H", single)[1::2].tobytes() * 2 if dtype == "bfloat16" else single


class Buffers:
    """The buffers of a launch, or of launches that follow each other.

    Args:
        driver: of the GPU.
        recording: with the contents.
    """

    def __init__(self, driver: Driver, recording: Recording) -> None:
        self._driver, self._recording = driver, recording
        self._addresses: dict[int, int] = {}
        # The content that the program has written last.
        self._written: dict[int, str] = {}

    def prepare(self, launch: dict[str, Any], dtype: str) -> bytes:
        """Allocate and fill a launch's buffers; the parameters with their addresses.

        A content that the program has not changed since the last launch is not written again: kernels may have.

        Args:
            launch: as recorded.
            dtype: of random values.
        """
        for buffer in launch["buffers"]:
            number, size = buffer["number"], buffer["bytes"]
            known = number in self._addresses
            if not known:
                self._addresses[number] = self._driver.alloc(size)
            if buffer["before"] and self._written.get(number) != buffer["before"]:
                content = self._recording.content(buffer["before"])
                if len(content) != size:
                    raise ProofError(f"the recording has {len(content)} bytes for a buffer of {size}")
                self._driver.write(self._addresses[number], content)
                self._written[number] = buffer["before"]
            elif not buffer["before"] and not known:
                self._fill(self._addresses[number], size, dtype)
        parameters = bytearray.fromhex(launch["parameters"])
        for pointer in launch["pointers"]:
            struct.pack_into("<Q", parameters, pointer["at"], self._addresses[pointer["buffer"]] + pointer["offset"])
        return bytes(parameters)

    def _fill(self, address: int, size: int, dtype: str) -> None:
        done = min(_TILE, size)
        self._driver.write(address, _random(dtype)[:done])
        while done < size:
            part = min(done, size - done)
            self._driver.copy(address + done, address, part)
            done += part

    def read(self, buffer: dict[str, Any]) -> bytes:
        """What a buffer contains now."""
        return self._driver.read(self._addresses[buffer["number"]], buffer["bytes"])

    def keep(self, numbers: Iterable[int]) -> None:
        """Give back all other buffers."""
        for number in set(self._addresses) - set(numbers):
            self._driver.free(self._addresses.pop(number))
            self._written.pop(number, None)


def _fits(code: dict[str, Any], gpu: tuple[int, int]) -> bool:
    """Whether a driver takes code for a GPU: machine code of its generation, or PTX of none that is newer."""
    number, restriction = code["arch"].rstrip("af"), code["arch"][-1]
    major, _, minor = number.partition(".")
    arch = int(major), int(minor)
    if restriction == "a":
        return arch == gpu
    return arch <= gpu and (arch[0] == gpu[0] or (code["kind"] == "ptx" and restriction != "f"))


class Proof:
    """Tests every claim of a recording.

    Args:
        driver: of the GPU.
        recording: of launches.
        parts: of `PARTS`.
        end: when nothing new is begun, of `time.monotonic`.
    """

    def __init__(self, driver: Driver, recording: Recording, parts: Iterable[str], end: float) -> None:
        self._driver, self._recording, self._end = driver, recording, end
        self._parts = [part for part in PARTS if part in parts]
        # What is timed.
        self._kinds = tuple(kind for kind in KINDS if kind in self._parts) or KINDS
        self._lost = ""

    def rows(self) -> Iterator[Row]:
        """The rows of the report, each as soon as it is known."""
        steps: dict[str, Callable[[dict[str, Any]], Iterator[tuple[Row, Any]]]] = {
            "fat-binaries": self._loads,
            "times": self._times,
            **{kind: partial(self._replays, kind=kind) for kind in KINDS},
        }
        for part in self._parts:
            for document in self._recording.documents:
                yield from self._readable(steps[part](document))

    def _readable(self, claims: Iterator[tuple[Row, Any]]) -> Iterator[Row]:
        try:
            yield from self._guarded(claims)
        except _DAMAGE as error:
            yield Row("the recording can be read", FAIL, f"it is damaged: {error!r}")

    def _guarded(self, claims: Iterator[tuple[Row, Any]]) -> Iterator[Row]:
        """Test claims; what stops one of them fails it alone, unless it has stopped the GPU."""
        for row, test in claims:
            if self._lost or time.monotonic() > self._end:
                row.verdict, row.detail = SKIPPED, self._lost or "the time is up"
                yield row
                continue
            try:
                test(row)
            except (ProofError, *_DAMAGE) as error:
                row.verdict = FAIL
                row.detail = str(error) if isinstance(error, ProofError) else f"the recording is damaged ({error!r})"
                if isinstance(error, LostError):
                    self._lost = f"an earlier kernel stopped the GPU ({row.claim})"
            yield row

    def _loads(self, document: dict[str, Any]) -> Iterator[tuple[Row, Any]]:
        for entry in document["fat_binaries"]:
            place = f"{entry['module']}, fat binary {entry['sha256'][:8]}"
            yield Row(f"{place} loads, with its {len(entry['kernels'])} kernels"), partial(self._load, entry=entry)

    def _load(self, row: Row, entry: dict[str, Any]) -> None:
        module = self._driver.load(self._recording.content(entry["sha256"]), "cuModuleLoadFatBinary")
        for row.kernel in entry["kernels"]:
            self._driver.function(module, row.kernel)
        row.kernel = ""
        self._driver.unload(module)

    def _replays(self, document: dict[str, Any], kind: str) -> Iterator[tuple[Row, Any]]:
        for number, kernel in enumerate(document["kernels"]):
            launches = [one for one in document["launches"] if one["kernel"] == number and one["ran"]]
            if launches:
                row = Row(f"{kernel['family']} [{number}], {kind}", kernel=kernel["name"])
                row.within = kernel["rounding"]["within"]
                yield row, partial(self._replay, kernel=kernel, launches=launches, kind=kind)

    def _replay(self, row: Row, kernel: dict[str, Any], launches: list[dict[str, Any]], kind: str) -> None:
        function, module = self._function(kernel, (kind,))
        if function is None:
            archs = ", ".join(sorted({code["arch"] for code in kernel["code"] if code["kind"] == kind})) or "none"
            row.verdict, row.detail = SKIPPED, f"its module has no {kind} for this GPU (it has {archs})"
            return
        for launch in launches:
            buffers = Buffers(self._driver, self._recording)
            try:
                parameters = buffers.prepare(launch, kernel["rounding"]["to"])
                self._driver.launch(function, launch, parameters)
                self._driver.wait()
                row.launches += 1
                shown = len(row.wrong)
                for buffer in launch["buffers"]:
                    contents = tuple(map(self._recording.content, (buffer["before"], buffer["after"])))
                    compare(buffers.read(buffer), buffer, (contents[0], contents[1]), row)
                if launch["label"]:
                    row.wrong[shown:] = [f"{launch['label']}: {text}" for text in row.wrong[shown:]]
            except LostError:
                raise
            except ProofError:
                buffers.keep(())
                raise
            buffers.keep(())
        self._driver.unload(module)

    def _function(self, kernel: dict[str, Any], kinds: tuple[str, ...]) -> tuple[Any, Any]:
        """A kernel of the best code of the first of some kinds that this GPU takes, with its module."""
        for kind in kinds:
            fits = [code for code in kernel["code"] if code["kind"] == kind and _fits(code, self._driver.arch)]
            if fits:
                best = max(fits, key=lambda code: tuple(map(int, code["arch"].rstrip("af").split("."))))
                module = self._driver.load(self._recording.content(best["sha256"]))
                return self._driver.function(module, kernel["name"]), module
        return None, None

    def _times(self, document: dict[str, Any]) -> Iterator[tuple[Row, Any]]:
        """Launches without contents, in their order: one may read what an earlier one has written."""
        launches = [one for one in document["launches"] if not one["ran"]]
        buffers = Buffers(self._driver, self._recording)
        functions: dict[int, Any] = {}
        for place, launch in enumerate(launches):
            kernel = document["kernels"][launch["kernel"]]

            def test(row: Row, launch: Any = launch, kernel: Any = kernel, place: int = place) -> None:
                if launch["kernel"] not in functions:
                    functions[launch["kernel"]], _ = self._function(kernel, self._kinds)
                function = functions[launch["kernel"]]
                if function is None:
                    row.verdict, row.detail = SKIPPED, "its module has no code for this GPU"
                    return
                parameters = buffers.prepare(launch, kernel["rounding"]["to"])
                row.milliseconds = self._driver.milliseconds(function, launch, parameters)
                row.launches = 1 + _REPEATS
                buffers.keep(one["number"] for later in launches[place + 1 :] for one in later["buffers"])

            label = launch["label"]
            yield Row(f"{label or 'a launch'}, {kernel['family']}", TIME, kernel=kernel["name"], label=label), test


def ratios(rows: list[Row]) -> Iterator[str]:
    """Sparse against dense attention, by the labels "… sparse …" and "… dense" of timed launches."""
    total: dict[str, float] = {}
    for row in rows:
        if row.milliseconds is not None:
            total[row.label] = total.get(row.label, 0.0) + row.milliseconds
    for label, sparse in total.items():
        dense = total.get(f"{label.partition(' sparse')[0]} dense", 0.0)
        if " sparse" in label and sparse and dense:
            yield f"{label}: {sparse:.3f} ms; dense: {dense:.3f} ms, {dense / sparse:.2f} times as much"


def verdict(rows: list[Row]) -> tuple[int, str]:
    """The exit status, and the last line."""
    held, failed, skipped = (sum(row.verdict == one for row in rows) for one in (PASS, FAIL, SKIPPED))
    text = f"{held} claims hold, {failed} fail, {skipped} were not tested"
    compared = any(row.values for row in rows) or any(row.milliseconds is not None for row in rows)
    return (1 if failed else 0 if compared else 2), text


@dataclass
class Report:
    """What was found so far; it is written again after each row, so that nothing is lost with a GPU that hangs.

    Args:
        gpu: about the GPU and its driver.
        rows: of the report.
        folder: where it is written; None for nowhere.
    """

    gpu: dict[str, str]
    folder: Path | None
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Print and keep a row."""
        self.rows.append(row)
        print(row.text(), flush=True)
        self.write()

    def write(self) -> None:
        """Write gpu-proof.json and gpu-proof.txt."""
        if self.folder is None:
            return
        status, last = verdict(self.rows)
        found = {"schema": "dca.gpu-proof/1", **self.gpu, "status": status, "rows": [asdict(row) for row in self.rows]}
        # JSON has no infinity.
        (self.folder / "gpu-proof.json").write_text(
            json.dumps(json.loads(json.dumps(found), parse_constant=str), indent=1) + "\n", encoding="utf-8"
        )
        lines = [", ".join(self.gpu.values()), *(row.text() for row in self.rows), *ratios(self.rows), last]
        (self.folder / "gpu-proof.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _watch(report: Report, seconds: float) -> threading.Timer:
    """End the process when the GPU does not answer: no call of the driver can be interrupted."""

    def give_up() -> None:
        report.add(
            Row("the GPU answers in time", FAIL, f"after {len(report.rows)} rows a kernel or a call does not end")
        )
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    return timer


def main() -> int:
    """Test the claims of a recording."""
    parser = argparse.ArgumentParser(description="Replay recorded kernel launches on a GPU, and compare.")
    parser.add_argument("recording", type=Path, help="folder of `dca emulate --record`")
    parser.add_argument("--out", type=Path, help="folder for gpu-proof.json and gpu-proof.txt")
    parser.add_argument("--driver", default="libcuda.so.1", help="the driver's library (default: %(default)s)")
    parser.add_argument("--only", choices=PARTS, action="append", help="test only this; can be repeated (default: all)")
    parser.add_argument(
        "--seconds", type=float, default=_SECONDS, help="begin nothing new after so long (default: %(default)s)"
    )
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    try:
        recording = Recording.read(options.recording)
        driver = Driver(options.driver)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
    except (ProofError, OSError) as error:
        print(f"gpu-proof: {error}", file=sys.stderr)
        return 2
    arch = f"{driver.arch[0]}.{driver.arch[1]}"
    report = Report(
        {"gpu": driver.name, "arch": f"compute capability {arch}", "driver": f"driver of CUDA {driver.cuda}"},
        options.out,
    )
    print(", ".join(report.gpu.values()))
    timer = _watch(report, options.seconds + _MORE_SECONDS)
    for row in Proof(driver, recording, options.only or PARTS, end).rows():
        report.add(row)
    timer.cancel()
    for document in recording.documents:
        for reason, count in dict(document.get("left_out", {})).items():
            print(f"not recorded: {count} ({reason})")
    for line in ratios(report.rows):
        print(line)
    status, last = verdict(report.rows)
    print(last)
    report.write()
    return status


if __name__ == "__main__":
    sys.exit(main())
