"""`dca doctor`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import click

from dca import doctor
from dca.catalogue import recipes, toolkits
from dca.cli import options
from dca.doctor import GROUPS, Purpose, Report
from dca.doctor.probes import PATIENCE, Probes, places
from dca.foundation import documents
from dca.foundation.errors import DcaError
from dca.foundation.suggestion import did_you_mean

WAIT = 0.6
"""Seconds that the network is given among other checks; by itself it is given more."""
TITLES = {"gpus": "GPUs", "cuda": "CUDA", "python": "Python"}
MARKS = {"fine": "ok", "note": "note", "wrong": "WRONG", "unknown": "?"}


@click.command("doctor")
@click.option("--for", "purpose", type=click.Choice(["build", "serve"]), default="build", show_default=True)
@click.option("--model", type=click.Path(path_type=Path), metavar="DIR", help="The model that is to be served.")
@click.option("--recipe", help="Only what this recipe needs [any recipe].")
@click.option("--cuda", help="The CUDA line that is to be built with, such as 12.4.")
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The Python of the environment to look at [the active one, else the run environment of the cache].",
)
@click.option("--only", multiple=True, metavar="CHECK", help="Only this check or group; may be given more than once.")
@click.option("--skip", multiple=True, metavar="CHECK", help="Not this check or group.")
@click.option(
    "--wait",
    type=click.FloatRange(0.01, 60),
    metavar="SECONDS",
    help=f"For the network [{WAIT}; {PATIENCE:g} with --only network].",
)
@click.option("-v", "--verbose", is_flag=True, help="Also what was wanted, and more of each check.")
@click.option("--schema", is_flag=True, help="The JSON Schema of what --json prints, and nothing else.")
@options.cache
@options.output
def command(
    purpose: Purpose,
    model: Path | None,
    recipe: str | None,
    cuda: str | None,
    python: Path | None,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    wait: float | None,
    verbose: bool,
    schema: bool,
    cache_dir: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check this machine: one line per check, and the command that mends what is wrong.

    Works without GPU, CUDA and network, and in containers. Nothing is changed. Exit 1 means that something is wrong.
    """
    if schema:
        click.echo(json.dumps(documents.json_schema(Report), indent=2))
        return
    options.check_cuda(cuda)
    if model is not None and purpose != "serve":
        raise DcaError("DCA-201", "--model goes with --for serve.", remedy="add --for serve.")
    if model is not None and not model.exists():
        raise DcaError("DCA-204", f"--model: {model} does not exist.", remedy="check the path.")
    only, skip = _names("--only", only), _names("--skip", skip)
    known = recipes.load_all()
    if recipe is not None:
        known = (recipes.find(recipe, known),)
    entries = doctor.chosen(purpose, only, skip)
    if not entries:
        raise DcaError("DCA-201", "no check is left.", remedy=f"groups are {', '.join(GROUPS)}.")
    networked = any(entry.code.startswith("network.") for entry in entries)
    alone = bool(only) and all(entry.code.startswith("network.") for entry in entries)
    asked = places(known, toolkits.load_sources()) if networked else {}
    probes = Probes(asked, wait or (PATIENCE if alone else WAIT))
    subject = doctor.Subject(
        purpose=purpose,
        recipes=known,
        network=probes,
        cache=options.open_cache(cache_dir).root,
        lines=(cuda,) if cuda else (),
        python=_program(python) if python else None,
        model=options.resolve(model) if model else None,
    )
    report = doctor.examine(subject, entries)
    if as_json:
        click.echo(documents.dumps(report).decode(), nl=False)
    elif not quiet or report.wrong:
        click.echo(render(report, verbose=verbose, quiet=quiet))
    if report.wrong:
        raise DcaError(
            "DCA-105",
            f"{len(report.wrong)} of {len(report.results)} checks found something wrong.",
            why=", ".join(dict.fromkeys(result.code for result in report.wrong)) + ".",
            remedy="\n".join(dict.fromkeys(result.remedy for result in report.wrong)),
            answered=as_json,
        )


def _names(flag: str, texts: tuple[str, ...]) -> tuple[str, ...]:
    """Checks and groups, which may be given with commas between."""
    known = [*GROUPS, *(entry.code for entry in doctor.CHECKS)]
    names = tuple(name for text in texts for name in re.split(r"[,\s]+", text.lower()) if name)
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known, f"groups are {', '.join(GROUPS)}.")
            raise DcaError("DCA-201", f"{flag}: there is no check `{name}`.", remedy=hint)
    return names


def _program(python: Path) -> Path:
    path = shutil.which(str(python))
    if path is None:
        raise DcaError("DCA-204", f"--python: {python} is not a program.", remedy="check the path.")
    return Path(path).absolute()


def render(report: Report, *, verbose: bool = False, quiet: bool = False) -> str:
    """A report as text."""
    shown = report.wrong if quiet else report.results
    width = max((len(result.code) for result in shown), default=0)
    lines: list[str] = []
    for group in GROUPS:
        mine = [result for result in shown if result.code.startswith(group + ".")]
        if not mine:
            continue
        lines += [*([""] if lines else []), TITLES.get(group, group)]
        for result in mine:
            lines.append(f"  {MARKS[result.status]:<5}  {result.code:<{width}}  {result.found}")
            pad = " " * (width + 11)
            if result.wanted and (verbose or result.status != "fine"):
                lines.append(f"{pad}wanted: {result.wanted}")
            if result.remedy and result.status != "fine":
                lines.append(f"{pad}next:   {result.remedy}")
            lines += [f"{pad}{detail}" for detail in result.details] if verbose else []
    if not quiet:
        count = {status: sum(result.status == status for result in report.results) for status in MARKS}
        parts = [
            f"{count['fine']} fine",
            f"{count['note']} to know",
            f"{count['wrong']} wrong",
            f"{count['unknown']} unknown",
        ]
        lines += ["", f"to {report.purpose}: {', '.join(parts)}"]
    return "\n".join(lines)
