"""Keeps launches of the emulated device, so that they can be replayed on a GPU (scripts/gpu_proof.py).

A recording is a folder with a document for each process that launched something, `launches-PROCESS.json`, and the
folder `files` with each distinct content once, under its SHA-256 and compressed by zlib: buffers, cubins, PTX texts and
fat binaries.
"""

from __future__ import annotations

import array
import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from dca.binaries import fatbin
from dca.emulation import images
from dca.emulation.forms import Rounding, rounding
from dca.emulation.images import Place
from dca.emulation.ptx import parser
from dca.foundation import documents, store
from dca.foundation.documents import Document, Value
from dca.foundation.errors import DcaError

FILES = "files"
LIMIT = 48
"""MiB that a recording has at most, unless told otherwise: with the script and a wheel's Python it stays under 64."""
MOST_OF_A_KERNEL = 8
"""Launches of one kernel that are recorded, so that those of others fit in."""
AGAIN, ENOUGH = "the same launch again", "enough"
# Fat binaries take at most this part of the limit, so that launches fit in.
_FAT_BINARIES = 0.5
# Words of a buffer that are looked at for its data type, and the part of them that must be plausible.
_SAMPLE, _PLAUSIBLE = 4096, 0.95


class Pointer(Value):
    """A pointer in a launch's parameters.

    Args:
        at: its offset in the bytes of all parameters.
        buffer: number of the allocation that it points into.
        offset: in that, in bytes.
    """

    at: int
    buffer: int
    offset: int


class Buffer(Value):
    """An allocation that a launch's parameters point into.

    Args:
        number: of the allocation in its process.
        bytes: its size.
        before: SHA-256 of its content when the launch began; empty for a large buffer of a launch that did not run.
        after: the same when the launch was done; empty if it did not run.
        dtype: what the values that the launch wrote are held to be, "float32", "bfloat16" or "float16"; empty if they
            must be the same bits.
    """

    number: int
    bytes: int
    before: str = ""
    after: str = ""
    dtype: str = ""


class Code(Value):
    """Code of a kernel: `arch` as "9.0" or "9.0a"."""

    kind: Literal["cubin", "ptx"]
    arch: str
    sha256: str


class Kernel(Value):
    """A kernel.

    Args:
        name: its symbol.
        family: its name without namespaces' decoration and template arguments, for people.
        module: name of the file that it was launched from.
        module_sha256: of that file.
        code: the module's cubins that have it, and the PTX that was emulated, without the text's other kernels.
        rounding: which of its instructions leave room for other results, and how much.
    """

    name: str
    family: str
    module: str
    module_sha256: str
    code: tuple[Code, ...]
    rounding: Rounding


class Call(Value):
    """How a kernel is called.

    Args:
        label: what the program said that it is.
        stream: number of the stream; launches are in the order in which they ended.
        grid: thread blocks by axis.
        block: threads by axis.
        shared: bytes of dynamic shared memory.
        parameters: bytes of all parameters, hexadecimal; pointers in them have the values that they had.
        offsets: where each parameter begins in them.
        pointers: where they are: each aligned word of 8 bytes that was an address in an allocation.
        ran: false where only sizes were recorded, for a measurement of time.
    """

    label: str
    stream: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    parameters: str
    offsets: tuple[int, ...]
    pointers: tuple[Pointer, ...]
    ran: bool


class Launch(Call):
    """A recorded launch.

    Args:
        kernel: its place in the document's list.
        buffers: the allocations that its pointers point into.
    """

    kernel: int
    buffers: tuple[Buffer, ...]


class FatBinary(Value):
    """A fat binary of a module that kernels were launched from."""

    module: str
    sha256: str
    kernels: tuple[str, ...]


