"""`dca explain`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from dca.catalogue import failures, logs
from dca.catalogue.failures import UNKNOWN, Known
from dca.catalogue.logs import Explanation, Explanations
from dca.cli import options
from dca.foundation.errors import DcaError
from dca.foundation.suggestion import did_you_mean

SHOWN = 3
"""Most causes to show in full, and most other findings to name."""


@click.command("explain")
@click.argument("what", metavar="LOG|FOLDER|-|CODE", required=False)
@click.option("--list", "listing", is_flag=True, help="List every known failure and code, one per line.")
@click.option(
    "--follow", is_flag=True, help="Pass standard input on, and explain failures as they occur and at its end."
)
@click.option(
    "-v", "--verbose", is_flag=True, help="Also show when it happens, where it was seen, and what was overcome."
)
@options.json
@options.schema(Explanation)
def command(what: str | None, listing: bool, follow: bool, verbose: bool, as_json: bool) -> None:
    """Explain a log's failure: what it is, why it happened, and what to do.

    LOG is a file of any size, FOLDER has several, - is standard input, and CODE is an error code of dca (DCA-606) or
    the name of a known failure. Exit 1 means that a log holds an unknown failure or cannot be read.
    """
    output, catalogue = options.Output(as_json, quiet=False), failures.load()
    if listing:
        click.echo(_list(catalogue))
        return
    if follow:
        if what not in (None, "-"):
            raise DcaError("DCA-201", "--follow reads standard input.", remedy="PROGRAM 2>&1 | dca explain --follow")
        explanation = _follow(quiet=as_json)
        output.show(explanation, f"\n{render(explanation, verbose=verbose)}")
        _end(explanation)
        return
    if what is None:
        raise DcaError("DCA-201", "no log or code is named.", remedy="name a log, `-` for standard input, or DCA-606.")
    if what != "-" and not Path(what).exists() and (known := _named(what, catalogue)) is not None:
        output.show(known.model_dump(mode="json") | {"schema": "dca.failure/2"}, render_one(known, verbose=True))
        return
    if Path(what).is_dir():
        several = _folder(Path(what))
        output.show(several, _render_folder(several, verbose=verbose))
        for one in several.logs:
            _end(one)
        return
    explanation = _read(what)
    output.show(explanation, render(explanation, verbose=verbose))
    _end(explanation)


def _end(explanation: Explanation) -> None:
    """End with an error if nothing is known of a failure, or the log cannot be read."""
    if explanation.outcome == "unreadable":
        raise DcaError(
            "DCA-108",
            f"{explanation.log} cannot be read: {explanation.reason}.",
            remedy="name the program's output as text; gzip, bzip2, xz, UTF-16 and docker's json-file are read too.",
            answered=True,
        )
    if not explanation.explained:
        raise DcaError(
            "DCA-106",
            f"{explanation.log} holds an unknown failure.",
            remedy="read the lines above, starting with the first. `dca explain --list` lists the known failures.",
            answered=True,
        )


def _named(what: str, catalogue: failures.Catalogue) -> Known | None:
    """The failure or code of that name; None when the name is a file's."""
    known = catalogue.of(what)
    if known is None and not Path(what).suffix and "/" not in what:
        names = [*(failure.id for failure in catalogue.failures), *catalogue.codes]
        spelt = what if what.islower() else what.upper()
        raise DcaError(
            "DCA-204",
            f"{what} is not a file, a code or the name of a failure.",
            remedy=did_you_mean(spelt, names, "`dca explain --list` lists all names."),
        )
    return known


def _read(what: str) -> Explanation:
    if what == "-":
        return logs.explain(sys.stdin.buffer, "standard input")
    path = Path(what)
    if not path.exists():
        raise DcaError(
            "DCA-204", f"{path} does not exist.", remedy="name a log, a folder of logs, or `-` for standard input."
        )
    with path.open("rb") as stream:
        return logs.explain(stream, str(path))


def _folder(folder: Path) -> Explanations:
    """Explain every file below a folder: what failed first, then the rest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise DcaError("DCA-204", f"{folder} has no files.", remedy="name a log, or a folder of logs.")
    explained = ((_read(str(path)), path.stat().st_mtime) for path in files)
    return Explanations(folder=str(folder), logs=logs.in_order(explained))


def _render_folder(several: Explanations, *, verbose: bool) -> str:
    """The explanations of a folder's logs as text: which file and line failed first, then each log."""
    parts = [render(one, verbose=verbose) for one in several.logs]
    failed = [one for one in several.logs if one.outcome == "failed"]
    if len(several.logs) > 1 and failed:
        first = failed[0].found[0]
        when = f" at {first.time}" if first.time else ""
        parts.insert(0, f"First failure: {failed[0].log}, line {first.line:,}{when}: {first.title} ({first.id})")
    return "\n\n".join(parts)


