"""Maintains a persistent build folder: copies sources to it, configures it with CMake, builds it with ninja.

In the folder, `src/` has copies of the sources, at a constant path, `ninja/` is CMake's binary folder, `configured` the
identity of the last configuration, and `placed` the names of the copies. `ninja/.building` exists while ninja runs, and
after a build that failed or was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dca.compile import keeping, units, watching
from dca.compile.estimate import Estimate, Lanes, typical
from dca.foundation import data, documents, host_memory, runner, store
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError, Interrupted
from dca.foundation.run import Run
from dca.foundation.timeline import ObjectTime

CONFIGURE_SECONDS = 600.0
LAUNCHER = Path("generated/launch")
"""Starts every compiler. It is part of each command, so with or without a compiler cache ninja compiles the same."""
KEEPER = Path("generated/keep-ptx")
"""Starts the launcher for nvcc, and keeps the PTX that nvcc makes (`keeping`)."""
SPECS = b"*cc1plus:\n+ %{,c++-cpp-output:;:@../generated/prefixes.rsp}\n\n"
"""Lets g++ hand a response file on unread: a compiler cache would put its paths into the keys of objects.

What is preprocessed already has the names, and is compiled on machines that have no such file."""
PLAIN = b'#!/bin/sh\nexec "$@"\n'
"""The launcher without a compiler cache."""


class CompiledObject(Value):
    """One line of ninja's log: an object, its source, and how long it took to compile.

    Args:
        source: tree and path, such as source/csrc/sampler.cu; `generated/…` for files that dca wrote.
        sha256: of the source.
        seconds: as ninja measured it, in the build that compiled it.
        command_hash: ninja's own hash of the command line.
        includes: of a unit, the sources that it is made of, each with its sha256; they are compiled as one, behind
            stand-ins for torch's headers.
    """

    source: str
    sha256: str
    seconds: float
    command_hash: str
    includes: dict[str, str] = {}

    @property
    def sources(self) -> dict[str, str]:
        """The sha256 of every source that it was compiled from: its own, and those of a unit."""
        return {self.source: self.sha256, **self.includes}


@dataclass(frozen=True)
class BuildFolder:
    """A build folder and the programs that run in it.

    Args:
        path: of the folder, which this module's docstring describes.
        python: interpreter of the build environment, which also has CMake and ninja.
        env: variables for CMake, ninja and the compilers.
        heavy_jobs: how many compilers may compile a heavy source; None for as many as run in parallel.
    """

    path: Path
    python: Path
    env: Mapping[str, str]
    heavy_jobs: int | None = None

    @property
    def ninja(self) -> Path:
        """CMake's binary folder, in which ninja works."""
        return self.path / "ninja"

    def program(self, name: str) -> Path:
        """A program of the build environment."""
        return self.python.parent / name


def place(contents: Mapping[str, Path | bytes], folder: Path) -> str:
    """Update the copies of the sources, writing only those that differ, and return the digest of all.

    Objects depend on these copies, so that a patch of Python, or another folder for the tree, recompiles nothing. Files
    that upstream's CMake generates beside them stay. So do copies of another plan in folders that this plan does not
    use: written again, they would be newer than their objects.

    Args:
        contents: of src/, by path: a file to copy, or the content itself.
        folder: the build folder.
    """
    source, record = folder / "src", folder / "placed"
    before = set(record.read_text().splitlines()) if record.is_file() else set()
    # Also written before the first copy, so that copies of a killed build are recognized as ours.
    store.write_bytes(record, "\n".join(sorted(before | set(contents))).encode())
    hashes = {}
    for name, what in contents.items():
        content = what if isinstance(what, bytes) else what.read_bytes()
        store.write_if_changed(source / name, content)
        hashes[name] = store.sha256_bytes(content)
    places = {_place(name) for name in contents}
    gone = {name for name in before - set(contents) if _place(name) in places}
    for name in gone:
        (source / name).unlink(missing_ok=True)
    store.write_bytes(record, "\n".join(sorted((before | set(contents)) - gone)).encode())
    return documents.digest(hashes)


