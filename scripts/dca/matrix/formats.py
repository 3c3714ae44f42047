"""Writes the jobs of a matrix in the formats of engines that run them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Literal

import dca
from dca.foundation import documents
from dca.foundation.errors import DcaError
from dca.foundation.printable import shown
from dca.matrix.jobs import Wish, most
from dca.matrix.values import Job, Jobs

Format = Literal["github", "gitlab", "buildkite", "slurm", "json"]
FORMATS: tuple[Format, ...] = ("github", "gitlab", "buildkite", "slurm", "json")
TEMPLATES = Path(__file__).with_name("templates")
LIMITS: dict[Format, int] = {"github": 256, "slurm": 1001}
"""How many jobs an engine takes: GitHub of one matrix, Slurm as its MaxArraySize is by default."""
ESCAPED: dict[Format, tuple[str, str]] = {"github": ("${{", "${{ '${{' }}"), "buildkite": ("$", "$$")}
"""What an engine replaces in a text before anything else reads it, and how it is written so that it stays."""
SERVICES: tuple[Format, ...] = ("github", "gitlab", "buildkite")
"""Engines whose jobs begin in a new checkout of a repository."""
# What a service reads in a way of its own in the names of folders that it keeps: patterns, variables, home folders.
_PATTERN = set("*?[]{}!$~\\")
OWN = ".venv/bin/dca"
"""The program in a checkout, after `make venv`."""


def write(jobs: Jobs, kind: Format, wish: Wish, action: str = "") -> str:
    """The text of a file that an engine takes.

    Args:
        jobs: at least one.
        kind: the engine, or `json` for the jobs themselves.
        wish: how the jobs were written.
        action: of GitHub, `OWNER/NAME@COMMIT`, which brings `dca` into another repository; empty for a repository that
            is a checkout of dca.

    Raises:
        DcaError: DCA-223 for more jobs than the engine takes.
    """
    if kind == "json":
        return documents.dumps(jobs).decode()
    if len(jobs.jobs) > LIMITS.get(kind, len(jobs.jobs)):
        raise DcaError(
            "DCA-223",
            f"{jobs.matrix} gives {len(jobs.jobs)} wheels, and {kind} takes {LIMITS[kind]} jobs at a time.",
            remedy="divide it into several files.",
        )
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # noqa: S701 - it is no HTML; texts of YAML go through `quoted`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["quoted"] = lambda text: _quoted(text.replace(*ESCAPED.get(kind, ("$", "$"))))
    program = '"${DCA:-dca}"' if kind == "slurm" else "dca" if action else OWN

    def line(job: Job, report: str, cell: str = "") -> str:
        return _line(program, job, report, cell)

    cores, gib = most(jobs.jobs)
    return environment.get_template(f"{kind}.j2").render(
        jobs=jobs.jobs,
        matrix=jobs.matrix,
        cores=cores,
        gib=gib,
        out=wish.out,
        # Machines of GitHub have no folder in common: what each publishes is merged at the end.
        index=wish.index,
        bucket=bool(wish.bucket),
        program=program,
        merged=shlex.quote(str(wish.index)),
        action=action,
        line=line,
        version=dca.__version__,
    )


def check(kind: Format, file: Path, out: Path, index: Path | None) -> None:
    """Reject paths that a job of an engine would read otherwise, or not find.

    Args:
        kind: the engine, or `json`.
        file: of the matrix.
        out: folder of the wheels.
        index: folder of the index; None for none.

    Raises:
        DcaError: DCA-201.
    """
    named = {"MATRIX.toml": file, "--out": out, "--index": index}
    for flag, path in named.items():
        if path is not None and not str(path).isprintable():
            raise DcaError(
                "DCA-201",
                f"{flag}: {shown(str(path))} has a character that cannot be printed.",
                why="a line break in it would begin a line of the file that is written.",
                remedy="rename it.",
            )
    # Each machine of GitHub publishes to a folder of its own; others may have one in common, which can be anywhere.
    inside = {"github": tuple(named), "gitlab": ("MATRIX.toml", "--out"), "buildkite": ("MATRIX.toml",)}.get(kind, ())
    for flag in inside:
        path = named[flag]
        if path is not None and (path.is_absolute() or ".." in path.parts):
            raise DcaError(
                "DCA-201",
                f"{flag}: {path} does not lie in the repository.",
                why="a job begins in a new checkout, on another machine.",
                remedy="run the command in the repository's top folder, and give a path relative to it.",
            )
    for flag in ("--out", "--index") if kind in SERVICES else ():
        text = str(named[flag] or "")
        if _PATTERN & set(text) or text != text.strip():
            raise DcaError(
                "DCA-201",
                f"{flag}: {named[flag]} would be read as a pattern of names by {kind}.",
                remedy="choose a name without spaces at its ends, and without any of * ? [ ] { } ! $ ~ and backslash.",
            )


def _quoted(value: str) -> str:
    """A text as YAML reads it, whatever is in it: JSON's strings are YAML's."""
    return json.dumps(value, ensure_ascii=False)


def _line(program: str, job: Job, report: str, cell: str) -> str:
    """A job's command as a line of a shell.

    Args:
        program: as the shell reads it.
        job: the job.
        report: the file of its report; it may have a variable.
        cell: the variable that names the cell, as the shell reads it; empty for the job's own.
    """
    words = [shlex.quote(word) for word in job.command[1:]]
    if cell:
        words[words.index("--cell") + 1] = f'"{cell}"'
    return " ".join([program, *words, "--report", f'"{report}"' if "$" in report else shlex.quote(report)])
