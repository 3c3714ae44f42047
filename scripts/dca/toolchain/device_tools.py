"""Compiles PTX and packs fat binaries, with programs of the build environment and the toolkit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from dca.binaries.fatbin import PTX, Code
from dca.foundation import documents, runner, store
from dca.foundation.run import Run
from dca.toolchain import environments

# Far more than the largest PTX text takes.
TOOL_SECONDS = 1800.0


class ToolError(Exception):
    """A program is missing or failed; the message says which and why."""


@dataclass(frozen=True)
class Tool:
    """A program of CUDA; the hash is of its file."""

    path: Path
    version: str
    sha256: str


def find_ptxas(python: Path, toolkit: Path, cuda: str) -> Tool:
    """A ptxas that can compile the PTX of a CUDA version.

    Args:
        python: of the build environment, whose packages may contain one.
        toolkit: whose own is the second choice.
        cuda: the version, such as 12.8. An older ptxas does not know the instructions of its PTX.

    Raises:
        ToolError: if there is none.
    """
    older = []
    for path in (*environments.ptxas(python), toolkit / "bin/ptxas"):
        version = _version(path)
        if version and Version(version).release[:2] >= Version(cuda).release[:2]:
            return Tool(path, version, store.sha256_file(path))
        older.append(version or "one that does not start")
    raise ToolError(f"its PTX needs a ptxas of CUDA {cuda} or later; found: {', '.join(older)}")


def find_fatbinary(toolkit: Path) -> Tool:
    """The toolkit's program that packs fat binaries.

    Raises:
        ToolError: if it has none that starts.
    """
    path = toolkit / "bin/fatbinary"
    if not (version := _version(path)):
        raise ToolError(f"{path} does not start")
    return Tool(path, version, store.sha256_file(path))


def _version(program: Path) -> str:
    """The version that a program of CUDA prints, such as 12.8.93; "" if it does not start."""
    answer = runner.probe([program, "--version"])
    found = re.search(r"\bV(\d{1,9}\.\d{1,9}\.\d{1,9})\b", answer.text)
    return found[1] if answer.ok and found else ""


def assemble(ptx: bytes, arch: str, ptxas: Tool, run: Run) -> bytes:
    """The cubin of a PTX text, from the cache or compiled.

    Args:
        ptx: the text.
        arch: such as 9.0 or 9.0a.
        ptxas: compiles it.
        run: whose cache keeps the cubin.

    Raises:
        ToolError: if it does not compile.
    """
    folder = run.cache.folder("cubin", documents.digest([store.sha256_bytes(ptx), arch, ptxas.sha256])[:32])
    for kept in sorted(folder.glob("*.cubin")):
        if store.has_hash(kept, kept.stem):
            return kept.read_bytes()
    with store.scratch(run.cache.open().root) as work:
        (work / "text.ptx").write_bytes(ptx.rstrip(b"\0"))
        _call([ptxas.path, f"-arch=sm_{_number(arch)}", "text.ptx", "-o", "cubin"], work, run)
        cubin = (work / "cubin").read_bytes()
    store.write_bytes(folder / f"{store.sha256_bytes(cubin)}.cubin", cubin)
    return cubin


def pack(images: Sequence[Code], fatbinary: Tool, run: Run) -> bytes:
    """A container with some cubins and PTX texts, in this order, compressed: it takes a third of the space.

    Raises:
        ToolError: if the program fails.
    """
    with store.scratch(run.cache.open().root) as work:
        words: list[str | Path] = [fatbinary.path, "-64", "--compress-all", "--create=container"]
        for number, image in enumerate(images):
            (work / str(number)).write_bytes(image.content)
            kind = "ptx" if image.kind == PTX else "elf"
            words.append(f"--image3=kind={kind},sm={_number(image.arch)},file={number}")
        _call(words, work, run)
        return (work / "container").read_bytes()


def _number(arch: str) -> str:
    return arch.replace(".", "")


def _call(words: Sequence[str | Path], work: Path, run: Run) -> None:
    """Run a program in a folder.

    Raises:
        ToolError: with the program's first error.
    """
    # They run while sources are compiled, which takes longer: with as much of the processors, one of those would be
    # left at the end, alone.
    give_way = runner.Supervision(nice=10)
    done = runner.run(words, cwd=work, log=run.log, timeout=TOOL_SECONDS, supervision=give_way)
    if not done.ok:
        why = "it took too long" if done.timed_out else next((line for line in done.tail if "rror" in line), done.text)
        raise ToolError(f"{Path(words[0]).name} failed: {why.strip()[-400:]}")