def _place(name: str) -> tuple[str, ...]:
    """The part of a tree that a plan uses completely or not at all: the tree's name and the first folder below."""
    return tuple(name.split("/")[:-1][:2])


def configure(
    arguments: Sequence[str | Path],
    identity: object,
    folder: BuildFolder,
    names: Mapping[Path, str],
    run: Run,
) -> None:
    """Configure ninja/ with CMake, unless it is already configured with the same arguments.

    Args:
        arguments: of CMake besides the folder and the generator.
        identity: other inputs of the configuration that CMake does not watch, such as the digest of `place`.
        folder: the build folder.
        names: that replace the paths of folders in modules, so that these have no path of this machine; `src` is
            added.

    Raises:
        DcaError: DCA-602 with CMake's error.
    """
    root, stamp = folder.path, folder.path / "configured"
    named = (data.lean_folder() / "names.cmake").read_bytes()
    named_folders = prefixes({root / "src": "src", root / "generated": "generated", **names}, folder.ninja)
    store.write_if_changed(root / "generated/prefixes.rsp", named_folders)
    store.write_if_changed(root / "generated/prefixes.specs", SPECS)
    store.write_if_changed(root / KEEPER, keeping.script(), mode=0o755)
    launcher = root / LAUNCHER
    if not launcher.is_file():
        store.write_bytes(launcher, PLAIN, mode=0o755)
    store.write_if_changed(root / "generated/names.cmake", named)
    words = [
        *arguments,
        f"-DCMAKE_PROJECT_INCLUDE={root / 'generated/names.cmake'}",
        f"-DDCA_ROOT={root}",
        "-B",
        folder.ninja,
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={folder.program('ninja')}",
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
        f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}",
        f"-DCMAKE_CUDA_COMPILER_LAUNCHER={root / KEEPER};{launcher}",
    ]
    inputs = [[str(word) for word in words], identity, named_folders.decode(), named.decode()]
    digest = documents.digest(inputs).encode()
    if (folder.ninja / "build.ninja").is_file() and stamp.is_file() and stamp.read_bytes() == digest:
        return
    run.reporter.stage("configure", "CMake")
    stamp.unlink(missing_ok=True)
    if not _is_of(folder.ninja, arguments):
        # CMake rejects a cache of another source, which an older version of dca may have left.
        (folder.ninja / "CMakeCache.txt").unlink(missing_ok=True)
    done = runner.run(
        [folder.program("cmake"), *words],
        env=folder.env,
        log=run.log,
        timeout=CONFIGURE_SECONDS,
        supervision=runner.Supervision(keep_lines=4000),
    )
    if not done.ok:
        errors = [line for line in done.tail if "Error" in line or "error" in line] or list(done.tail[-8:])
        raise DcaError(
            "DCA-602",
            "CMake could not configure the build.",
            why="\n".join(errors[:6]),
            remedy=f"see {run.log}.",
            output=done.tail,
        )
    store.write_bytes(stamp, digest)


def prefixes(names: Mapping[Path, str], start: Path) -> bytes:
    """Options of the C++ compiler proper in a response file, where a path may have any character.

    Args:
        names: of the folders whose paths they replace in what is compiled.
        start: the folder that compilers run in; ccache makes paths relative to it.
    """
    paths = [(place, name) for folder, name in names.items() for place in (folder, os.path.relpath(folder, start))]
    options = [f"-ffile-prefix-map={place}={name}" for place, name in paths]
    return "".join(re.sub(r"([\\\s'\"])", r"\\\1", option) + "\n" for option in options).encode()


def _is_of(folder: Path, arguments: Sequence[str | Path]) -> bool:
    """Whether CMake's cache is for the source in `arguments`."""
    cache = folder / "CMakeCache.txt"
    source = arguments[list(arguments).index("-S") + 1]
    return cache.is_file() and f"\nCMAKE_HOME_DIRECTORY:INTERNAL={source}\n" in cache.read_text(errors="replace")


@dataclass(frozen=True)
class Outcome:
    """The outcome of a build.

    Args:
        compiled: how many of the targets' objects this build compiled.
        jobs: how many compilers ran in parallel at the end.
    """

    compiled: int
    jobs: int


