"""`dca plan`."""

from __future__ import annotations

import textwrap
from pathlib import Path

import click

from dca.catalogue.plan import Plan, Request
from dca.cli import options
from dca.foundation import documents
from dca.pipeline import gather

WIDTH = 100


@click.command("plan")
@options.request
@options.cache
@options.output
def command(request: Request, cache_dir: Path | None, update: gather.Update, as_json: bool, quiet: bool) -> None:
    """Show what would be built and why; nothing is fetched.

    Every choice stands with its reason, every recipe and toolkit passed over with its own.
    """
    plan, _ = gather.make_plan(request, options.open_cache(cache_dir), update=update)
    if as_json:
        click.echo(documents.dumps(plan).decode(), nl=False)
    else:
        click.echo(plan.version if quiet else render(plan))


def render(plan: Plan) -> str:
    """A plan as text."""
    lines = [f"{plan.recipe} → {plan.version}", "", "Choices"]
    for choice in plan.choices:
        lines += _entry(choice.subject, choice.value, choice.reason)
    lines += ["", "Checks"]
    for check in plan.checks:
        lines += _entry(check.subject, f"{check.found} is within {check.wanted}", check.reason)
    lines += ["", "Modules"]
    for module in plan.modules:
        reached = "; ".join(f"{arch}: {how}" for arch, how in module.reached.items())
        lines += _entry(module.name, f"{module.origin}  {module.path}", f"{module.reason} {reached}".strip())
    if plan.passed_over:
        lines += ["", "Passed over"]
        for over in plan.passed_over:
            lines += [f"  {over.name}"]
            lines += [line for reason in over.reasons for line in _wrapped(reason.text, 6)]
    for title, texts in (("Warnings", plan.warnings), ("Do you need to build?", plan.advice)):
        if texts:
            lines += ["", title]
            lines += [line for text in texts for line in _wrapped(text, 2)]
    return "\n".join(lines)


def _entry(subject: str, value: str, reason: str) -> list[str]:
    # A long name has a line of its own, so that the columns stay aligned.
    head = [f"  {subject:<15} {value}"] if len(subject) <= 15 else [f"  {subject}", f"{'':<18}{value}"]
    return [*head, *_wrapped(reason, 18)]


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
