"""`dca plugin`."""

from __future__ import annotations

from pathlib import Path

import click

from dca import contract
from dca.cli import options
from dca.contract import Asked, values
from dca.contract.values import Answered, Checked
from dca.foundation.errors import DcaError
from dca.foundation.run import Run

# What is said of each kind of difference.
KINDS = {
    "gone": "gone",
    "arguments": "arguments",
    "abstract": "to define",
    "changed": "changed",
    "unreadable": "unreadable",
}


@click.group("plugin")
def command() -> None:
    """Keep the plugin for today's vLLM in step with vLLM's releases."""


@command.command("check", short_help="Say what a release of vLLM moved of what the plugin needs.")
@click.argument("requirement", metavar="vllm==VERSION")
@click.option(
    "--sdist",
    type=options.FILE,
    metavar="FILE",
    show_default="downloaded from the package index",
    help="Source distribution of the release.",
)
@click.option(
    "--engine",
    is_flag=True,
    help="Also run the release on this CPU with a tiny model, and compare its answers; minutes.",
)
@options.cache
@options.output
def check(requirement: str, sdist: Path | None, engine: bool, cache_dir: Path | None, output: options.Output) -> None:
    """Read a release's source distribution, and say what moved of what the plugin needs of it.

    Looked at are the names that it imports, the arguments of its calls, the methods that base classes want of it, the
    fields that it reads, and whether code that it relies on is as in the releases it was proven with. Nothing of the
    release is run without --engine. Exit 1 means that something moved, or that answers are wrong.
    """
    version = _version(requirement)
    if sdist is not None:
        options.check_file("--sdist", sdist)
    cache = options.open_cache(cache_dir).open()
    with output.terminal() as reporter:
        run = Run(cache, reporter, cache.folder("run", "plugin") / f"{version}.log")
        checked = contract.check(Asked(version, sdist and options.resolve(sdist), engine), run)
    output.show(checked, render(checked), always=True)
    if checked.moved or checked.right is False:
        broken, changed = len(checked.broken), len(checked.moved) - len(checked.broken)
        raise DcaError(
            "DCA-166",
            f"{checked.engine} {checked.version} is not as the plugin needs it.",
            why=" and ".join(
                [
                    *([f"{broken} of its needs are not met"] if broken else []),
                    *([f"{changed} places that it relies on were changed"] if changed else []),
                    *(["its engine gave wrong answers"] if checked.right is False else []),
                ]
            )
            + ".",
            remedy="adapt the plugin to what is gone, read what changed, and prove it in the release's engine.",
            answered=output.as_json,
        )


def _version(text: str) -> str:
    """The version of `vllm==VERSION`.

    Raises:
        DcaError: DCA-201.
    """
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.version import Version

    engine = values.load().engine
    wrong = DcaError(
        "DCA-201", f"`{text}` names no release.", remedy=f"write {engine}==VERSION, such as {engine}==1.2.3."
    )
    try:
        asked = Requirement(text)
    except InvalidRequirement:
        raise wrong from None
    exact = [each for each in asked.specifier if each.operator == "==" and "*" not in each.version]
    if asked.name != engine or len(asked.specifier) != 1 or not exact or asked.extras or asked.marker or asked.url:
        raise wrong
    return str(Version(exact[0].version))


def _answers(answered: Answered, *, right: bool) -> list[tuple[str, str]]:
    borrowed = f", with its {', '.join(answered.borrowed)}" if answered.borrowed else ""
    said = [
        f"{answered.prompts} prompts, {answered.cached} tokens from the cache, {answered.wrong_words} wrong words",
        f"log-probabilities within {answered.worst:.1e} of a whole model's",
        f"attention by {', '.join(answered.implementations)}",
    ]
    ran = f"{answered.version} in the environment of {answered.engine}{borrowed}, torch {answered.torch}"
    return [("engine", ran), ("answers", f"{'right' if right else 'WRONG'}: {'; '.join(said)}")]


def render(checked: Checked) -> str:
    """A check as text."""
    looked = ", ".join(f"{count} {sort}" for sort, count in checked.counts.items())
    proven = "the plugin was proven with this file" if checked.proven else "the plugin was not proven with this file"
    rows = [
        ("release", f"{checked.engine} {checked.version}: {proven}"),
        ("source", f"{checked.source}, sha256 {checked.sha256}"),
        ("looked at", looked),
        ("moved", str(len(checked.moved)) if checked.moved else "nothing"),
    ]
    if checked.answered:
        rows += _answers(checked.answered, right=bool(checked.right))
    lines = [f"{name:>12}  {value}" for name, value in rows]
    for each in sorted(checked.moved, key=lambda moved: moved.kind == "changed"):
        lines += ["", f"{KINDS[each.kind]:>12}  {each.where}: {each.what}", f"{'':>12}  needed: {each.needed}"]
    return "\n".join(lines)