def build(folder: BuildFolder, targets: Sequence[str], jobs: int, run: Run, started: int | None = None) -> Outcome:
    """Build targets.

    When compilers are killed for lack of memory, the build goes on with half as many in parallel, down to one.

    Args:
        folder: the configured build folder.
        targets: names of modules.
        jobs: how many compilers run in parallel.
        run: the run.
        started: when the build began, in nanoseconds, if not now; objects that are newer count as compiled now.

    Raises:
        DcaError: DCA-603 with the first failed source and the compiler's error, DCA-606 when memory does not suffice
            for one compiler.
    """
    started = started or time.time_ns()
    ninja = folder.ninja
    marker, temporary = ninja / ".building", ninja / "tmp"
    while True:
        _drop_unfinished(ninja, marker)
        store.write_bytes(marker, b"\n".join(_lines(ninja)))
        kills = host_memory.kills()
        with _emptied(temporary), _watched(folder, targets, jobs, run) as watch:
            done = runner.run(
                [folder.program("ninja"), "-C", ninja, "-j", str(jobs), *targets],
                env={**folder.env, "NINJA_STATUS": STATUS, "TMPDIR": str(temporary)},
                log=run.log,
                supervision=runner.Supervision(on_line=watch, on_tick=watch.tick, keep_lines=4000, sharing=True),
            )
        if done.ok:
            break
        if "ninja: build stopped: interrupted by user." in done.tail:
            # Ninja got the signal and this process did not.
            raise Interrupted
        short = _out_of_memory(done, host_memory.killed_since(kills, host_memory.kills()), jobs, run.log)
        if short is None:
            raise _failure(done, run.log)
        if jobs == 1:
            raise short
        run.reporter.note(f"{short.what} {short.why.splitlines()[0]} Continuing with {jobs // 2} in parallel.")
        jobs //= 2
    marker.unlink()
    outputs = [ninja / output for target in targets for output, _ in _entries(ninja, target)]
    return Outcome(sum(path.is_file() and path.stat().st_mtime_ns >= started for path in outputs), jobs)


STATUS = "[%f/%t %r] "
"""Ninja's variable NINJA_STATUS, as `Watcher` reads it."""


@dataclass(frozen=True)
class _Outputs:
    """What ninja makes for some targets.

    Args:
        ninja: CMake's binary folder.
        targets: their names.
        objects: target and source of each object.
    """

    ninja: Path
    targets: Sequence[str]
    objects: Mapping[str, tuple[str, Path]]

    def key(self, output: str) -> tuple[str, str]:
        """Target and name of an output, as in `ObjectTime`; the target is empty for one that is not recorded."""
        if output in self.objects:
            target, source = self.objects[output]
            return target, _name(source, self.ninja)
        file = Path(output).name
        return next((target for target in self.targets if file.startswith(f"{target}.")), ""), file

    def sources(self, output: str) -> dict[str, int]:
        """Bytes of each source of an object, by its name; empty for a module."""
        if output not in self.objects:
            return {}
        paths = _sources_of(self.objects[output][1], self.ninja)
        return {_name(path, self.ninja): path.stat().st_size for path in paths}


@contextlib.contextmanager
def _watched(folder: BuildFolder, targets: Sequence[str], jobs: int, run: Run) -> Iterator[watching.Watcher]:
    """Watch one run of ninja, and record what it compiled, also when it fails."""
    ninja, earlier = folder.ninja, run.times.earlier
    outputs = _Outputs(
        ninja, targets, {output: (target, source) for target in targets for output, source in _entries(ninja, target)}
    )
    pending = list(_pending(folder, targets)) if outputs.objects else []
    records = {output: [*earlier.get(outputs.key(output), ())] for output in pending}
    for output, fields in _logged(ninja).items():
        records.setdefault(output, []).append(_seconds(fields))
    recorded = {output: typical(seconds) for output, seconds in records.items() if seconds}
    estimate = Estimate(
        # A link without a record takes no time, compared with a compiler.
        order=[output for output in pending if output in outputs.objects or output in recorded],
        recorded=recorded,
        heavy=[output for output in pending if ".heavy.dir/" in output],
        lanes=Lanes(jobs, folder.heavy_jobs or jobs),
    )
    watch, logged, begun = watching.Watcher(ninja, estimate, run, len(pending)), set(_lines(ninja)), run.times.now()
    try:
        yield watch
    finally:
        spans = {output: (started, ended, False) for output, started, ended in watch.seen()}
        for line in _lines(ninja):
            fields = line.decode(errors="surrogateescape").split("\t")
            if line not in logged and len(fields) == _LOG_FIELDS:
                started, ended = (round(begun + int(field) / 1000, 3) for field in fields[:2])
                spans[fields[3]] = (started, ended, True)
        run.times.add(
            ObjectTime(
                source=outputs.key(output)[1],
                module=outputs.key(output)[0],
                started=started,
                ended=ended,
                finished=finished,
                sources=outputs.sources(output),
                archs=watch.archs(output, ended - started),
            )
            for output, (started, ended, finished) in spans.items()
            if outputs.key(output)[0]
        )