class Recording(Document):
    """The launches of a process.

    Args:
        arch: compute capability of the emulated device.
        kernels: each kernel once.
        launches: in the order in which they ended.
        fat_binaries: of the modules that kernels were launched from.
        left_out: why something is not recorded, and how often.
    """

    SCHEMA: ClassVar[str] = "dca.launches/1"

    arch: str
    kernels: tuple[Kernel, ...] = ()
    launches: tuple[Launch, ...] = ()
    fat_binaries: tuple[FatBinary, ...] = ()
    left_out: dict[str, int] = {}


class ToldBuffer(Value):
    """What the device tells of a buffer: whether its content before, and another one after, follow."""

    number: int
    bytes: int
    before: bool
    after: bool


class Told(Call):
    """What the device tells of a launch.

    Args:
        module: file of its kernel, as in `Place`.
        address: of the kernel's fat binary, as in `Place`.
        kernel: its symbol.
        buffers: the allocations that its pointers point into.
        left_out: why it is not recorded; empty if it can be.
    """

    module: str
    address: int
    kernel: str
    buffers: tuple[ToldBuffer, ...]
    left_out: str

    @property
    def key(self) -> tuple[Place, str]:
        """What tells its kernel from others: several fat binaries may have kernels of one name."""
        return Place(Path(self.module), self.address), self.kernel


@dataclass(frozen=True)
class Wish:
    """What to record.

    Args:
        folder: of the recording; it must not exist, or be empty.
        limit: bytes that its files have at most.
        shapes: whether kernels are not run, and only sizes recorded.
    """

    folder: Path
    limit: int = LIMIT << 20
    shapes: bool = False

    def prepared(self) -> Wish:
        """The same, with the folder made.

        Raises:
            DcaError: DCA-840 if there is something in it.
        """
        folder = self.folder.absolute()
        files = folder / FILES
        # A run that ended before its first launch leaves an empty folder.
        found = [one for one in folder.iterdir() if one != files] if folder.is_dir() else []
        if found or (folder.exists() and not folder.is_dir()) or (files.is_dir() and any(files.iterdir())):
            raise DcaError(
                "DCA-840",
                f"--record: {folder} is not empty.",
                why="launches of two runs must not be mixed.",
                remedy="name a folder that does not exist, or delete it.",
            )
        files.mkdir(parents=True, exist_ok=True)
        return Wish(folder, self.limit, self.shapes)


class _FullError(Exception):
    """The recording's limit does not allow another file."""


@dataclass
class _Files:
    """The files of a recording, to which several processes may add."""

    folder: Path
    limit: int
    added: list[str] = field(default_factory=list)

    def add(self, content: bytes, share: float = 1.0) -> str:
        """The SHA-256 of a content that is then in the folder.

        Args:
            content: its bytes.
            share: the part of the limit that may be used for it.

        Raises:
            _FullError: there is no room.
        """
        name = store.sha256_bytes(content)
        file = self.folder / name
        if not file.is_file():
            packed = zlib.compress(content, 6)
            if self.bytes() + len(packed) > self.limit * share:
                raise _FullError
            store.write_bytes(file, packed)
            self.added.append(name)
        return name

    def bytes(self) -> int:
        """What all files take."""
        return sum(entry.stat().st_size for entry in os.scandir(self.folder))

    def forget(self) -> None:
        """Remove what was added since the last launch."""
        for name in self.added:
            (self.folder / name).unlink(missing_ok=True)
        self.added.clear()


