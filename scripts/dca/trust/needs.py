"""What a user demands to be proven of a wheel or an index: names of checks, and a level of `dca smoke`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, get_args

from dca.foundation.errors import DcaError
from dca.smoke.values import INCLUDED, LEVELS, Level
from dca.trust.verify import Finding, Verification

OF_WHEELS = (
    "archive",
    "record",
    "sbom",
    "provenance",
    "inspection",
    "smoke",
    "lock",
    "evidence",
    "signature",
    "rebuild",
)
OF_INDEXES = ("index", "age")
_SMOKE = "smoke"


class Need(NamedTuple):
    """A check that must be proven, and for `smoke` the level that its report must include."""

    check: str
    level: Level | None = None

    def __str__(self) -> str:
        """As the user writes it."""
        return f"{self.check}:{self.level}" if self.level else self.check


def parse(texts: Iterable[str]) -> tuple[Need, ...]:
    """The needs in the values of --need, each a list with commas.

    Raises:
        DcaError: DCA-201.
    """
    words = [word.strip() for text in texts for word in text.split(",") if word.strip()]
    return tuple(dict.fromkeys(map(_one, words)))


def _one(word: str) -> Need:
    check, colon, level = word.partition(":")
    if check in (*OF_WHEELS, *OF_INDEXES) and not colon:
        return Need(check)
    for known in get_args(Level):
        if (check, level) == (_SMOKE, known):
            return Need(check, known)
    raise DcaError(
        "DCA-201",
        f"--need {word} is not a check.",
        remedy=f"name some of {', '.join((*OF_WHEELS, *OF_INDEXES))}; or smoke:LEVEL, with {', '.join(LEVELS)}.",
    )


def of_wheel(needs: Sequence[Need], verification: Verification) -> list[str]:
    """The needs that a wheel does not meet, each in a sentence.

    Args:
        needs: all of them; those of an index are left out.
        verification: of the wheel.
    """
    return [
        f"{verification.wheel}: --need {need} is not met: {why}"
        for need in needs
        if need.check in OF_WHEELS and (why := _unmet(need, verification.findings, verification.level))
    ]


def of_index(needs: Sequence[Need], findings: Sequence[Finding]) -> list[str]:
    """The needs that an index does not meet; the arguments are those of `of_wheel`."""
    return [
        f"--need {need} is not met: {why}"
        for need in needs
        if need.check in OF_INDEXES and (why := _unmet(need, findings, ""))
    ]


def _unmet(need: Need, findings: Sequence[Finding], level: str) -> str:
    """Why a need is not met; empty if it is."""
    about = [finding for finding in findings if finding.check == need.check]
    if not about:
        return "nothing was checked."
    if any(finding.status == "wrong" for finding in about) or all(finding.status != "proven" for finding in about):
        worst = next((finding for finding in about if finding.status != "proven"), about[0])
        return f"{worst.status}: {worst.says}"
    included = {level, *next((INCLUDED[known] for known in LEVELS if known == level), ())}
    if need.level and need.level not in included:
        return f"the report is of level {level}."
    return ""
