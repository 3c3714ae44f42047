"""Lets one call of a program that changes files fail, or kills the program there: see faulty.c."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

SOURCE = Path(__file__).with_name("faulty.c")


@dataclass
class Ended:
    """How a program ended.

    Args:
        calls: that changed files; 0 when it was killed.
        killed: whether it came to the call at which it was to be killed.
    """

    returncode: int
    calls: int
    killed: bool
    stderr: str


@dataclass(frozen=True)
class Faulty:
    """The library that stands between a program and its files.

    Args:
        library: the file.
    """

    library: Path

    @classmethod
    def build(cls, folder: Path) -> Faulty:
        """Compile it; any C compiler will do."""
        compiler = next(path for name in ("cc", "gcc", "g++") if (path := shutil.which(name)))
        library = folder / "faulty.so"
        subprocess.run(
            [compiler, "-x", "c", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True
        )
        return cls(library)

    def run(self, words: list[str], root: Path, at: int = 0, how: str = "") -> Ended:
        """Run a command.

        Args:
            words: the command.
            root: the folder whose changes count.
            at: number of the call, from 1; with 0 nothing happens to any.
            how: "before" or "after" to kill it there, from outside and with SIGKILL; an errno for that call to fail
                with; an errno and "+" for all calls from then on but removals, as on a full disk.
        """
        told, tell = os.pipe()
        env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "LD_PRELOAD": str(self.library)}
        env |= {"FAULTY_ROOT": str(root.resolve()), "FAULTY_AT": str(at), "FAULTY_HOW": how, "FAULTY_TELL": str(tell)}
        process = subprocess.Popen(
            words, cwd=ROOT, env=env, pass_fds=(tell,), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        os.close(tell)
        # Nothing but the end of the program or the chosen call writes there.
        said = os.read(told, 64).decode()
        killed = said == "stopped\n"
        if killed:
            process.send_signal(signal.SIGKILL)
        stderr = process.communicate()[1]
        os.close(told)
        return Ended(process.returncode, int(said) if said.strip().isdigit() else 0, killed, stderr)