class Recorder:
    """Writes the launches of one process.

    Args:
        wish: what to record.
        arch: compute capability of the device.
        ptx: the text of a kernel.
        say: prints a message to the user.
    """

    def __init__(self, wish: Wish, arch: str, ptx: Callable[[Place, str], str], say: Callable[[str], None]) -> None:
        self._files = _Files(wish.folder / FILES, wish.limit)
        self._wish, self._arch, self._ptx, self._say = wish, arch, ptx, say
        self._document = wish.folder / f"launches-{os.getpid()}.json"
        self._kernels: dict[tuple[Place, str], int] = {}
        self._listed: list[Kernel] = []
        self._launches: list[Launch] = []
        self._known: set[str] = set()
        self._modules: dict[Path, _Module] = {}
        self._fat_binaries: list[FatBinary] = []
        self._left_out: Counter[str] = Counter()

    def add(self, told: Told, contents: list[bytes]) -> str:
        """Record a launch, or count why it is not recorded; the document on disk is whole.

        Args:
            told: the launch.
            contents: those that its buffers say follow.

        Returns:
            `ENOUGH` when no more launches of its kernel are wanted.

        Raises:
            DcaError: the module or its PTX cannot be read.
        """
        reason = told.left_out
        if not reason:
            try:
                reason = self._launch(told, contents)
            except _FullError:
                self._files.forget()
                reason = f"the recording would be larger than {self._wish.limit / (1 << 20):g} MiB"
        if reason:
            if reason not in self._left_out and reason != AGAIN:
                self._say(f"not recorded: a launch of {fatbin.family_name(told.kernel)}: {reason}")
            self._left_out[reason] += 1
        self._files.added.clear()
        # A program that launches for hours must not write the same again each time.
        if not told.left_out:
            self._write()
        number = self._kernels.get(told.key)
        return ENOUGH if sum(one.kernel == number for one in self._launches if one.ran) >= MOST_OF_A_KERNEL else ""

    def finish(self) -> str:
        """Write the document for the last time; what was recorded, in a sentence."""
        self._write()
        size = self._files.bytes() / (1 << 20)
        left_out = "".join(f"\n  not recorded: {count} ({reason})" for reason, count in self._left_out.items())
        return (
            f"recorded {len(self._launches)} launches of {len(self._listed)} kernels in {self._wish.folder} "
            f"({size:.1f} MiB){left_out}"
        )

    def _launch(self, told: Told, contents: list[bytes]) -> str:
        """Add a launch; the reason why it was not."""
        kernel = self._kernel(told)
        rounded = kernel.rounding
        following, buffers = iter(contents), []
        for one in told.buffers:
            before = next(following) if one.before else None
            after = next(following) if one.after else before
            buffers.append(
                Buffer(
                    number=one.number,
                    bytes=one.bytes,
                    before="" if before is None else self._files.add(before),
                    after="" if after is None or not told.ran else self._files.add(after),
                    dtype=dtype(before, after, rounded.to) if before and after and one.after and rounded.within else "",
                )
            )
        launch = Launch(
            kernel=self._kernels[told.key],
            buffers=tuple(buffers),
            **told.model_dump(include=set(Call.model_fields)),
        )
        known = documents.digest(_told_apart(launch))
        if launch.ran and known in self._known:
            return AGAIN
        self._known.add(known)
        self._launches.append(launch)
        return ""

    def _kernel(self, told: Told) -> Kernel:
        place, _ = key = told.key
        if key not in self._kernels:
            if place.module not in self._modules:
                self._modules[place.module] = _Module.read(place.module)
            module = self._modules[place.module]
            text = parser.only(self._ptx(place, told.kernel), told.kernel)
            code = [Code(kind="ptx", arch=fatbin.bare(text.encode()).arch, sha256=self._files.add(text.encode()))]
            code += [
                Code(kind="cubin", arch=one.arch, sha256=self._files.add(one.content))
                for one in module.cubins(place.address, told.kernel)
            ]
            kernel = Kernel(
                name=told.kernel,
                family=fatbin.family_name(told.kernel),
                module=module.name,
                module_sha256=module.sha256,
                code=tuple(code),
                rounding=rounding(text, told.kernel),
            )
            self._kernels[key] = len(self._listed)
            self._listed.append(kernel)
            # What a kernel needs stays, also when there is no room for this launch.
            self._files.added.clear()
            self._add_fat_binaries(module)
        return self._listed[self._kernels[key]]

    def _add_fat_binaries(self, module: _Module) -> None:
        for container in module.take():
            kernels = frozenset[str]().union(*(code.kernels for code in container.codes))
            try:
                sha256 = self._files.add(container.content, _FAT_BINARIES)
            except _FullError:
                self._left_out[f"a fat binary of {module.name}, for which there is no room"] += 1
                continue
            self._files.added.clear()
            self._fat_binaries.append(FatBinary(module=module.name, sha256=sha256, kernels=tuple(sorted(kernels))))

    def _write(self) -> None:
        document = Recording(
            arch=self._arch,
            kernels=tuple(self._listed),
            launches=tuple(self._launches),
            fat_binaries=tuple(self._fat_binaries),
            left_out=dict(self._left_out),
        )
        documents.write(document, self._document)


