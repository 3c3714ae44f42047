"""Replays recorded kernel launches on a GPU, and compares what they write with what the emulation wrote.

Run by `make gpu-proof` on a machine with a GPU. It needs the driver and Python 3.10 alone: neither torch, nor CUDA's
toolkit, nor dca, so that a recording and this file are all that must be carried to a machine. `dca emulate --record`
makes the recording.

A recording is a folder with `launches.json` (kind `dca.launches/1`):

- `code`: files of device code, by kernel: cubins, PTX and fat binaries, each with its arch and SHA-256.
- `sequences`: named lists of events on buffers of the device:
  - `alloc`: a buffer of some bytes.
  - `write`: its content, of a file, or random values of a dtype.
  - `launch`: a kernel with grid, block, bytes of shared memory and of parameters; in these, the offsets of pointers
    with the buffer, and the place in it, that they point to.
  - `expect`: the content that a buffer has now, and how closely: to the bit, or as values of a dtype within a bound.
- `loaded`: fat binaries that must load, with the kernels that must be found in them.

Files are compressed by zlib. Each sequence runs once with the machine code that the wheel has for this GPU, and once
with PTX that the driver compiles.
"""

from __future__ import annotations

import argparse
import array
import ctypes
import hashlib
import json
import math
import random
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KIND = "dca.launches/1"
# Attributes of a device and of a function, and of a launch whose parameters are one block of bytes (cuda.h).
_MAJOR, _MINOR = 75, 76
_MAX_DYNAMIC_SHARED = 8
_PARAM_END, _PARAM_POINTER, _PARAM_SIZE = 0, 1, 2
# Bytes of random content that are made here; the rest of a buffer repeats them.
_TILE = 1 << 20


