"""Known failures: the catalogue in build/failures. `dca.catalogue.logs` searches logs for them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from dca.catalogue.recipes import RequirementText
from dca.foundation import data, datafile
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.foundation.suggestion import did_you_mean

Words = Annotated[str, StringConstraints(min_length=1)]
Kind = Literal["cause", "warning", "consequence", "harmless", "silent"]
NUMBER = "{number}"
"""Stands in a text for digits with dots; a condition, a title, a cause or a remedy may use what it matched."""

UNKNOWN = "unknown"
"""Stands for the name of a failure that the catalogue does not have."""
LINES_AROUND = 100
"""Most lines above a message to search for words that must stand near."""
CODE = re.compile(r"DCA-[0-9]{3}")


def _is_specifier(text: str) -> str:
    if text:
        SpecifierSet(text)
    return text


Specifiers = Annotated[str, AfterValidator(_is_specifier)]
"""Bounds of a number or version, such as `>=10,<75`; empty for any."""


class Remedy(Value):
    """Another remedy of a failure, for logs that show certain tools, versions or numbers.

    Args:
        tools: one of these wrote the log, by name in `marks.toml`.
        versions: requirements that the versions in the log satisfy, such as `cuda>=13`.
        number: what `{number}` matched, such as `<75`.
        cause: why it happens there; the failure's own cause when empty.
        remedy: what to do there.
    """

    tools: tuple[Words, ...] = ()
    versions: tuple[RequirementText, ...] = ()
    number: Specifiers = ""
    cause: str = ""
    remedy: Words

    @model_validator(mode="after")
    def _says_where(self) -> Remedy:
        if not (self.tools or self.versions or self.number):
            raise ValueError("a remedy in `remedies` names tools, versions or a number that it is for")
        return self


class Failure(Value):
    """One known failure."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)+$")]
    title: Words
    kind: Kind = "cause"
    """A warning need not stop anything, a consequence has its cause further up in the log, what is harmless is never
    reported, and silent prints nothing."""
    texts: tuple[Words, ...] = ()
    """What programs print, each in one line: {} matches anything, {number} digits, ^ and $ the line's ends."""
    near: tuple[Words, ...] = ()
    """Words of which one must be in the line or in the lines above it, if other failures print the same text."""
    not_near: tuple[Words, ...] = ()
    """Words of which none may be there."""
    within: Annotated[int, Field(ge=1, le=LINES_AROUND)] = 40
    """Lines above that are searched for these words."""
    followed_by: tuple[Words, ...] = ()
    """Texts of which one must come later in the log."""
    not_followed_by: tuple[Words, ...] = ()
    """Texts that, anywhere later in the log, show that the program went on."""
    consequence_of: tuple[Words, ...] = ()
    """Failures that, if the log has one of them, are the cause of this one."""
    number: Specifiers = ""
    """What `{number}` must match, such as `<75`."""
    versions: tuple[RequirementText, ...] = ()
    """Requirements such as `vllm<0.11` that no version in the log may contradict."""
    tools: tuple[Words, ...] = ()
    """Tools of which one wrote the log, by name in `marks.toml`; any when empty, or when the log shows none."""
    when: Words
    cause: Words
    remedy: Words
    remedies: tuple[Remedy, ...] = ()
    """Remedies for certain tools, versions or numbers; the first that fits the log replaces `remedy`."""
    source: Words
    """Where the failure was seen or read about."""
    packages: tuple[RequirementText, ...] = ()
    """Requirements that avoid the failure."""
    among: tuple[RequirementText, ...] = ()
    """The packages that it happens with; any when empty."""
    example: str = ""
    """Lines of a real log."""
    near_miss: str = ""
    """Lines that resemble its texts and are another failure, or none."""

    @model_validator(mode="after")
    def _says_something(self) -> Failure:
        if (self.kind == "silent") == bool(self.texts):
            raise ValueError("a failure has texts, or it is silent")
        if self.texts and not self.example:
            raise ValueError("a failure with texts has an example")
        numbered = self.number or any(remedy.number for remedy in self.remedies)
        if numbered and not all(NUMBER in text for text in self.texts):
            raise ValueError("a condition on the number needs {number} in every text")
        return self

    def strikes(self, installed: dict[str, str]) -> tuple[str, ...]:
        """The packages of an environment that cause it, each as `name version`.

        Args:
            installed: versions by normalised name.
        """
        if not all(_has(installed, requirement) is True for requirement in self.among):
            return ()
        named = [
            Requirement(requirement).name.lower()
            for requirement in self.packages
            if _has(installed, requirement) is False
        ]
        return tuple(f"{name} {installed[name]}" for name in dict.fromkeys(named))

    def holds(self, versions: Mapping[str, str], tools: Collection[str]) -> int | None:
        """How many of its conditions on versions and tools a log shows to hold; None if the log contradicts them.

        Args:
            versions: of packages and tools, by name, as the log shows them.
            tools: that wrote the log.
        """
        shown = [_has(dict(versions), requirement) for requirement in self.versions]
        if False in shown or (self.tools and tools and not set(self.tools) & set(tools)):
            return None
        return shown.count(True) + bool(set(self.tools) & set(tools))

    def answer(self, versions: Mapping[str, str], tools: Collection[str], number: str) -> tuple[str, str, str]:
        """Title, cause and remedy for a log.

        Args:
            versions: by name, as the log shows them.
            tools: that wrote the log.
            number: what `{number}` matched.
        """
        cause, remedy = self.cause, self.remedy
        for other in self.remedies:
            fits = all(_has(dict(versions), requirement) is True for requirement in other.versions)
            fits = fits and (not other.tools or bool(set(other.tools) & set(tools)))
            if fits and (not other.number or is_within(other.number, number)):
                cause, remedy = other.cause or cause, other.remedy
                break
        title, cause, remedy = (text.replace(NUMBER, number or "N") for text in (self.title, cause, remedy))
        return title, cause, remedy


