"""What is asked of RULER, and what must be there before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dca.foundation import hub
from dca.foundation.errors import DcaError
from dca.foundation.suggestion import did_you_mean
from dca.serve.check.answers import Card
from dca.serve.check.ruler import known as catalogue
from dca.serve.check.ruler.known import Known

Api = Literal["completions", "chat"]
LENGTHS = (4096,)
"""The harness's own default."""
SHORTEST = 1024
"""Tokens; of some tasks, no shorter text can be made."""
# Any of them makes a folder one of a tokenizer.
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model", "vocab.txt")


@dataclass(frozen=True)
class Asked:
    """What is asked of RULER.

    Args:
        known: the tasks and their data.
        tasks: their names, in the harness's order.
        lengths: in tokens, ascending.
        samples: texts of each task and length.
        api: how prompts are sent: to /v1/completions, with the chat template applied here, or to /v1/chat/completions.
        data: folder of the data that some tasks need; None without one.
        tokenizer: the folder of the model's tokenizer, or the model's name on a hub; empty for what the server says.
    """

    known: Known
    tasks: tuple[str, ...]
    lengths: tuple[int, ...] = LENGTHS
    samples: int = 500
    api: Api = "completions"
    data: Path | None = None
    tokenizer: str = ""

    def tokenizer_folder(self, card: Card) -> Path:
        """The folder of the model's tokenizer.

        Args:
            card: the server's description of the model.

        Raises:
            DcaError: DCA-201 when there is none on this machine.
        """
        names = [self.tokenizer] if self.tokenizer else [card.root or "", card.id]
        for name in filter(None, names):
            folder = hub.cached(name) or Path(name)
            if any((folder / file).is_file() for file in TOKENIZERS):
                return folder.absolute()
        shown = " or ".join(dict.fromkeys(filter(None, names)))
        raise DcaError(
            "DCA-201",
            f"RULER's texts are made with the model's tokenizer, and {shown} is not one on this machine.",
            why="it must be a folder with a tokenizer, or a model whose snapshot is in the hub's cache with its "
            "config.json and tokenizer.",
            remedy="name it with --ruler-tokenizer; `hf download ORG/NAME --exclude '*.safetensors'` gets it.",
        )


def named(known: Known, names: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks of some names, each once and in the harness's order.

    Args:
        known: the tasks.
        names: of tasks, or of the group.

    Raises:
        DcaError: DCA-201.
    """
    tasks = [task.name for task in known.tasks]
    for name in names:
        if name not in (*tasks, catalogue.GROUP):
            raise DcaError(
                "DCA-201",
                f"--ruler: there is no task `{name}`.",
                why=f"the tasks are {', '.join(tasks)}; `{catalogue.GROUP}` is all of them.",
                remedy=did_you_mean(name, tasks, "choose one of them."),
            )
    return tuple(tasks) if catalogue.GROUP in names else tuple(task for task in tasks if task in names)


def check_data(known: Known, tasks: tuple[str, ...], folder: Path | None) -> None:
    """Reject tasks whose data are missing.

    Args:
        known: the tasks and their data.
        tasks: their names.
        folder: of the data; None without one.

    Raises:
        DcaError: DCA-412 with what is missing, the tasks that need it, and the commands that get it.
    """
    missing = [source for source in known.sources(tasks) if folder is None or not source.is_in(folder)]
    if not missing:
        return
    place = folder or Path("DIR")
    lines = []
    for source in missing:
        needing = [name for name in tasks if source.name in known.task(name).data]
        lines.append(f"{source.title} ({source.in_folder(place)}), for {', '.join(needing)}.")
    commands = "\n".join(source.command(place) for source in missing)
    free = [task.name for task in known.tasks if not task.data]
    raise DcaError(
        "DCA-412",
        f"RULER's texts cannot be made: {len(missing)} of the data that they need are missing.",
        why="\n".join(lines),
        remedy=f"get them{'' if folder else ', and name the folder with --ruler-data'}:\n{commands}\n"
        f"Tasks that need none: {', '.join(free)}.",
    )
