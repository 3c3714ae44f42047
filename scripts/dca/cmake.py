"""A kept build folder: places its sources, configures it with CMake, builds it with ninja, reads what ninja did.

In it, `src/` holds copies of what is compiled, at a place that never changes, `ninja/` is CMake's binary folder,
`configured` the identity of the last configuration, and `placed` the names of the copies.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dca import documents, runner, store
from dca.documents import Value
from dca.errors import DcaError
from dca.events import Reporter

CONFIGURE_SECONDS = 600.0


class CompiledObject(Value):
    """One line of ninja's log: an object, the source it was made from, and how long that took.

    Args:
        source: tree and path, such as source/csrc/sampler.cu; `generated/…` for what dca wrote.
        sha256: of that source.
        seconds: as ninja measured it, in the run that made it.
        command_hash: ninja's own hash of the command line.
    """

    source: str
    sha256: str
    seconds: float
    command_hash: str


def place(wanted: Mapping[str, Path | bytes], folder: Path) -> str:
    """Bring the copies of the sources up to date, touching only what differs; the digest of all of them.

    Objects depend on these copies, so a patch of Python, or a new folder for the tree, compiles nothing again. What
    upstream's CMake generates beside them stays.

    Args:
        wanted: what goes into src/, by its path there; a file to copy, or the content itself.
        folder: the build folder.
    """
    source, record = folder / "src", folder / "placed"
    before = set(record.read_text().splitlines()) if record.is_file() else set()
    # Written before the first copy too: what a killed run has placed is still known to be ours.
    store.write_bytes(record, "\n".join(sorted(before | set(wanted))).encode())
    hashes = {}
    for name, what in wanted.items():
        content = what if isinstance(what, bytes) else what.read_bytes()
        store.write_if_changed(source / name, content)
        hashes[name] = store.sha256_bytes(content)
    for name in before - set(wanted):
        (source / name).unlink(missing_ok=True)
    store.write_bytes(record, "\n".join(sorted(wanted)).encode())
    return documents.digest(hashes)


def configure(
    arguments: Sequence[str | Path], identity: object, folder: Path, python: Path, env: dict[str, str],
    reporter: Reporter, log: Path,
) -> None:  # fmt: skip
    """Configure ninja/ with CMake, unless it is configured with the same arguments already.

    Args:
        arguments: what CMake is told besides the folder and the generator.
        identity: what else decides the outcome and CMake does not watch, such as the digest of `place`.
        folder: the build folder.
        python: of the build environment, which CMake and ninja belong to.

    Raises:
        DcaError: DCA-602 with CMake's own words.
    """
    stamp = folder / "configured"
    words = [
        *arguments, "-B", folder / "ninja", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={python.parent / 'ninja'}",
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
    ]  # fmt: skip
    wanted = documents.digest([[str(word) for word in words], identity]).encode()
    if (folder / "ninja/build.ninja").is_file() and stamp.is_file() and stamp.read_bytes() == wanted:
        return
    reporter.stage("configure", "CMake")
    stamp.unlink(missing_ok=True)
    if not _is_of(folder / "ninja", arguments):
        # CMake refuses a cache of another source, as an older version of this tool may have left it.
        (folder / "ninja/CMakeCache.txt").unlink(missing_ok=True)
    done = runner.run([python.parent / "cmake", *words], env=env, log=log, timeout=CONFIGURE_SECONDS, keep_lines=4000)
    if not done.ok:
        errors = [line for line in done.tail if "Error" in line or "error" in line] or list(done.tail[-8:])
        raise DcaError(
            "DCA-602", "CMake could not configure the build.", why="\n".join(errors[:6]), remedy=f"see {log}."
        )
    store.write_bytes(stamp, wanted)


def _is_of(folder: Path, arguments: Sequence[str | Path]) -> bool:
    """Whether CMake's cache was made for the source that `arguments` name."""
    cache = folder / "CMakeCache.txt"
    source = arguments[list(arguments).index("-S") + 1]
    return cache.is_file() and f"\nCMAKE_HOME_DIRECTORY:INTERNAL={source}\n" in cache.read_text(errors="replace")