def is_within(bounds: str, number: str) -> bool:
    """Whether a number or version, such as 90 or 12.4, is within bounds such as `>=75`."""
    try:
        return SpecifierSet(bounds).contains(Version(number), prereleases=True)
    except InvalidVersion:
        return False


def _has(installed: dict[str, str], text: str) -> bool | None:
    """Whether an environment satisfies a requirement; None if it does not have the package.

    Args:
        installed: versions by normalised name.
        text: a requirement.
    """
    requirement = Requirement(text)
    version = installed.get(requirement.name.lower().replace("_", "-"))
    return None if version is None else requirement.specifier.contains(version, prereleases=True)


class Failures(Value):
    """One file of build/failures."""

    schema_: Literal["dca.failures/2"] = Field(alias="schema")
    failures: tuple[Failure, ...]


class Marks(Value):
    """build/failures/marks.toml: texts of logs that are no failures, written as those of failures."""

    schema_: Literal["dca.marks/1"] = Field(default="dca.marks/1", alias="schema")
    consequences: tuple[Words, ...] = ()
    """What follows from a failure further up."""
    deaths: tuple[Words, ...] = ()
    """What says that the process which does the work has ended."""
    harmless: tuple[Words, ...] = ()
    """Lines of successful runs that look like errors."""
    progress: tuple[Words, ...] = ()
    """Lines in which a package or file is only named."""
    done: tuple[Words, ...] = ()
    """What says that a build, an installation or a download has ended well."""
    up: tuple[Words, ...] = ()
    """What says that a server answers from here on."""
    served: tuple[Words, ...] = ()
    """What says that a request was answered, literally."""
    tools: dict[str, tuple[Words, ...]] = {}
    """What tools print, by their names."""
    versions: dict[str, tuple[Words, ...]] = {}
    """Where the version of something stands, as `{number}`."""
    translations: dict[str, str] = {}
    """What compilers and shells print in other languages, in English."""

    @model_validator(mode="after")
    def _has_numbers(self) -> Marks:
        if not all(NUMBER in text for texts in self.versions.values() for text in texts):
            raise ValueError("a text in `versions` has {number}")
        return self