class ProofError(Exception):
    """The recording, the driver or the GPU does not let the proof run; its text says which, and what to do."""


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
            raise ProofError(
                f"the driver's library cannot be loaded: {error}. Run this on a machine with a GPU."
            ) from None
        self.call("cuInit", ctypes.c_uint(0))
        device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
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
            ProofError: it returned an error.
        """
        try:
            status = getattr(self._cuda, function)(*arguments)
        except AttributeError:
            raise ProofError(f"the driver has no {function}; it is older than this proof supports.") from None
        if status:
            text = ctypes.c_char_p()
            known = self._cuda.cuGetErrorName(status, ctypes.byref(text)) == 0 and text.value
            raise ProofError(f"{function} failed: {text.value.decode() if known and text.value else status}")

    def _attribute(self, number: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(number), device)
        return value.value

    def load(self, code: bytes) -> ctypes.c_void_p:
        """A module of a cubin, of PTX or of a fat binary."""
        module = ctypes.c_void_p()
        # PTX ends with a zero.
        self.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(code + b"\0"))
        return module

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

    def launch(self, function: ctypes.c_void_p, event: dict[str, Any], parameters: bytes) -> None:
        """Start a kernel with the grid, block and shared memory of an event."""
        if event["shared"]:
            self.call("cuFuncSetAttribute", function, ctypes.c_int(_MAX_DYNAMIC_SHARED), ctypes.c_int(event["shared"]))
        held = ctypes.create_string_buffer(parameters, len(parameters))
        size = ctypes.c_size_t(len(parameters))
        extra = (ctypes.c_void_p * 5)(
            _PARAM_POINTER, ctypes.addressof(held), _PARAM_SIZE, ctypes.addressof(size), _PARAM_END
        )
        shape = [ctypes.c_uint(number) for number in (*event["grid"], *event["block"], event["shared"])]
        self.call("cuLaunchKernel", function, *shape, None, None, extra)

    def wait(self) -> None:
        """Wait for everything that was started; a fault of a kernel is raised here."""
        self.call("cuCtxSynchronize")


@dataclass(frozen=True)
class Recording:
    """A folder of recorded launches, of which nothing is believed that its hashes do not confirm.

    Args:
        folder: where it lies.
        content: of `launches.json`.
    """

    folder: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Recording:
        """Read one.

        Raises:
            ProofError: it is missing, damaged, or of another kind.
        """
        try:
            content = json.loads((folder / "launches.json").read_text())
        except (OSError, ValueError) as error:
            raise ProofError(
                f"there is no recording in {folder}: {error}. Make one with `dca emulate --record`."
            ) from None
        if not isinstance(content, dict) or content.get("kind") != KIND:
            raise ProofError(f"{folder} holds no recording of kind {KIND}; make it again with this version of dca.")
        return cls(folder, content)

    def file(self, entry: dict[str, Any]) -> bytes:
        """The content of a file that an entry names.

        Raises:
            ProofError: the file is missing or damaged, or lies outside of the folder.
        """
        path = (self.folder / entry["file"]).resolve()
        if self.folder.resolve() not in path.parents:
            raise ProofError(f"the recording names {entry['file']}, which lies outside of it.")
        try:
            content = zlib.decompress(path.read_bytes())
        except (OSError, zlib.error) as error:
            raise ProofError(f"{path} cannot be read: {error}. Copy the recording again.") from None
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise ProofError(f"{path} is damaged. Copy the recording again.")
        return content


@dataclass
class Compared:
    """What comparing one sequence found.

    Args:
        launches: how many kernels ran.
        values: how many values were compared.
        unequal: how many of them were not the same bits.
        largest: difference between values, relative to the larger of 1 and the expected value.
        wrong: the first few differences beyond their bound.
        milliseconds: of each timed launch, by name.
    """

    launches: int = 0
    values: int = 0
    unequal: int = 0
    largest: float = 0.0
    wrong: list[str] = field(default_factory=list)
    milliseconds: dict[str, float] = field(default_factory=dict)


def _float32(bits: int) -> float:
    value: float = struct.unpack("<f", struct.pack("<I", bits))[0]
    return value


# By dtype: the format of `array` that has its bits, and the value of bits.
_DTYPES: dict[str, tuple[str, Callable[[int], float]]] = {
    "bfloat16": ("H", lambda bits: _float32(bits << 16)),
    "float16": ("H", lambda bits: struct.unpack("<e", struct.pack("<H", bits))[0]),
    "float32": ("I", _float32),
}


def compare(got: bytes, want: bytes, event: dict[str, Any], result: Compared) -> None:
    """Compare a buffer with its expected content, and note differences.

    Args:
        got: content on the GPU.
        want: content in the emulation.
        event: `expect`, with `buffer`; where it has a `dtype` and a `within`, values may differ by so much, relative to
            the larger of 1 and the expected value; otherwise bits must be equal.
        result: where it is noted.

    Raises:
        ProofError: they have not the same size.
    """
    dtype = event.get("dtype")
    kind, value_of = _DTYPES[dtype] if dtype else ("B", float)
    if len(got) != len(want):
        raise ProofError(f"the recording expects {len(want)} bytes in {event['buffer']}, which has {len(got)}.")
    first, second = array.array(kind, got), array.array(kind, want)
    result.values += len(second)
    if first == second:
        return
    within = event.get("within", 0.0)
    for place, (one, other) in enumerate(zip(first, second, strict=True)):
        if one == other:
            continue
        result.unequal += 1
        a, b = value_of(one), value_of(other)
        if a == b or (math.isnan(a) and math.isnan(b)):
            continue
        # inf against a number, or NaN against one, is a difference beyond any bound.
        difference = abs(a - b) / max(1.0, abs(b)) if math.isfinite(a) and math.isfinite(b) else math.inf
        result.largest = max(result.largest, difference)
        if difference > within and len(result.wrong) < 5:
            result.wrong.append(f"{event['buffer']}[{place}] is {a!r}, and {b!r} in the emulation")


def _random(dtype: str, seed: int) -> bytes:
    """A tile of normally distributed values."""
    chance = random.Random(seed)  # noqa: S311  # inputs of kernels
    floats = [chance.gauss(0.0, 1.0) for _ in range(_TILE // 2)]
    if dtype == "float16":
        return struct.pack(f"<{len(floats)}e", *floats)
    if dtype == "bfloat16":
        halves = array.array("H", struct.pack(f"<{len(floats)}f", *floats))
        return halves[1::2].tobytes()
    raise ProofError(f"the recording asks for random values of {dtype}, which this proof does not make.")


class Replay:
    """Runs one sequence with one kind of code.

    Args:
        driver: of the GPU.
        recording: with the files.
        kernels: by name, the function.
    """

    def __init__(self, driver: Driver, recording: Recording, kernels: dict[str, ctypes.c_void_p]) -> None:
        self._driver = driver
        self._recording = recording
        self._kernels = kernels
        self._buffers: dict[str, tuple[int, int]] = {}

    def run(self, events: list[dict[str, Any]]) -> Compared:
        """Run the events in their order; buffers are given back afterwards, whatever happens."""
        result = Compared()
        try:
            for event in events:
                getattr(self, f"_{event['event']}")(event, result)
            self._driver.wait()
        finally:
            for address, _ in self._buffers.values():
                self._driver.free(address)
        return result

    def _alloc(self, event: dict[str, Any], _: Compared) -> None:
        self._buffers[event["buffer"]] = (self._driver.alloc(event["bytes"]), event["bytes"])

    def _write(self, event: dict[str, Any], _: Compared) -> None:
        address, size = self._buffers[event["buffer"]]
        if "file" in event:
            self._driver.write(address, self._recording.file(event)[:size])
            return
        tile = _random(event["random"], event["seed"])[:size]
        self._driver.write(address, tile)
        done = len(tile)
        while done < size:
            part = min(done, size - done)
            self._driver.copy(address + done, address, part)
            done += part

    def _launch(self, event: dict[str, Any], result: Compared) -> None:
        parameters = bytearray.fromhex(event["parameters"])
        for offset, buffer, within in event["pointers"]:
            struct.pack_into("<Q", parameters, offset, self._buffers[buffer][0] + within)
        function = self._kernels[event["kernel"]]
        times = []
        for _ in range(event.get("repeat", 1)):
            self._driver.wait()
            started = time.perf_counter()
            self._driver.launch(function, event, bytes(parameters))
            self._driver.wait()
            times.append(time.perf_counter() - started)
        result.launches += len(times)
        if "timed" in event:
            result.milliseconds[event["timed"]] = 1000 * min(times)

    def _expect(self, event: dict[str, Any], result: Compared) -> None:
        address, size = self._buffers[event["buffer"]]
        self._driver.wait()
        compare(self._driver.read(address, size), self._recording.file(event), event, result)


def _number(arch: str) -> tuple[int, int]:
    major, _, minor = arch.partition(".")
    return int(major), int(minor)


def _fitting(code: list[dict[str, Any]], kind: str, gpu: tuple[int, int]) -> dict[str, Any] | None:
    """A kernel's code that a driver takes for a GPU: machine code of its generation, or PTX of none that is newer."""
    fits = [
        one
        for one in code
        if one["kind"] == kind and _number(one["arch"]) <= gpu and (kind == "ptx" or _number(one["arch"])[0] == gpu[0])
    ]
    return max(fits, key=lambda one: _number(one["arch"]), default=None)


