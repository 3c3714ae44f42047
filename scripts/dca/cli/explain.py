"""`dca explain`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from dca.catalogue import failures
from dca.catalogue.failures import Explanation, Known
from dca.cli import options
from dca.foundation.errors import DcaError
from dca.foundation.suggestion import did_you_mean


@click.command("explain")
@click.argument("what", metavar="LOG|-|CODE", required=False)
@click.option("--list", "listing", is_flag=True, help="List every known failure and code, one per line.")
@click.option("-v", "--verbose", is_flag=True, help="Also show when it happens, and where it was seen.")
@options.json
@options.schema(Explanation)
def command(what: str | None, listing: bool, verbose: bool, as_json: bool) -> None:
    """Explain a log's failure: what it is, why it happened, and what to do.

    LOG is a file of any size, - is standard input, and CODE is an error code of dca (DCA-606) or the name of a known
    failure. Exit 1 means that the log holds an unknown failure.
    """
    output, catalogue = options.Output(as_json, quiet=False), failures.load()
    if listing:
        click.echo(_list(catalogue))
        return
    if what is None:
        raise DcaError("DCA-201", "no log or code is named.", remedy="name a log, `-` for standard input, or DCA-606.")
    if what != "-" and not Path(what).exists() and (known := _named(what, catalogue)) is not None:
        output.show(known.model_dump(mode="json") | {"schema": "dca.failure/1"}, render_one(known, verbose=True))
        return
    explanation = _read(what)
    output.show(explanation, render(explanation, verbose=verbose))
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
        return failures.explain(sys.stdin.buffer, "standard input")
    path = Path(what)
    if path.is_dir() or not path.exists():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise DcaError("DCA-204", f"{path} {kind}.", remedy="name a log file, or `-` for standard input.")
    with path.open("rb") as stream:
        return failures.explain(stream, str(path))


def _list(catalogue: failures.Catalogue) -> str:
    rows = [(failure.id, failure.title) for failure in catalogue.failures]
    rows += [(code, about.title) for code, about in sorted(catalogue.codes.items())]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {title}" for name, title in rows)


def render(explanation: Explanation, *, verbose: bool = False) -> str:
    """An explanation as text."""
    lines = [f"{explanation.log}: {explanation.lines:,} lines"]
    if not explanation.found and not explanation.suspicious:
        return f"{lines[0]}. No known failure, and no line that looks like one."
    failed = [known for known in explanation.found if known.kind != "warning"]
    for number, known in enumerate(failed):
        following = "then" if known.kind == "consequence" else "and"
        lead = "What happened" if number == 0 else following
        lines += ["", f"{lead}: {render_one(known, verbose=verbose)}"]
    if explanation.suspicious:
        lines += ["", "The failure is unknown. These lines look like it:"]
        lines += [f"  {line.line:>7}  {line.text}" for line in explanation.suspicious]
    for known in explanation.found:
        if known.kind == "warning":
            lines += ["", f"warning: {render_one(known, verbose=verbose)}"]
    return "\n".join(lines)


def render_one(known: Known, *, verbose: bool) -> str:
    """One failure as text."""
    lines = [f"{known.title} ({known.id})"]
    if known.line:
        times = ""
        if known.count != 1:
            times = f", {'at least ' if known.count >= failures.ENOUGH else ''}{known.count} times"
        lines += [f"  Line: {known.line:,}{times}: {known.text}"]
    if verbose and known.when:
        lines += [f"  When: {known.when}"]
    if known.cause:
        lines += [f"  Why:  {known.cause}"]
    if known.remedy:
        lines += [f"  Next: {known.remedy}"]
    if verbose and known.source:
        lines += [f"  Seen: {known.source}"]
    return "\n".join(lines)