def build(
    folder: Path, targets: Sequence[str], jobs: int, python: Path, env: dict[str, str], reporter: Reporter, log: Path
) -> int:
    """Bring targets up to date; the number of their objects that were compiled in this run.

    Args:
        folder: the configured build folder.
        python: of the build environment, which ninja belongs to.

    Raises:
        DcaError: DCA-603 with the first failed source and the compiler's own words.
    """
    started = time.time_ns()
    watch = Watcher(reporter)
    done = runner.run(
        [python.parent / "ninja", "-C", folder, "-j", str(jobs), *targets],
        env={**env, "NINJA_STATUS": "[%f/%t %r] "}, log=log, on_line=watch, on_tick=watch.tick, keep_lines=4000,
    )  # fmt: skip
    if not done.ok:
        raise _failure(done, log)
    made = [folder / output for target in targets for output, _ in _entries(folder, target)]
    return sum(path.is_file() and path.stat().st_mtime_ns >= started for path in made)


def commands(folder: Path, targets: Sequence[str], python: Path, env: dict[str, str]) -> tuple[str, ...]:
    """Every command that would make the targets from nothing, in the order ninja would start them.

    Raises:
        DcaError: DCA-603 when ninja cannot read the folder.
    """
    # As many lines as there are commands: none may be dropped.
    done = runner.run([python.parent / "ninja", "-C", folder, "-t", "commands", *targets], env=env, keep_lines=100_000)
    if not done.ok:
        raise DcaError("DCA-603", "ninja cannot list its commands.", why=done.text[-400:], remedy="see the log.")
    return tuple(line for line in done.tail if not line.startswith("ninja: "))


def sources(folder: Path, target: str) -> tuple[str, ...]:
    """What a target's objects are made from, as `objects` names it; before anything is compiled."""
    return tuple(sorted(_name(source, folder) for _, source in _entries(folder, target)))


def objects(folder: Path, target: str) -> tuple[CompiledObject, ...]:
    """A target's lines of ninja's log, each with the source that it was made from as CMake names it."""
    logged = _logged(folder)
    found = []
    for output, source in _entries(folder, target):
        if output in logged:
            started, ended, _, _, command = logged[output]
            found.append(CompiledObject(
                source=_name(source, folder), sha256=store.sha256_file(source),
                seconds=round((int(ended) - int(started)) / 1000, 2), command_hash=command,
            ))  # fmt: skip
    return tuple(sorted(found, key=lambda one: one.source))


def _entries(folder: Path, target: str) -> list[tuple[str, Path]]:
    """(object, source) of a target; a project inside of the project has its objects in a folder of its own."""
    below = re.compile(rf"(?:.*/)?CMakeFiles/{re.escape(target)}\.dir/")
    entries = json.loads((folder / "compile_commands.json").read_text())
    return [(entry["output"], Path(entry["file"])) for entry in entries if below.match(entry["output"])]


def _name(source: Path, folder: Path) -> str:
    return source.relative_to(folder.parent).as_posix().removeprefix("src/")


def _logged(folder: Path) -> dict[str, list[str]]:
    """Fields of ninja's log by output; the last line of each output counts."""
    path = folder / ".ninja_log"
    lines = path.read_text(errors="surrogateescape").splitlines() if path.is_file() else []
    return {fields[3]: fields for line in lines if len(fields := line.split("\t")) == 5}


class Watcher:
    """Turns ninja's status lines into progress."""

    _STATUS = re.compile(r"^\[(\d+)/(\d+) \d+\] (.*)")

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._last = (0, 0, "the first objects")

    def __call__(self, line: str) -> None:
        """Read one line of ninja's output."""
        if match := self._STATUS.match(line):
            self._last = (int(match[1]), int(match[2]), match[3].rsplit("/", 1)[-1])
            self.tick()

    def tick(self) -> None:
        """Tell again how far it is: objects take minutes, and silence looks like a hang."""
        self._reporter.progress(*self._last)


def _failure(done: runner.Completed, log: Path) -> DcaError:
    """The error for a failed compile: the first failed edge and the compiler's own words."""
    lines = list(done.tail)
    failed = next((number for number, line in enumerate(lines) if line.startswith("FAILED: ")), None)
    if failed is None:
        return DcaError("DCA-603", "ninja failed.", why="\n".join(lines[-6:]), remedy=f"see {log}.")
    errors = [
        line for line in lines[failed:] if re.search(r"\b(error|fatal|cannot find|undefined|Killed|signal)\b", line)
    ][:4]
    # Newer ninja puts the exit status before the name.
    what = re.sub(r"^FAILED: (\[code=\d+\] )?", "", lines[failed]).strip().split("/")[-1]
    return DcaError(
        "DCA-603",
        f"{'compiling' if what.endswith('.o') else 'linking'} {what} failed.",
        why="\n".join(errors or lines[failed + 2 : failed + 8]),
        remedy=f"the whole output is in {log}; the next run goes on with what is missing.",
    )