def _pending(folder: BuildFolder, targets: Sequence[str]) -> Iterator[str]:
    """What ninja would make, in the order in which it would start it."""
    done = runner.run(
        [folder.program("ninja"), "-C", folder.ninja, "-n", *targets],
        env={**folder.env, "NINJA_STATUS": STATUS},
        # Without a guardian, because it ends by itself at once.
        supervision=runner.Supervision(keep_lines=100_000, guarded=False),
    )
    return watching.listed(done.tail)


@contextlib.contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    """An empty folder for compilers' temporary files: a killed nvcc leaves megabytes."""
    if folder.exists():
        store.remove(folder)
    folder.mkdir()
    try:
        yield
    finally:
        store.remove(folder)


def _drop_unfinished(folder: Path, marker: Path) -> None:
    """Remove unfinished outputs of a failed or killed build that ninja would consider finished.

    ninja builds again what is missing in its log, or older there than its source. It does not notice an unfinished
    output that the log has from an earlier build.
    """
    log, deps = folder / ".ninja_log", folder / ".ninja_deps"
    for path, whole in ((log, _whole_lines), (deps, _whole_records)):
        # ninja could not read records that follow an incomplete one.
        if path.is_file() and (size := whole(content := path.read_bytes())) < len(content):
            store.write_bytes(path, content[:size])
    if not marker.is_file():
        return
    before, since = set(marker.read_bytes().split(b"\n")), marker.stat().st_mtime_ns
    for line in _lines(folder):
        fields = line.split(b"\t")
        if line in before and len(fields) == _LOG_FIELDS:
            output = folder / os.fsdecode(fields[3])
            if _MADE.search(output.name) and output.is_file() and output.stat().st_mtime_ns > since:
                output.unlink()


def _whole_lines(content: bytes) -> int:
    return content.rfind(b"\n") + 1


def _whole_records(content: bytes) -> int:
    """Bytes of ninja's dependency log up to its last complete record; each record begins with its size.

    ninja itself detects an incomplete record, unless the cut is within the size.
    """
    end = len(b"# ninjadeps\n") + 4
    while end + 4 <= len(content):
        # The highest bit of the size is the kind of record.
        after = end + 4 + (int.from_bytes(content[end : end + 4], sys.byteorder) & 0x7FFFFFFF)
        if after > len(content):
            break
        end = after
    return end


# Fields in a line of ninja's log: start and end in milliseconds, time of the output, output, hash of the command.
_LOG_FIELDS = 5
# Outputs of compilers and linkers; CMake's outputs may be newer because it also runs outside ninja.
_MADE = re.compile(r"\.(o|a|so(\.\d+)*)$")


def _lines(folder: Path) -> list[bytes]:
    """Ninja's log, the last line of each output."""
    path = folder / ".ninja_log"
    lines = path.read_bytes().splitlines() if path.is_file() else []
    last = {}
    for line in lines:
        fields = line.split(b"\t")
        last[fields[3] if len(fields) == _LOG_FIELDS else line] = line
    return list(last.values())


