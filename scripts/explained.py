"""Compares what `dca explain` says of the logs in tests/cases/explain with what their `expected.toml` says.

`.venv/bin/python scripts/explained.py` prints the share of each verdict and every log that is not right; `make bench`
prints the shares.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Literal

from dca.catalogue import logs
from dca.catalogue.failures import UNKNOWN, Known
from dca.catalogue.logs import Explanation
from dca.foundation import datafile
from dca.foundation.documents import Value

CASES = Path(__file__).resolve().parent.parent / "tests/cases/explain"
Verdict = Literal["right", "partly", "silent", "hidden", "wrong", "clean"]
VERDICTS: dict[Verdict, str] = {
    "right": "the line, the entry (or the line as unknown), the remedy and the exit are right",
    "partly": "the entry is right, its line or remedy is not",
    "silent": "no cause is named",
    "hidden": "a consequence is named instead of the cause",
    "wrong": "another cause is named, or one in a log that went well",
    "clean": "a log of a failure is called clean",
}


class Expected(Value):
    """What is true of a log.

    Args:
        line: number of the line that is the cause; None if the run went well.
        entry: name of its entry in the catalogue, or `unknown`.
        remedy: a word that the remedy contains.
        mentioned: entries whose texts the log of a run that went well contains.
    """

    line: int | None = None
    entry: str = ""
    remedy: str = ""
    mentioned: tuple[str, ...] = ()


class Cases(Value):
    """tests/cases/explain/expected.toml, by the name of each log without its suffix."""

    logs: dict[str, Expected]


def expected() -> dict[str, Expected]:
    """What is true of each log."""
    return datafile.load(Cases, CASES / "expected.toml").logs


def explained(log: str) -> Explanation:
    """What is said of one of the logs."""
    with (CASES / f"{log}.log").open("rb") as stream:
        return logs.explain(stream, log)


def verdict(wanted: Expected, said: Explanation) -> Verdict:
    """How good an explanation is."""
    if wanted.line is None:
        return "right" if said.explained and not said.found else "wrong"
    if not said.found:
        first = said.suspicious[0].line if said.suspicious else 0
        return "clean" if said.explained else "right" if first == wanted.line else "silent"
    return _named(wanted, said.found[0], well=said.explained)


def _named(wanted: Expected, first: Known, *, well: bool) -> Verdict:
    """How good the first thing that an explanation names is.

    Args:
        wanted: what is true of the log.
        first: what is named first.
        well: whether the command exits with 0.
    """
    if first.id == UNKNOWN:
        return "right" if first.line == wanted.line and not well else "silent"
    if first.id == wanted.entry:
        return "right" if first.line == wanted.line and wanted.remedy in first.remedy and well else "partly"
    return "hidden" if first.kind == "consequence" else "wrong"


def main() -> None:
    """Print the share of each verdict and, unless `--shares` is given, the logs that are not right."""
    verdicts = {log: verdict(wanted, explained(log)) for log, wanted in expected().items()}
    counts = Counter(verdicts.values())
    print(f"| verdict | of {len(verdicts)} logs | means |\n|---|---|---|")
    for name, means in VERDICTS.items():
        print(f"| {name} | {counts[name]} | {means} |")
    if "--shares" not in sys.argv:
        for log, wanted in expected().items():
            if verdicts[log] != "right":
                said = explained(log)
                named = [f"{known.line} {known.id}" for known in said.found[:2]] or [
                    str(line.line) for line in said.suspicious[:1]
                ]
                print(f"{verdicts[log]:7} {log}: {', '.join(named) or '-'} instead of {wanted.line} {wanted.entry}")


if __name__ == "__main__":
    main()
