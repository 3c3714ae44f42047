"""What is known of RULER: the harness's package and tasks, the data that they need, and published results."""

from __future__ import annotations

import re
import shlex
from pathlib import Path, PurePosixPath
from typing import Literal

from packaging.requirements import Requirement
from pydantic import Field, model_validator

from dca.catalogue.recipes import Day, Name, RelativePath, RequirementText
from dca.foundation import data, datafile
from dca.foundation.documents import Value

GROUP = "ruler"
"""The harness's own name for all of its tasks."""


class Task(Value):
    """A task of RULER.

    Args:
        name: in the harness.
        answer_tokens: tokens of an answer.
        data: names of the data that its texts are made of; none for texts that are made of a seed alone.
    """

    name: Name
    answer_tokens: int = Field(gt=0)
    data: tuple[Name, ...] = ()


class Source(Value):
    """Data that tasks are made of.

    Args:
        name: its name here.
        title: its name for people.
        path: in the folder of all data.
        get: the command that gets it; `{path}` is that path, `{folder}` the folder.
    """

    name: Name
    title: str
    path: RelativePath
    get: str

    def in_folder(self, folder: Path) -> Path:
        """Where it is."""
        return folder / self.path

    def command(self, folder: Path) -> str:
        """The command that gets it."""
        return self.get.format(path=shlex.quote(str(self.in_folder(folder))), folder=shlex.quote(str(folder)))

    def is_in(self, folder: Path) -> bool:
        """Whether it is there: a file, or a folder that has files."""
        path = self.in_folder(folder)
        return path.is_file() or (path.is_dir() and any(not one.name.startswith(".") for one in path.iterdir()))


class Published(Value):
    """Published results.

    Args:
        source: where they stand.
        models: averages of all tasks in percent, by the model's name on its hub and the length in tokens.
    """

    source: str
    models: dict[str, dict[int, float]]


class Known(Value):
    """RULER, as its harness has it.

    Args:
        package: the harness.
        also: packages that it needs besides.
        lock_date: the date as of which `make locks` resolves it.
        samples: texts of a task and length.
        disk_mb: what its environment takes on disk, in MB, by `du`.
        tasks: in the harness's order.
        data: that tasks are made of.
        published: results of models.
    """

    schema_: Literal["dca.ruler/1"] = Field(alias="schema")
    package: RequirementText
    also: tuple[RequirementText, ...]
    lock_date: Day
    samples: int = Field(gt=0)
    disk_mb: int = Field(gt=0)
    tasks: tuple[Task, ...] = Field(min_length=1)
    data: tuple[Source, ...]
    published: Published

    @model_validator(mode="after")
    def _named(self) -> Known:
        named = {name for task in self.tasks for name in task.data}
        if wrong := named - {source.name for source in self.data}:
            raise ValueError(f"there is no data of the name {min(wrong)}")
        return self

    @property
    def harness(self) -> str:
        """The harness's name and version."""
        package = Requirement(self.package)
        return f"{package.name} {str(package.specifier).lstrip('=')}"

    def task(self, name: str) -> Task:
        """The task of that name."""
        return next(task for task in self.tasks if task.name == name)

    def sources(self, tasks: tuple[str, ...]) -> list[Source]:
        """The data that some tasks need."""
        needed = {name for task in tasks for name in self.task(task).data}
        return [source for source in self.data if source.name in needed]

    def results(self, *names: str) -> dict[int, float]:
        """The published averages of a model by length; empty if it has none.

        Args:
            names: names or paths by which it may be known.
        """
        parts = {part.casefold() for name in names for part in _parts(name)}
        return next((row for model, row in self.published.models.items() if model.casefold() in parts), {})


def _parts(name: str) -> list[str]:
    """The model's own name in a name or path: the last part, or the one that the hub's cache has made of it."""
    cached = re.search(r"models--[^/]+?--([^/]+)", name)
    return [cached[1]] if cached else [PurePosixPath(name).name]


def load() -> Known:
    """What is known of RULER.

    Raises:
        DcaError: DCA-202 for a wrong key or value.
    """
    return datafile.load(Known, data.ruler_file())