def commands(folder: BuildFolder, targets: Sequence[str]) -> tuple[str, ...]:
    """Every command that builds the targets from scratch, in the order in which ninja would start them.

    Raises:
        DcaError: DCA-603 when ninja cannot read the folder.
    """
    # Enough lines for every command: the runner drops older ones.
    done = runner.run(
        [folder.program("ninja"), "-C", folder.ninja, "-t", "commands", *targets],
        env=folder.env,
        supervision=runner.Supervision(keep_lines=100_000),
    )
    if not done.ok:
        raise DcaError(
            "DCA-603", "ninja cannot list its commands.", why=done.text[-400:], output=done.tail, remedy="see the log."
        )
    return tuple(line for line in done.tail if not line.startswith("ninja: "))


def is_begun(folder: Path) -> bool:
    """Whether anything was compiled in a build folder, according to ninja's log."""
    return any(line.rsplit(b"\t", 1)[0].endswith(b".o") for line in _lines(folder / "ninja"))


def sources(folder: Path, target: str) -> tuple[str, ...]:
    """The sources of a target's objects, named as in `objects`; available before anything is compiled."""
    return tuple(sorted(_name(source, folder) for _, source in _entries(folder, target)))


def objects(folder: Path, target: str) -> tuple[CompiledObject, ...]:
    """A target's objects according to ninja's log, each with its source according to CMake."""
    logged = _logged(folder)
    compiled = []
    for output, source in _entries(folder, target):
        if output in logged:
            compiled.append(
                CompiledObject(
                    source=_name(source, folder),
                    sha256=store.sha256_file(source),
                    seconds=_seconds(logged[output]),
                    command_hash=logged[output][4],
                    includes=_included(source, folder),
                )
            )
    return tuple(sorted(compiled, key=lambda built: built.source))


def object_files(folder: Path, target: str) -> list[tuple[Path, str]]:
    """The files of a target's objects that nvcc compiles, each with its source, named as in `objects`."""
    entries = _entries(folder, target)
    return [(folder / output, _name(source, folder)) for output, source in entries if source.suffix == ".cu"]


def _entries(folder: Path, target: str) -> list[tuple[str, Path]]:
    """(object, source) of a target; a nested project has its objects in its own folder."""
    # Heavy sources and units have targets of their own (build/lean).
    below = re.compile(rf"(?:.*/)?CMakeFiles/{re.escape(target)}(?:\.heavy|\.units)?\.dir/")
    commands_file = folder / "compile_commands.json"
    entries = json.loads(commands_file.read_text()) if commands_file.is_file() else []
    return [(entry["output"], Path(entry["file"])) for entry in entries if below.match(entry["output"])]


def _included(source: Path, folder: Path) -> dict[str, str]:
    """The sources of a unit that dca generated, and nothing for any other source."""
    if not _is_unit(source, folder):
        return {}
    return {_name(path, folder): store.sha256_file(path) for path in units.sources_of(source)}


def _is_unit(source: Path, folder: Path) -> bool:
    return source.suffix == ".cu" and source.parent == folder.parent / "generated"


def _sources_of(source: Path, folder: Path) -> tuple[Path, ...]:
    """The sources of a unit; any other source itself."""
    return units.sources_of(source) if _is_unit(source, folder) else (source,)


def _name(source: Path, folder: Path) -> str:
    return source.relative_to(folder.parent).as_posix().removeprefix("src/")


def _logged(folder: Path) -> dict[str, list[str]]:
    """Fields of the last line of each output in ninja's log."""
    lines = [line.decode(errors="surrogateescape").split("\t") for line in _lines(folder)]
    return {fields[3]: fields for fields in lines if len(fields) == _LOG_FIELDS}


def _seconds(fields: Sequence[str]) -> float:
    """How long a command of ninja's log took."""
    return round((int(fields[1]) - int(fields[0])) / 1000, 2)


@dataclass(frozen=True)
class _Failed:
    """A failed build edge, as ninja reports it.

    Args:
        what: "compiling a.cu.o" or "linking _C.abi3.so".
        status: its exit status; None when ninja is too old to report it.
        lines: the compiler's output, after the command.
    """

    what: str
    status: int | None
    lines: tuple[str, ...]

    def words(self) -> str:
        """The most informative lines."""
        informative = re.compile(r"\b(error|fatal|cannot find|undefined|Killed|signal|memory|bad_alloc)\b")
        return "\n".join([line for line in self.lines if informative.search(line)][:4] or self.lines[:6])