def _told_apart(launch: Launch) -> dict[str, Any]:
    """What another launch must differ in: not in its label, nor in where its buffers are."""
    places = {one.number: place for place, one in enumerate(launch.buffers)}
    parameters = bytearray.fromhex(launch.parameters)
    for pointer in launch.pointers:
        parameters[pointer.at : pointer.at + 8] = bytes(8)
    return {
        **launch.model_dump(mode="json", exclude={"label", "stream", "buffers", "pointers"}),
        "parameters": parameters.hex(),
        "pointers": [(one.at, places[one.buffer], one.offset) for one in launch.pointers],
        "buffers": [(one.bytes, one.before, one.after) for one in launch.buffers],
    }


class _Plain(NamedTuple):
    """What is plausible of a data type: its exponent's shift, its greatest value, and the exponents of usual values."""

    shift: int
    most: int
    least_usual: int
    most_usual: int


# From 2**-60 to 2**60, in float16 from 2**-12 to 2**8.
_PLAIN = {
    "float32": _Plain(23, 255, 67, 187),
    "bfloat16": _Plain(7, 255, 67, 187),
    "float16": _Plain(10, 31, 3, 23),
}


def _usual(bits: int, kind: str) -> bool:
    plain = _PLAIN[kind]
    exponent, mantissa = bits >> plain.shift & plain.most, bits & ((1 << plain.shift) - 1)
    if exponent in (0, plain.most):
        return not mantissa or exponent == plain.most
    return plain.least_usual <= exponent <= plain.most_usual


def dtype(before: bytes, after: bytes, rounded_to: str) -> str:
    """The data type of what a launch wrote: the one in which nearly all of it are usual values; empty if none is.

    Args:
        before: content of a buffer.
        after: its content after the launch.
        rounded_to: the type of 16 bits that the kernel rounds to, or "".
    """
    words = min(len(before), len(after)) // 4
    first, second = (array.array("I", content[: 4 * words]) for content in (before, after))
    written = [b for a, b in zip(first, second, strict=True) if a != b]
    sample = written[:: max(1, math.ceil(len(written) / _SAMPLE))]
    if not sample:
        return ""
    if rounded_to:
        halves = [half for word in sample for half in (word & 0xFFFF, word >> 16)]
        if sum(_usual(half, rounded_to) for half in halves) >= _PLAUSIBLE * len(halves):
            return rounded_to
    return "float32" if sum(_usual(word, "float32") for word in sample) >= _PLAUSIBLE * len(sample) else ""


@dataclass
class _Module:
    """A module that a kernel was launched from.

    Args:
        name: of its file.
        sha256: of its file.
        containers: its fat binaries.
    """

    name: str
    sha256: str
    containers: tuple[images.Container, ...]
    taken: bool = False

    @classmethod
    def read(cls, path: Path) -> _Module:
        """The module in a file.

        Raises:
            DcaError: DCA-836 when it is damaged.
        """
        return cls(path.name, store.sha256_file(path), tuple(images.containers(path)))

    def cubins(self, address: int, kernel: str) -> Iterator[fatbin.Code]:
        """The cubins with a kernel of its fat binary at an address."""
        for container in (one for one in self.containers if one.address == address):
            yield from (code for code in container.codes if code.kind == fatbin.CUBIN and kernel in code.kernels)

    def take(self) -> tuple[images.Container, ...]:
        """Its fat binaries at the first call; none later."""
        taken, self.taken = self.taken, True
        return () if taken else self.containers