class Code(Value):
    """A code of this tool's own messages."""

    title: Words
    """Its meaning."""
    cause: Words
    remedy: Words


class Codes(Value):
    """build/failures/codes.toml."""

    schema_: Literal["dca.codes/1"] = Field(alias="schema")
    codes: dict[Annotated[str, StringConstraints(pattern=r"^DCA-[0-9]{3}$")], Code]


@dataclass(frozen=True, eq=False)
class Catalogue:
    """All known failures and codes, and what else is known of logs."""

    failures: tuple[Failure, ...]
    codes: dict[str, Code]
    marks: Marks

    def of(self, name: str) -> Known | None:
        """The failure of that id, or the code."""
        if failure := next((failure for failure in self.failures if failure.id == name.lower()), None):
            return _known(failure)
        code = self.codes.get(name.upper())
        return Known(id=name.upper(), **code.model_dump()) if code else None


class Line(Value):
    """A line of a log, by its number from 1.

    Args:
        line: its number.
        text: its text.
    """

    line: int
    text: str


class Known(Value):
    """A known failure or code, as reported.

    Args:
        id: of the failure, or the code; `unknown` for one that the catalogue does not have.
        line: number of the line with its message, from 1; 0 outside a log.
        text: that line.
        count: how many lines have its message.
        time: when that line was written, by itself or by a line above, as it stands; empty if neither says so.
        around: that line and its neighbours.
        reason: why it has this place among the findings.
        title: what happened.
        kind: `cause`, `warning`, `consequence`, `harmless` or `silent`.
        when: when it happens.
        cause: why it happens.
        remedy: what to do.
        source: where it was seen or read.
    """

    id: str
    title: str
    kind: Kind = "cause"
    when: str = ""
    cause: str
    remedy: str
    source: str = ""
    line: int = 0
    text: str = ""
    count: int = 0
    time: str = ""
    around: tuple[Line, ...] = ()
    reason: str = ""


@cache
def load(folder: Path | None = None) -> Catalogue:
    """The catalogue.

    Raises:
        DcaError: DCA-202 for a wrong key or value, or an id that occurs twice.
    """
    entries: list[Failure] = []
    codes: dict[str, Code] = {}
    marks = Marks()
    for path in sorted((folder or data.failures_folder()).glob("*.toml")):
        if path.name == "codes.toml":
            codes = datafile.load(Codes, path).codes
        elif path.name == "marks.toml":
            marks = datafile.load(Marks, path)
        else:
            entries += datafile.load(Failures, path).failures
    if twice := [name for name, count in Counter(failure.id for failure in entries).items() if count > 1]:
        raise DcaError("DCA-202", f"two failures have the id `{twice[0]}`.", remedy="give one of them another.")
    known = {failure.id for failure in entries}
    for failure in entries:
        if missing := [name for name in failure.consequence_of if name not in known]:
            raise DcaError(
                "DCA-202",
                f"`consequence_of` of {failure.id} names `{missing[0]}`, which is no failure.",
                remedy=did_you_mean(missing[0], sorted(known), "name another, or remove it."),
            )
    return Catalogue(failures=tuple(entries), codes=codes, marks=marks)


def _known(failure: Failure) -> Known:
    title, cause, remedy = failure.answer({}, (), "")
    named = failure.model_dump(include={"id", "kind", "when", "source"})
    return Known.model_validate(named | {"title": title, "cause": cause, "remedy": remedy})


def drifted(installed: dict[str, str], catalogue: Catalogue | None = None) -> dict[str, tuple[Failure, ...]]:
    """Failures that an environment's packages will cause, by package as `name version`.

    Args:
        installed: versions by normalised name.
        catalogue: the project's own when None.
    """
    drifting: dict[str, list[Failure]] = {}
    for failure in (catalogue or load()).failures:
        for package in failure.strikes(installed):
            drifting.setdefault(package, []).append(failure)
    return {package: tuple(failures) for package, failures in drifting.items()}