def _follow(*, quiet: bool) -> Explanation:
    """Pass standard input on while it is read, with each known failure as it first occurs."""
    from dca.cli import show_known

    told: set[str] = set()

    def tell(found: Iterable[Known]) -> None:
        for known in found:
            if known.id not in told:
                told.add(known.id)
                show_known(known)

    follower = logs.Follower("standard input", tell=tell)
    while read := os.read(sys.stdin.fileno(), logs.BLOCK):
        if not quiet:
            sys.stdout.buffer.write(read)
            sys.stdout.buffer.flush()
        follower.add(read)
    return follower.end()


def _list(catalogue: failures.Catalogue) -> str:
    rows = [(failure.id, failure.title) for failure in catalogue.failures]
    rows += [(code, about.title) for code, about in sorted(catalogue.codes.items())]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {title}" for name, title in rows)


def render(explanation: Explanation, *, verbose: bool = False) -> str:
    """An explanation as text that fits a screen."""
    lines = [f"{explanation.log}: {explanation.lines:,} lines. {_outcome(explanation)}"]
    failed = [known for known in explanation.found if known.kind != "warning"]
    causes = [known for known in failed if known.kind != "consequence"] or failed[:1]
    shown = causes if verbose else causes[:SHOWN]
    for number, known in enumerate(shown):
        lead = "What happened" if number == 0 else "and"
        lines += ["", f"{lead}: {render_one(known, verbose=verbose, brief=number > 0)}"]
    rest = [known for known in failed if known not in shown]
    warnings = [known for known in explanation.found if known.kind == "warning"]
    if explanation.suspicious:
        lines += ["", "Other lines that look like an error:"]
        lines += [f"  {line.line:>7}  {line.text}" for line in explanation.suspicious]
    if rest:
        named = [f"{known.title} ({known.id}), line {known.line:,}" for known in rest]
        lines += ["", *(f"then: {name}" for name in (named if verbose else named[:SHOWN]))]
    for known in warnings if verbose else warnings[:SHOWN]:
        lines += ["", f"warning: {render_one(known, verbose=verbose, brief=True)}"]
    if verbose:
        for known in explanation.overcome:
            lines += ["", f"overcome: {known.title} ({known.id}), line {known.line:,}: {known.reason}"]
    return "\n".join(lines)


def _outcome(explanation: Explanation) -> str:
    """How the run ended, in a sentence."""
    if explanation.outcome == "unreadable":
        return f"It cannot be read: {explanation.reason}."
    if explanation.outcome == "failed":
        return "It shows a failure."
    overcome = len(explanation.overcome)
    on_the_way = (
        f" {overcome} known failure{'s' * (overcome != 1)} on the way did not stop it (-v shows them)."
        if overcome
        else ""
    )
    if explanation.ended is not None:
        line, text = explanation.ended.line, explanation.ended.text.strip()[:80]
        return f"It went well as far as it goes: line {line:,} says “{text}”.{on_the_way}"
    return f"No known failure, and no line that looks like one; no line says how the run ended.{on_the_way}"


def render_one(known: Known, *, verbose: bool, brief: bool = False) -> str:
    """One failure as text.

    Args:
        known: the failure.
        verbose: whether to say when it happens and where it was seen.
        brief: whether to leave out the lines around its own.
    """
    name = "unknown" if known.id == UNKNOWN else known.id
    lines = [f"{known.title} ({name})"]
    if known.line:
        times = f", {known.count:,} times" if known.count != 1 else ""
        if known.around and not brief:
            width = len(f"{known.around[-1].line}")
            lines += [
                f"  {'>' if line.line == known.line else ' '} {line.line:>{width}}  {line.text}"
                for line in known.around
            ]
        else:
            lines += [f"  Line: {known.line:,}{times}: {known.text}"]
    if known.reason:
        lines += [f"  Rank: {known.reason}"]
    if verbose and known.when:
        lines += [f"  When: {known.when}"]
    if known.cause:
        lines += [f"  Why:  {known.cause}"]
    if known.remedy:
        lines += [f"  Next: {known.remedy}"]
    if verbose and known.source:
        lines += [f"  Seen: {known.source}"]
    return "\n".join(lines)
