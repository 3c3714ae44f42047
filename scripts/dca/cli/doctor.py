"""`dca doctor`."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import click

from dca import doctor
from dca.catalogue import recipes, toolkits
from dca.cli import options
from dca.cli.packing import packed
from dca.doctor import GROUPS, Purpose, Report
from dca.doctor.probes import PATIENCE, Probes, places
from dca.foundation.errors import DcaError
from dca.foundation.suggestion import did_you_mean

WAIT = 0.6
"""Seconds for the network when other checks run too; alone it gets PATIENCE."""
TITLES = {"gpus": "GPUs", "cuda": "CUDA", "python": "Python"}
MARKS = {"fine": "ok", "note": "note", "wrong": "WRONG", "unknown": "?"}
COUNTED = {"fine": "fine", "note": "notes", "wrong": "wrong", "unknown": "unknown"}


@dataclass(frozen=True)
class Goal:
    """What the machine is checked for.

    Args:
        model: folder of the model to serve.
        recipe: the only recipe to check for; None for all.
        cuda: the CUDA line to build with.
        python: of the environment to look at; None for the active one, else the cache's.
    """

    purpose: Purpose
    model: Path | None
    recipe: str | None
    cuda: str | None
    python: Path | None

    def subject(self, probes: Probes, known: tuple[recipes.Loaded, ...], cache_dir: Path | None) -> doctor.Subject:
        """What the checks look at.

        Raises:
            DcaError: DCA-201, DCA-204.
        """
        options.check_cuda(self.cuda)
        if self.model is not None and self.purpose != "serve":
            raise DcaError("DCA-201", "--model needs --for serve.", remedy="add --for serve.")
        model = options.local("--model", self.model)
        return doctor.Subject(
            purpose=self.purpose,
            recipes=known,
            network=probes,
            cache=options.open_cache(cache_dir).root,
            lines=(self.cuda,) if self.cuda else (),
            python=options.program("--python", self.python) if self.python else None,
            model=Path(model) if model else None,
        )


@dataclass(frozen=True)
class Choice:
    """Which checks run.

    Args:
        only: checks and groups; empty for all.
        skip: checks and groups that do not run.
        wait: seconds for the network; None for the default.
    """

    only: tuple[str, ...]
    skip: tuple[str, ...]
    wait: float | None


@click.command("doctor")
@packed(
    Goal,
    "goal",
    click.option(
        "--for",
        "purpose",
        type=click.Choice(["build", "serve"]),
        default="build",
        show_default=True,
        help="Check that this machine can build a wheel, or serve a model.",
    ),
    click.option("--model", type=options.MODEL, metavar="DIR", help="Folder of the model to serve."),
    options.download,
    click.option("--recipe", show_default="any recipe", help="Check what this recipe needs."),
    click.option("--cuda", help="CUDA version to build with, such as 12.4."),
    click.option(
        "--python",
        type=options.PATH,
        metavar="FILE",
        show_default="the active environment's, else the newest run environment's in the cache",
        help="Python of the environment to check.",
    ),
)
@packed(
    Choice,
    "choice",
    click.option("--only", multiple=True, metavar="CHECK", help="Run only this check or group. Can be repeated."),
    click.option("--skip", multiple=True, metavar="CHECK", help="Skip this check or group. Can be repeated."),
    click.option(
        "--wait",
        type=click.FloatRange(0.01, 60),
        metavar="SECONDS",
        show_default=f"{WAIT}; {PATIENCE:g} when only the network is checked",
        help="Time limit for the network checks.",
    ),
)
@click.option("-v", "--verbose", is_flag=True, help="Also show what each check requires, and its details.")
@options.schema(Report)
@options.cache
@options.output
def command(goal: Goal, choice: Choice, verbose: bool, cache_dir: Path | None, output: options.Output) -> None:
    """Check this machine: one line per check, and the command that fixes what is wrong.

    Works without GPU, CUDA and network, and in containers. Changes nothing. Exit 1 means that something is wrong.
    """
    known = recipes.load_all()
    # A plugin, which compiles nothing, is only looked at if it is named.
    known = (recipes.find(goal.recipe, known),) if goal.recipe is not None else recipes.compiling(known)
    plugin = all(loaded.recipe.is_plugin for loaded in known)
    entries = doctor.chosen(goal.purpose, _names("--only", choice.only), _names("--skip", choice.skip), plugin=plugin)
    if not entries:
        raise DcaError("DCA-201", "--only and --skip leave no check.", remedy=f"groups are {', '.join(GROUPS)}.")
    networked = [entry.code.startswith("network.") for entry in entries]
    alone = bool(choice.only) and all(networked)
    asked = places(known, toolkits.load_sources(platform.machine())) if any(networked) else {}
    probes = Probes(asked, choice.wait or (PATIENCE if alone else WAIT))
    report = doctor.examine(goal.subject(probes, known, cache_dir), entries)
    # Even --quiet shows what is wrong.
    output.show(report, render(report, verbose=verbose, quiet=output.quiet), always=True)
    if report.wrong:
        raise DcaError(
            "DCA-105",
            f"{len(report.wrong)} of {len(report.results)} checks failed.",
            why=", ".join(dict.fromkeys(result.code for result in report.wrong)) + ".",
            remedy="\n".join(dict.fromkeys(result.remedy for result in report.wrong)),
            answered=output.as_json,
        )


def _names(flag: str, texts: tuple[str, ...]) -> tuple[str, ...]:
    """Checks and groups, which may be separated by commas."""
    known = [*GROUPS, *(entry.code for entry in doctor.CHECKS)]
    names = tuple(map(str.lower, options.all_words(texts)))
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known, f"groups are {', '.join(GROUPS)}.")
            raise DcaError("DCA-201", f"{flag}: there is no check `{name}`.", remedy=hint)
    return names


def render(report: Report, *, verbose: bool = False, quiet: bool = False) -> str:
    """A report as text; with `quiet`, only what is wrong."""
    shown = report.wrong if quiet else report.results
    width = max((len(result.code) for result in shown), default=0)
    pad = " " * (width + 11)
    lines: list[str] = []
    for group in GROUPS:
        results = [result for result in shown if result.code.startswith(group + ".")]
        if results:
            lines += [*([""] if lines else []), TITLES.get(group, group)]
        for result in results:
            lines.append(f"  {MARKS[result.status]:<5}  {result.code:<{width}}  {result.found}")
            if result.wanted and (verbose or result.status != "fine"):
                lines.append(f"{pad}required: {result.wanted}")
            if result.remedy and result.status != "fine":
                lines.append(f"{pad}next:     {result.remedy}")
            lines += [f"{pad}{detail}" for detail in result.details] if verbose else []
    if not quiet:
        statuses: list[str] = [result.status for result in report.results]
        counts = ", ".join(f"{statuses.count(status)} {word}" for status, word in COUNTED.items())
        lines += ["", f"checks for {report.purpose}: {counts}"]
    return "\n".join(lines)
