"""The file of a matrix, and the cells that it stands for."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool

from dca.foundation import datafile, documents
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError

SCHEMA = "dca.matrix/1"
MOST_CHARACTERS = 4096
"""Of a value: as many as a path can have."""
MOST_CELLS = 10_000


def _several(value: Any) -> Any:
    """One value is a list of one; an empty list would make the whole table empty.

    Values stand in comments of the files that `formats` writes, where a line break would begin a line of the program.
    """
    if isinstance(value, str | bool):
        value = [value]
    if not isinstance(value, list):
        raise ValueError('it must be one value or a list of values: texts in quotes, such as "8.0", or true and false.')  # noqa: TRY004 - for pydantic
    if not value:
        raise ValueError("the list is empty; remove the key, or give it a value.")
    if not all(str(one).isprintable() for one in value):
        raise ValueError("a value has a line break or another character that cannot be printed.")
    if any(len(str(one)) > MOST_CHARACTERS for one in value):
        raise ValueError(f"a value has more than {MOST_CHARACTERS} characters.")
    return value


Texts = Annotated[tuple[str, ...], BeforeValidator(_several)]
Flags = Annotated[tuple[StrictBool, ...], BeforeValidator(_several)]


class Axes(Value):
    """Options of `dca wheel`, each with one value or a list of values; the table stands for every combination.

    Args:
        recipe: likewise all others: values of the option of that name. An empty text leaves the option out.
    """

    recipe: Texts = ()
    cuda: Texts = ()
    arch: Texts = ()
    driver: Texts = ()
    profile: Texts = ()
    with_: Texts = Field((), alias="with")
    model: Texts = ()
    source: Texts = ()
    companion: Texts = ()
    prebuilt: Texts = ()
    toolkit: Texts = ()
    python: Texts = ()
    dirty: Flags = ()
    prebuilt_whole: Flags = Field((), alias="prebuilt-whole")
    variants: Flags = ()
    try_toolkit: Flags = Field((), alias="try-toolkit")
    strict_cuda: Flags = Field((), alias="strict-cuda")

    @property
    def values(self) -> dict[str, tuple[str | bool, ...]]:
        """The values of each option that the table has, by the option's name."""
        return {name: value for name, value in self.model_dump(by_alias=True).items() if value}


class MatrixFile(Value):
    """The file of a matrix.

    Args:
        include: tables of cells; every combination of a table's values is a cell.
        exclude: tables of cells to leave out: those whose options have one of the values, for every key of a table.
    """

    schema_: Literal["dca.matrix/1"] = Field(alias="schema")
    include: Annotated[tuple[Axes, ...], Field(min_length=1)]
    exclude: tuple[Axes, ...] = ()


class Cell(Value):
    """One combination: the options of one `dca wheel`.

    Args:
        options: values by option; a flag is true or false.
    """

    options: dict[str, str | bool]

    @property
    def words(self) -> tuple[str, ...]:
        """The options as words of a command line."""
        words: list[str] = []
        for name, value in self.options.items():
            if value is True:
                words.append(f"--{name}")
            elif value:
                words += [f"--{name}", str(value)]
        return tuple(words)

    @property
    def text(self) -> str:
        """The options as one command line would have them."""
        return shlex.join(self.words)

    @property
    def id(self) -> str:
        """A short name, which depends on the options alone: the same on every machine."""
        return documents.digest(self.options)[:8]


def read(path: Path) -> tuple[Cell, ...]:
    """The cells of a matrix's file, in its order.

    Raises:
        DcaError: DCA-202 and 204 for the file, DCA-223 for an exclusion that leaves nothing out, and when no cell is
            left, one stands there twice or there are too many.
    """
    file = datafile.load(MatrixFile, path)
    _check_size(file, path)
    kept: dict[str, Cell] = {}
    used: set[int] = set()
    for number, cell in _every(file):
        if hits := {place for place, axes in enumerate(file.exclude) if _matches(cell, axes)}:
            used |= hits
        elif (other := kept.setdefault(cell.id, cell)) is not cell:
            if other != cell:
                raise DcaError(
                    "DCA-223",
                    f"{path}: the cells `{other.text}` and `{cell.text}` have the same id.",
                    remedy="divide it into two files, with one of them each.",
                )
            raise DcaError(
                "DCA-223",
                f"{_place(path, 'include', number)}: the cell `{cell.text}` is there twice.",
                remedy="remove one of the two.",
            )
    for place, axes in enumerate(file.exclude):
        if not axes.values or place not in used:
            raise DcaError(
                "DCA-223",
                f"{_place(path, 'exclude', place)}: the table leaves no cell out.",
                why="it has no key." if not axes.values else "no cell has these values.",
                remedy="correct its values, which are compared as they are written, or remove the table.",
            )
    if not kept:
        raise DcaError(
            "DCA-223", f"{path}: no cell is left.", why="the exclusions match all cells.", remedy="remove an exclusion."
        )
    return tuple(kept.values())


def _check_size(file: MatrixFile, path: Path) -> None:
    """Reject tables whose combinations are too many to plan, before they are made.

    Raises:
        DcaError: DCA-223.
    """
    counts = [math.prod(map(len, axes.values.values())) for axes in file.include]
    if (total := sum(counts)) > MOST_CELLS:
        largest = max(range(len(counts)), key=counts.__getitem__)
        raise DcaError(
            "DCA-223",
            f"{path}: the tables stand for {total:,} cells, of at most {MOST_CELLS:,}.",
            why=f"the largest one, {_place(path, 'include', largest)}, stands for {counts[largest]:,}.",
            remedy="divide it into several files, or give fewer values.",
        )


def _every(file: MatrixFile) -> Iterator[tuple[int, Cell]]:
    """Every cell with the number of its table, before exclusions."""
    for number, axes in enumerate(file.include):
        values = axes.values
        for combination in itertools.product(*values.values()):
            # What changes nothing is left out, so that the same cell is recognized.
            options = {name: value for name, value in zip(values, combination, strict=True) if value not in ("", False)}
            yield number, Cell(options=options)


def _matches(cell: Cell, axes: Axes) -> bool:
    absent = {False, ""}
    return bool(axes.values) and all(
        cell.options[name] in values if name in cell.options else bool(absent & set(values))
        for name, values in axes.values.items()
    )


def _place(path: Path, table: str, number: int) -> str:
    line = datafile.find_line(datafile.read_text(path), [table, number])
    return f"{path}, line {line}" if line else str(path)
