"""Asks the readers that a folder is for whether they still load it, before an edited config.json takes its place."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dca.config import folder, readers
from dca.config.readers import Reader, Reading
from dca.config.text import Json
from dca.foundation import store, together
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter, Silent


@dataclass(frozen=True)
class Asking:
    """Where the readers are.

    Args:
        cache: the cache that contains their environments.
        wheels: wheels to search for an engine's own Python code.
        reporter: reports which reader is running.
    """

    cache: store.Store
    wheels: tuple[Path, ...] = ()
    reporter: Reporter | None = None


def ask(asking: Asking, meant: Sequence[Reader], model: Path, before: Json, after: Json) -> tuple[Reading, ...]:
    """How the installed readers read the edited file.

    Args:
        asking: where the readers are.
        meant: the readers that the folder is for; those that are not installed are not asked.
        model: the model's folder.
        before: its config.json.
        after: the edited one.

    Returns:
        One reading of the edited file for each reader; `why` of one that was not asked, or that loads neither file.

    Raises:
        DcaError: DCA-217 for a reader that loads the file as it is, and not the edited one.
    """
    places = [(reader, readers.locate(reader, asking.cache, asking.wheels)) for reader in meant]
    readings = [readers.absent(reader, place) for reader, place in places if isinstance(place, str)]
    if len(readings) == len(places):
        return tuple(readings)
    here = [(reader, place) for reader, place in places if not isinstance(place, str)]
    with store.scratch(asking.cache.open().root) as scratch:
        both = (("before", before), ("after", after))
        folders = [_folder(scratch / name / model.absolute().name, model, file) for name, file in both]
        (asking.reporter or Silent()).stage("read", ", ".join(reader.title for reader, _ in here))
        with together.Tasks() as tasks:
            answers = [tasks.start(functools.partial(readers.ask, place, folders, scratch)) for _, place in here]
        for (reader, _), answer in zip(here, answers, strict=True):
            old, new = answer.result
            if worse(old, new):
                raise DcaError(
                    "DCA-217",
                    f"{reader.title} loads {before.name} as it is, but not as edited; nothing was changed.",
                    why=new.why or new.unread,
                    remedy="name the readers that will really read the folder with --for, or keep the file as it is.",
                )
            readings.append(new)
    return tuple(readings)


def worse(old: Reading, new: Reading) -> bool:
    """Whether a reader no longer loads the edited file, or no longer creates its rotary embedding."""
    # A machine that is too busy says nothing about the file.
    return new.why != readers.TOO_LONG and ((old.loaded and not new.loaded) or (old.read and not new.read))


def _folder(made: Path, model: Path, file: Json) -> Path:
    """A folder with this config.json, and links to the model's other files."""
    made.mkdir(parents=True)
    for entry in folder.others(model):
        (made / entry.name).symlink_to(entry.absolute())
    (made / folder.CONFIG).write_bytes(file.data)
    return made
