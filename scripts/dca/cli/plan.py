"""`dca plan`."""

from __future__ import annotations

from pathlib import Path

import click

from dca.catalogue.plan import Plan, Request
from dca.cli import options, terminal
from dca.pipeline import gather


@click.command("plan")
@options.request
@options.cache
@options.output
def command(request: Request, cache_dir: Path | None, update: gather.Update, output: options.Output) -> None:
    """Show what would be built and why; download nothing.

    Each choice is shown with its reason, and each recipe and toolkit that was passed over with the reason against it.
    """
    plan = gather.make_plan(request, options.open_cache(cache_dir), update=update).plan
    output.show(plan, plan.version if output.quiet else render(plan), always=True)


def render(plan: Plan) -> str:
    """A plan as text."""
    lines = [f"{plan.recipe} → {plan.version}", "", "Choices"]
    for choice in plan.choices:
        lines += _entry(choice.subject, choice.value, choice.reason)
    lines += ["", "Checks"] if plan.checks else []
    for check in plan.checks:
        lines += _entry(check.subject, f"{check.found} is within {check.wanted}", check.reason)
    lines += ["", "Modules"] if plan.modules else []
    for module in plan.modules:
        reached = "; ".join(f"{arch}: {how}" for arch, how in module.reached.items())
        lines += _entry(module.name, f"{module.origin}  {module.path}", f"{module.reason} {reached}".strip())
    if plan.passed_over:
        lines += ["", "Passed over"]
        for over in plan.passed_over:
            lines += [f"  {over.name}"]
            lines += [line for reason in over.reasons for line in terminal.wrapped(" " * 6, reason.text)]
    if plan.out_of_reach:
        lines += ["", "Out of reach; another plan would be possible with"]
        for place in plan.out_of_reach:
            lines += [f"  {place.place}", *terminal.wrapped(" " * 6, f"{place.why} (since {place.since}).")]
        lines += terminal.wrapped("  ", "Every plan asks again.")
    if plan.ignored:
        lines += ["", "Set by you and ignored, because it would change the build"]
        for name, about in ignored(plan).items():
            lines += [*terminal.wrapped("  ", name), *terminal.wrapped(" " * 6, about)]
    for title, texts in (("Warnings", plan.warnings), ("Do you need to build?", plan.advice)):
        if texts:
            lines += ["", title]
            lines += [line for text in texts for line in terminal.wrapped("  ", text)]
    return "\n".join(lines)


def ignored(plan: Plan) -> dict[str, str]:
    """The ignored settings of a plan: those that change the same in one line, and what that is."""
    groups: dict[str, list[str]] = {}
    for one in plan.ignored:
        instead = f"; dca has {one.instead} for it" if one.instead else ""
        groups.setdefault(f"{one.changes}{instead}.", []).append(one.name)
    return {", ".join(names): about for about, names in groups.items()}


def _entry(subject: str, value: str, reason: str) -> list[str]:
    # A long name has a line of its own, so that the columns stay aligned.
    head = [f"  {subject:<15} {value}"] if len(subject) <= 15 else [f"  {subject}", f"{'':<18}{value}"]
    return [*head, *terminal.wrapped(" " * 18, reason)]
