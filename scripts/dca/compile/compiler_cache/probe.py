"""The probe that a compiler cache must pass before a build uses it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from dca.binaries import elf
from dca.catalogue.plan import PlannedCache
from dca.compile import cmake, keeping
from dca.compile.compiler_cache.builders import Gate
from dca.compile.compiler_cache.tool import Places, Tool, Unusable, write_scripts
from dca.foundation import documents, runner, store
from dca.foundation.run import Run
from dca.toolchain import provide

COMPILE_SECONDS = 300.0

_SMALL = """\
#include <cuda_runtime.h>
#include <cassert>
#ifndef __CUDA_ARCH__
extern "C" int dca_only_on_the_host() { return ONE; }
#endif
namespace {
__global__ void scale(float* v, float by) { assert(by != 0); v[threadIdx.x] = sqrtf(v[threadIdx.x]) * by; }
}
extern "C" const char* dca_probe(float* v) { scale<<<1, 32>>>(v, 2.0f); return __FILE__; }
"""


def admit(tool: Tool, planned: PlannedCache, places: Places, folder: cmake.BuildFolder, run: Run) -> None:
    """Compile a small kernel with the flags of the build's first kernel, with and without the cache; once for each.

    Raises:
        Unusable: when the cache does not find it in another folder, or gives another object than nvcc.
    """
    flags = _flags(folder)
    if not flags:
        return
    identity = [planned.name, planned.version, places.job.plan.host_compiler_version, flags, _SMALL, keeping.SCRIPT]
    if tool.gate:
        identity.append("builders")
    kept = run.cache.folder("admitted", documents.digest(identity)[:16])
    if kept.is_file():
        return
    run.reporter.stage("admit", f"{planned.name} {planned.version}: one small kernel, with and without it")
    plain, first, second, changed = places.probes
    probe = _Probe(flags, folder, places, tool, run)
    wanted = probe.compile(plain, through=False)
    found = probe.compile(first)
    before = tool.counts()
    again = probe.compile(second)
    counted = tool.counts().since(before)
    # For builders sccache keeps line markers in what it hashes, and nvcc's input of the host compiler is in a temporary
    # folder with another name each time: that part is not found.
    if not counted.hits or (counted.misses and not tool.gate):
        raise Unusable("it does not find the object of the same source, compiled with nvcc in another folder.")
    if not (elf.same_objects(wanted, found) and elf.same_objects(wanted, again)):
        raise Unusable("its objects differ from those that nvcc compiles.")
    if elf.same_objects(wanted, probe.compile(changed, one=2)):
        raise Unusable("it takes the object of another source.")
    store.write_bytes(kept, documents.canonical(identity))


def admit_builders(tool: Tool, gate: Gate, places: Places, folder: cmake.BuildFolder, run: Run) -> None:
    """Compile a small kernel on every builder, with the flags of the build's first kernel; leave out those that fail.

    Args:
        tool: the running cache.
        gate: through which it asks for builders.

    Raises:
        Unusable: when the kernel does not compile on this machine either.
    """
    flags = _flags(folder)
    if not flags:
        return
    probe = _Probe(flags, folder, places, tool, run)
    try:
        count = gate.builders()
    except Unusable as why:
        gate.close(str(why))
        return
    run.reporter.stage("admit", f"{count} builders: one small kernel on each")
    wanted = probe.compile(places.probes[0], through=False)
    probed: set[str] = set()
    with gate.probing():
        while True:
            before, failed = tool.counts(), len(gate.failed)
            made = probe.compile(places.work / "on a builder", cached=False)
            if not gate.target:
                gate.close(gate.refused or "it was asked for no builder.")
                return
            counted = tool.counts().since(before)
            if len(gate.failed) > failed:
                gate.blame()
                gate.leave_out(gate.target, f"a small kernel does not compile there: {said(gate.failed[-1])}")
            elif not elf.same_objects(wanted, made):
                gate.leave_out(gate.target, "its object of a small kernel differs from the one of this machine.")
            elif counted.here or not counted.places.get(gate.target):
                gate.leave_out(gate.target, "it did not compile every part of a small kernel.")
            probed.add(gate.target)
            left = [builder for builder in gate.known if builder not in probed]
            if not left:
                return
            gate.target = left[0]


def said(file: Path) -> str:
    """The last line of what a compile reported."""
    return file.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2][:200] or "no message"


def _flags(folder: cmake.BuildFolder) -> tuple[str, ...]:
    """Compiler and flags of the first kernel of a build, without the names of files; empty if there is none."""
    for entry in json.loads((folder.ninja / "compile_commands.json").read_text()):
        if Path(entry["file"]).suffix != ".cu":
            continue
        started = {str(folder.path / cmake.KEEPER), str(folder.path / cmake.LAUNCHER)}
        words = [word for word in shlex.split(entry["command"]) if word not in started]
        named = {index + shift for index, word in enumerate(words) for shift in (0, 1) if word in _NAMING}
        return tuple(
            word for index, word in enumerate(words) if index not in named and not word.startswith(("-Xcudafe=", "-MD"))
        )
    return ()


_NAMING = ("-MT", "-MF", "-x", "-c", "-o")


@dataclass(frozen=True)
class _Probe:
    """What the probe compiles with.

    Args:
        flags: nvcc, and the flags of a kernel of the build.
        folder: the build folder.
        places: of the build.
        tool: the cache.
        run: the run.
    """

    flags: tuple[str, ...]
    folder: cmake.BuildFolder
    places: Places
    tool: Tool
    run: Run

    def compile(self, root: Path, *, through: bool = True, cached: bool = True, one: int = 1) -> Path:
        """Compile the small kernel in a folder that looks like a build folder.

        Args:
            root: the folder.
            through: whether the cache is used.
            cached: whether it may find the object, and keep it.
            one: what the function that only the host has returns.

        Raises:
            Unusable: when it does not compile.
        """
        generated, ninja = root / "generated", root / "ninja"
        ninja.mkdir(parents=True, exist_ok=True)
        source, launcher, made = generated / "probe.cu", root / cmake.LAUNCHER, ninja / "probe.o"
        store.write_bytes(source, _SMALL.replace("ONE", str(one)).encode())
        store.write_bytes(generated / "prefixes.specs", cmake.SPECS)
        names = provide.names(self.places.job.cuda, self.places.job.torch)
        store.write_bytes(generated / "prefixes.rsp", cmake.prefixes({generated: "generated", **names}, ninja))
        store.write_bytes(root / cmake.KEEPER, keeping.script(), mode=0o755)
        write_scripts(root, self.tool.scripts if through else {})
        files = ["-MD", "-MT", made.name, "-MF", f"{made.name}.d", "-x", "cu", "-c", str(source), "-o", made.name]
        naming = "-Xcudafe=--orig_src_path_name=generated/probe.cu"
        done = runner.run(
            [root / cmake.KEEPER, launcher, *self.flags, naming, *files],
            cwd=ninja,
            env={
                **self.folder.env,
                **self.tool.env,
                "TMPDIR": str(self.places.work),
                **({} if cached else {"SCCACHE_NO_CACHE": "1"}),
            },
            log=self.run.log,
            timeout=COMPILE_SECONDS,
        )
        if not (done.ok and made.is_file()):
            raise Unusable(
                f"a small kernel does not compile {'through it' if through else 'without it'}: {done.text[-400:]}"
            )
        return made
