"""The options of `dca serve check` for RULER."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dca.cli import options
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.foundation.run import Run
from dca.serve.check.ruler import Asked, Harness, asked, known

MOST_SAMPLES = 10_000

OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--ruler",
        "ruler",
        multiple=True,
        metavar="TASK,TASK",
        help="Run these tasks of the benchmark RULER too, such as niah_single_1,ruler_vt; `ruler` is all of them.",
    ),
    click.option(
        "--ruler-lengths",
        metavar="N,N",
        show_default="4096",
        help="Lengths of RULER's texts, in tokens.",
    ),
    click.option(
        "--ruler-samples",
        type=click.IntRange(1, MOST_SAMPLES),
        show_default="500, as in the published results",
        help="Texts of each of RULER's tasks and lengths.",
    ),
    click.option(
        "--ruler-data",
        type=options.FOLDER,
        metavar="DIR",
        help="Folder of the essays, questions and nltk's data that some of RULER's tasks need.",
    ),
    click.option(
        "--ruler-tokenizer",
        metavar="MODEL",
        show_default="the model that the server names",
        help="Folder of the model's tokenizer, or its name on a hub if the hub's cache has it.",
    ),
    click.option(
        "--ruler-api",
        type=click.Choice(["completions", "chat"]),
        show_default="completions",
        help="Send RULER's prompts to /v1/completions, with the chat template applied, or to /v1/chat/completions.",
    ),
)


def taken(
    tokens: Callable[[str, str], int],
    ruler: tuple[str, ...],
    ruler_lengths: str | None,
    ruler_data: Path | None,
    **others: Any,
) -> Asked | None:
    """What is asked of RULER, from the options; None without --ruler.

    Args:
        tokens: reads a number of tokens of an option.
        ruler: names of tasks.
        ruler_lengths: their lengths.
        ruler_data: the folder of their data.
        others: options of which the default is that of `Asked`.

    Raises:
        DcaError: DCA-201; DCA-412 when a task's data are missing.
    """
    names = options.all_words(ruler)
    if not names:
        given = {"ruler_lengths": ruler_lengths, "ruler_data": ruler_data, **others}
        for name, value in given.items():
            if value is not None:
                flag = f"--{name.replace('_', '-')}"
                raise DcaError("DCA-201", f"{flag} needs --ruler.", remedy="name tasks with --ruler, or omit it.")
        return None
    everything = known.load()
    tasks = asked.named(everything, names)
    lengths: tuple[int, ...] = asked.LENGTHS
    if ruler_lengths is not None:
        lengths = tuple(sorted({tokens("--ruler-lengths", word) for word in ruler_lengths.split(",")}))
        if min(lengths) < asked.SHORTEST:
            raise DcaError(
                "DCA-201",
                f"--ruler-lengths: {min(lengths):,} tokens are too few for RULER's texts.",
                remedy=f"the minimum is {asked.SHORTEST:,}.",
            )
    folder = options.resolve(ruler_data) if ruler_data else None
    asked.check_data(everything, tasks, folder)
    own = {name.removeprefix("ruler_"): value for name, value in others.items() if value is not None}
    return Asked(everything, tasks, lengths, data=folder, **{"samples": everything.samples, **own})


def prepare(cache: store.Store, reporter: Reporter) -> Harness:
    """The environment that runs RULER's tasks.

    Raises:
        DcaError: DCA-407.
    """
    from dca.serve.check.ruler import harness

    return harness.prepare(Run(cache, reporter, cache.folder("run", "ruler") / "ruler.log"))