def _loaded(driver: Driver, recording: Recording, kind: str, wanted: set[str]) -> dict[str, ctypes.c_void_p]:
    """The kernels of a sequence, from code of one kind.

    Raises:
        ProofError: one has none that this GPU takes.
    """
    modules: dict[str, ctypes.c_void_p] = {}
    kernels = {}
    for kernel in sorted(wanted):
        entry = _fitting(recording.content["code"][kernel], kind, driver.arch)
        if entry is None:
            raise ProofError(f"no {kind} for this GPU: {kernel}")
        if entry["file"] not in modules:
            modules[entry["file"]] = driver.load(recording.file(entry))
        kernels[kernel] = driver.function(modules[entry["file"]], kernel)
    return kernels


def replays(driver: Driver, recording: Recording) -> Iterator[dict[str, Any]]:
    """One row for each sequence with each kind of code."""
    for sequence in recording.content["sequences"]:
        wanted = {event["kernel"] for event in sequence["events"] if event["event"] == "launch"}
        for kind in ("cubin", "ptx"):
            row: dict[str, Any] = {"sequence": sequence["name"], "code": kind}
            try:
                found = Replay(driver, recording, _loaded(driver, recording, kind, wanted)).run(sequence["events"])
            except ProofError as error:
                yield {**row, "passed": False, "error": str(error)}
            else:
                yield {**row, "passed": not found.wrong, **vars(found)}


def loads(driver: Driver, recording: Recording) -> Iterator[dict[str, Any]]:
    """One row for each fat binary that must load."""
    for entry in recording.content["loaded"]:
        row = {"fat binary": entry["name"], "kernels": len(entry["kernels"])}
        try:
            module = driver.load(recording.file(entry))
            for kernel in entry["kernels"]:
                driver.function(module, kernel)
        except ProofError as error:
            yield {**row, "passed": False, "error": str(error)}
        else:
            yield {**row, "passed": True}


def _sentence(row: dict[str, Any]) -> str:
    verdict = "pass" if row["passed"] else "FAIL"
    if "fat binary" in row:
        text = f"{row['fat binary']} loads, with {row['kernels']} kernels"
    elif "error" in row:
        text = f"{row['sequence']} ({row['code']})"
    else:
        text = (
            f"{row['sequence']} ({row['code']}): {row['launches']} launches, {row['values']} values, "
            f"{row['unequal']} unequal, largest difference {row['largest']:.2g}"
        )
        text += "".join(f"; {name} {value:.3f} ms" for name, value in row["milliseconds"].items())
    return "\n       ".join([f"{verdict}   {text}", *row.get("wrong", ()), *filter(None, [row.get("error")])])


def main() -> int:
    """Replay a recording; the exit status is 1 if something differs, 2 if it could not run."""
    parser = argparse.ArgumentParser(description="Replay recorded kernel launches on a GPU, and compare.")
    parser.add_argument("recording", type=Path, help="folder of the recording")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--driver", default="libcuda.so.1", help="the driver's library (default: %(default)s)")
    options = parser.parse_args()
    rows = []
    try:
        recording = Recording.read(options.recording)
        driver = Driver(options.driver)
        print(f"{driver.name}, compute capability {driver.arch[0]}.{driver.arch[1]}, driver of CUDA {driver.cuda}")
        for make in (replays, loads):
            for row in make(driver, recording):
                rows.append(row)
                print(_sentence(row), flush=True)
    except ProofError as error:
        print(f"gpu-proof: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(
            json.dumps({"gpu": driver.name, "arch": driver.arch, "cuda": driver.cuda, "rows": rows})
        )
    failed = sum(not row["passed"] for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} pass")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