def _failed(lines: Sequence[str]) -> list[_Failed]:
    """Every failed edge, in ninja's order."""
    edges: list[tuple[str, int | None, list[str]]] = []
    open_ = False
    for line in lines:
        # Newer ninja puts the exit status before the name.
        if match := re.match(r"FAILED: (?:\[code=(\d+)\] )?(.*)", line):
            name = match[2].strip().split("/")[-1]
            what = f"{'compiling' if name.endswith('.o') else 'linking'} {name}"
            edges.append((what, int(match[1]) if match[1] else None, []))
            open_ = True
        elif watching.Watcher.STATUS.match(line) or line.startswith("ninja: "):
            open_ = False
        elif open_:
            edges[-1][2].append(line)
    # The first line of each is its command.
    return [_Failed(what, status, tuple(words[1:])) for what, status, words in edges]


def failed_objects(lines: Sequence[str]) -> frozenset[str]:
    """Names of the objects that did not compile, from ninja's lines."""
    return frozenset(edge.what.removeprefix("compiling ") for edge in _failed(lines))


# A compiler that names a place in a source has not run out of memory.
_DIAGNOSTIC = re.compile(r"(\(\d+\)|:\d+(:\d+)?): (fatal )?error\b|undefined reference")
_KILLED = re.compile(
    r"died due to signal 9\b|Killed signal terminated|(?:terminated with|killed by) signal 9\b|^Killed$|: Killed\b"
)
_EXHAUSTED = re.compile(
    r"virtual memory exhausted|out of memory|std::bad_alloc|[Cc]annot allocate memory|[Mm]emory allocation fail"
)
_STATUS_KILLED = 128 + signal.SIGKILL


def _out_of_memory(done: runner.Completed, moved: str, jobs: int, log: Path) -> DcaError | None:
    """The error for compilers that ran out of memory; None when the failure has another cause.

    Args:
        done: ninja's run.
        moved: which of the kernel's counters shows that it killed a process for memory meanwhile; may be empty.
        jobs: how many compilers ran in parallel.
    """
    failed = _failed(done.tail)
    killed = [edge for edge in failed if edge.status == _STATUS_KILLED or any(map(_KILLED.search, edge.lines))]
    short = [*killed, *(edge for edge in failed if edge not in killed and any(map(_EXHAUSTED.search, edge.lines)))]
    if len(short) < len(failed) or any(map(_DIAGNOSTIC.search, (line for edge in failed for line in edge.lines))):
        return None
    if not failed and not (done.returncode == -signal.SIGKILL and moved):
        return None
    # The kernel may have killed ninja itself.
    what = failed[0].what if failed else "ninja"
    if moved:
        summary = f"{what} was killed for lack of memory."
    elif killed:
        summary = f"{what} was killed by signal 9, probably for lack of memory."
    else:
        summary = f"{what} ran out of memory."
    free, limit = host_memory.available_bytes() / 2**30, host_memory.limit_bytes() / 2**30
    running = f"{jobs} compilers ran in parallel" if jobs > 1 else "one compiler ran"
    why = f"{running}, with {limit:.1f} GiB of memory, of which {free:.1f} GiB are free now."
    return DcaError(
        "DCA-606",
        summary,
        why="\n".join([why, *([f"{moved}."] if moved else []), *([failed[0].words()] if failed else [])]),
        remedy="give the machine or the container more memory, or stop other programs; then run the same command "
        f"again: finished objects are kept. The complete output is in {log}.",
        output=done.tail,
    )


def _failure(done: runner.Completed, log: Path) -> DcaError:
    """The error for a failed build: the first failed edge and the compiler's error."""
    failed = _failed(done.tail)
    if not failed:
        why = "\n".join(done.tail[-6:]) or f"it ended with status {done.returncode}."
        return DcaError("DCA-603", "ninja failed.", why=why, remedy=f"see {log}.", output=done.tail)
    return DcaError(
        "DCA-603",
        f"{failed[0].what} failed.",
        why=failed[0].words(),
        remedy=f"see the complete output in {log}; finished objects are kept for the next build.",
        output=done.tail,
    )
