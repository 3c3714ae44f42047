"""`dca serve check`."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from dca.cli import options, serve_ruler
from dca.cli.packing import packed
from dca.config import plot
from dca.foundation import documents, store
from dca.foundation.errors import DcaError, Interrupted
from dca.serve import check as engine
from dca.serve.check import Keeper, Request, Ruler, ServeCheck, heat
from dca.serve.check.budget import limit_of
from dca.serve.check.probes import PROBES
from dca.serve.check.report import render as render_page
from dca.serve.check.troubles import UNREACHABLE

LONGEST = 2 * 10**7
MOST_CELLS = 1000
MOST_SHOWN = 5
BLANK = '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'
SECONDS = click.FloatRange(0.01, 10**6)
VERDICTS = {
    "scored": "scored",
    "zero": "all wrong",
    "miscounted": "miscounted",
    "failed": "failed",
    "skipped": "not run",
}
MARKS = {"passed": "ok", "failed": "FAIL", "refused": "no", "undecided": "?", "skipped": "-"}


def check_picture(path: Path | None) -> None:
    """Reject, before anything else is done, a --plot that cannot be made here.

    Raises:
        DcaError: DCA-103, 201 or 204.
    """
    options.check_writable("--plot", path)
    if path is not None:
        plot.as_file(BLANK, path.suffix.lower(), f"{path.stem}.svg")


def _request(
    *,
    url: str,
    model: str,
    variable: str | None,
    length: str | None,
    lengths: str | None,
    depths: str,
    max_cost: str | None,
    price: str | None,
    skipped: tuple[str, ...],
    needed: tuple[str, ...],
    **others: Any,
) -> Request:
    """What is checked, from the options.

    Raises:
        DcaError: DCA-201.
    """
    if not model.isprintable():
        raise DcaError("DCA-201", "--model holds characters that cannot be printed.", remedy="check the name.")
    bench = {name: others.pop(name) for name in list(others) if name.startswith("ruler")}
    asked = Request(
        url=url,
        model=model,
        key=_key(variable),
        length=_tokens("--length", length) if length else None,
        lengths=_lengths(lengths, length),
        depths=_depths(depths),
        skipped=_names("--skip", skipped, (*PROBES, engine.NEEDLES)),
        needed=_names("--need", needed, tuple(PROBES)),
        limit=limit_of(max_cost, price),
        ruler=serve_ruler.taken(_tokens, **bench),
        **others,
    )
    if contradicting := set(asked.skipped) & set(asked.needed):
        raise DcaError("DCA-201", f"--skip and --need both name {min(contradicting)}.", remedy="omit one of them.")
    return asked


@click.command("check", short_help="Check what a running server answers, up to a million tokens.")
@packed(
    _request,
    "asked",
    click.argument("url"),
    click.option(
        "--model", default="", show_default="the server's only one", help="Name that the model is served under."
    ),
    click.option("--api-key-env", "variable", metavar="NAME", help="Environment variable that holds the server's key."),
    click.option(
        "--length",
        metavar="N",
        show_default="the server's maximum",
        help="Longest length to try, in tokens, such as 1010000 or 1M.",
    ),
    click.option(
        "--lengths", metavar="N,N", show_default="4096, doubled up to the longest", help="Lengths to try, in tokens."
    ),
    click.option(
        "--depths",
        metavar="P,P",
        default="0,25,50,75,100",
        show_default=True,
        help="Positions of the fact in the prompt, in %.",
    ),
    click.option(
        "--max-cost",
        metavar="COST",
        help="Limit of the check: 5M (tokens), 30min, or an amount in the unit of --price.",
    ),
    click.option(
        "--price", metavar="IN[,OUT]", help="Price of a million prompt tokens, and of a million answer tokens."
    ),
    click.option(
        "--timeout", type=SECONDS, default=engine.TIMEOUT, show_default=True, help="Seconds for a short request."
    ),
    click.option(
        "--needle-timeout",
        type=SECONDS,
        show_default="60, and 1.5 per thousand tokens",
        help="Seconds for a long request.",
    ),
    click.option(
        "--wait",
        type=click.FloatRange(0, 10**6),
        default=engine.WAIT,
        show_default=True,
        help="Seconds to wait for a server that answers that it is loading (HTTP 503).",
    ),
    click.option(
        "--no-thinking", is_flag=True, help="Ask the model not to reason, through its chat template's own switch."
    ),
    click.option(
        "--skip",
        "skipped",
        multiple=True,
        metavar="NAME",
        help=f"Skip this test: {', '.join(PROBES)} or needles. Can be repeated.",
    ),
    click.option(
        "--need",
        "needed",
        multiple=True,
        metavar="NAME",
        help="Fail if the server refuses this feature. Can be repeated.",
    ),
    click.option(
        "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed for the test prompts."
    ),
    *serve_ruler.OPTIONS,
)
@click.option("--plot", "picture", type=options.FILE, help="Draw the heat map: .svg or .png.")
@click.option("--report", type=options.FILE, help="Also write the result to this file, as an HTML page.")
@click.option("--restart", is_flag=True, help="Begin anew, even if an interrupted check could be continued.")
@options.schema(ServeCheck)
@options.cache
@options.output
def check(
    asked: Request,
    picture: Path | None,
    report: Path | None,
    restart: bool,
    cache_dir: Path | None,
    output: options.Output,
) -> None:
    """Test on a running OpenAI-compatible server everything that clients of a long-context model rely on.

    URL is such as http://HOST:8000. Short requests come first: models, chat, completion, streaming, sampling, tool
    call, structured output. Then come prompts of growing length with one fact in them, at several depths, and, with
    --ruler, tasks of the benchmark RULER. Exit 1 when a test failed. An interrupted check is continued by the same
    command.
    """
    check_picture(picture)
    options.check_writable("--report", report)
    if picture is not None and engine.NEEDLES in asked.skipped:
        raise DcaError(
            "DCA-201", "--plot draws the results of needles, which --skip omits.", remedy="omit one of them."
        )
    kept = _Kept(options.open_cache(cache_dir).open(), restart=restart)
    try:
        with output.terminal() as reporter:
            harness = partial(serve_ruler.prepare, kept.cache, reporter)
            result = engine.check(asked, reporter, Keeper(kept.keep, kept.earlier, harness))
    except (KeyboardInterrupt, Interrupted):
        if kept.last is not None:
            output.show(kept.last, render(kept.last))
            files = (kept.path(kept.last), *_written(kept.last, report, picture))
            click.echo(f"The results so far are in {', '.join(map(str, files))}.", err=True)
        raise
    kept.keep(result)
    _written(result, report, picture)
    output.show(result, render(result))
    if not result.passed:
        # That the engine ended explains more than what went wrong before.
        wrong = sorted(result.troubles, key=lambda trouble: trouble.code != UNREACHABLE)
        first, rest = wrong[0], len(wrong) - MOST_SHOWN
        tests = "requests and tasks" if result.ruler else "requests"
        raise DcaError(
            first.code,
            f"{result.model} at {result.url}: {len(result.troubles)} of {_tried(result)} {tests} failed.",
            why="\n".join(f"{trouble.place}: {trouble.detail}" for trouble in wrong[:MOST_SHOWN])
            + (f"\nand {rest} more." if rest > 0 else ""),
            remedy=first.remedy,
            answered=output.as_json,
        )


@dataclass
class _Kept:
    """The results on disk, one for each server, model and seed.

    Args:
        cache: the cache.
        restart: whether an interrupted check is not continued.
        last: what was kept last; None for nothing.
    """

    cache: store.Store
    restart: bool
    last: ServeCheck | None = None

    def keep(self, result: ServeCheck) -> None:
        """Write a result."""
        self.last = result
        documents.write(result, self.path(result))

    def earlier(self, url: str, model: str, seed: int) -> ServeCheck | None:
        """What an earlier run has kept."""
        file = self._file(url, model, seed)
        return None if self.restart else documents.read_if_whole(ServeCheck, file)

    def path(self, result: ServeCheck) -> Path:
        """Where a result is kept."""
        return self._file(result.url, result.model, result.seed)

    def _file(self, url: str, model: str, seed: int) -> Path:
        key = store.sha256_bytes(f"{url} {model} {seed}".encode())[:16]
        return self.cache.folder("run", f"serve-check-{key}") / "serve-check.json"


def _written(result: ServeCheck, report: Path | None, picture: Path | None) -> list[Path]:
    """Write the page and the picture; returns those that were written."""
    written = []
    if report is not None:
        store.write_bytes(report, render_page(result).encode())
        written.append(report)
    if picture is not None and result.needles:
        store.write_bytes(picture, plot.as_file(heat.svg(result), picture.suffix.lower(), "heat.svg"))
        written.append(picture)
    return written


# --- options -------------------------------------------------------------------------------------------------


def _key(variable: str | None) -> str:
    """The server's key; it is never on a command line, which other users can see."""
    if variable is None:
        return ""
    if not (key := os.environ.get(variable, "")):
        raise DcaError("DCA-201", f"--api-key-env: {variable} is not set, or empty.", remedy=f"export {variable}=KEY")
    if not key.isascii() or not key.isprintable():
        raise DcaError(
            "DCA-201", f"--api-key-env: {variable} holds characters that no key has.", remedy="check its value."
        )
    return key


def _tokens(flag: str, text: str) -> int:
    """A number of tokens: 131072, 128K (of 1,024) or 1M (a million)."""
    match = re.fullmatch(r"([0-9]{1,9})([kKmM]?)", text.strip().replace("_", ""), re.ASCII)
    count = int(match[1]) * {"": 1, "k": 1024, "m": 10**6}[match[2].lower()] if match else 0
    if not 256 <= count <= LONGEST:
        raise DcaError(
            "DCA-201",
            f"{flag} {text} is not a number of tokens.",
            remedy="write it as 131072, 128K or 1M; the minimum is 256.",
        )
    return count


def _lengths(text: str | None, length: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    if length is not None:
        raise DcaError("DCA-201", "--length and --lengths exclude each other.", remedy="give one of them.")
    lengths = {_tokens("--lengths", word) for word in text.split(",")}
    if len(lengths) > MOST_CELLS:
        raise DcaError(
            "DCA-201", f"--lengths: {len(lengths)} lengths are too many.", remedy=f"give at most {MOST_CELLS}."
        )
    return tuple(sorted(lengths))


def _depths(text: str) -> tuple[float, ...]:
    try:
        depths = sorted({float(word) for word in text.split(",")})
    except ValueError:
        depths = [math.nan]
    if not all(0 <= depth <= 100 for depth in depths) or len(depths) > MOST_CELLS:
        raise DcaError("DCA-201", f"--depths {text[:80]} are not percentages.", remedy="write them as 0,50,100.")
    return tuple(depths)


def _names(flag: str, texts: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    names = options.all_words(texts)
    for name in names:
        if name not in known:
            raise DcaError("DCA-201", f"{flag}: there is no test `{name}`.", remedy=f"tests are {', '.join(known)}.")
    return names


# --- the result --------------------------------------------------------------------------------------------------


def _tried(result: ServeCheck) -> int:
    probes = sum(probe.status != "skipped" for probe in result.probes)
    scores = result.ruler.scores if result.ruler else ()
    outcomes = [*(needle.outcome for needle in result.needles), *(one.outcome for one in scores)]
    return probes + sum(outcome != "skipped" for outcome in outcomes)


def render(result: ServeCheck) -> str:
    """A check as text."""
    takes = f", takes {result.max_model_len:,} tokens" if result.max_model_len else ""
    lines = ["", f"{result.model} at {result.url}{takes}", f"  {_about(result)}"]
    if result.flags:
        lines.append(f"  seen        {', '.join(map(str, result.flags))}")
    lines.append("")
    width = max(len(probe.name) for probe in result.probes)
    for probe in result.ordered:
        said = f"not asked, because {probe.detail}" if probe.status == "skipped" else probe.detail
        detail = f": {said}" if said else ""
        lines.append(f"  {MARKS[probe.status]:<4}  {probe.name:<{width}}  {probe.proves}{detail}")
        if probe.status != "passed" and probe.remedy:
            lines.append(f"        {'':<{width}}  {probe.remedy}")
    wrong = [needle for needle in result.needles if needle.code]
    for needle in wrong[:MOST_SHOWN]:
        lines += ["", f"  FAIL  {needle.place}: {needle.detail}", f"        {needle.remedy}"]
    if len(wrong) > MOST_SHOWN:
        lines.append(f"        and {len(wrong) - MOST_SHOWN} more")
    if result.needles:
        lines += [
            "",
            "  a fact in long prompts: columns are lengths, rows are depths; time to the first token",
            "",
        ]
        lines += [f"    {row}" for row in heat.text(result)]
        lines += ["", *_speeds(result)]
    if result.ruler:
        lines += ["", *_ruler(result.ruler)]
    lines += ["", *_load(result)]
    cost = result.cost
    money = f", {cost.money:.2f} at the prices given" if cost.money is not None else ""
    tokens = f"{cost.prompt_tokens:,} tokens in, {cost.answer_tokens:,} out"
    lines += [f"  cost        {cost.requests} requests, {tokens}, {cost.seconds:.1f} s{money}"]
    lines += [f"  not proven  {text}" for text in result.not_proven]
    lines.append(f"  verdict     {result.verdict}")
    return "\n".join(lines)


def _about(result: ServeCheck) -> str:
    """When, by what and what was checked, on one line."""
    when = result.date[:16].replace("T", " ")
    resumed = f"; {result.resumed} answers from an interrupted check" if result.resumed else ""
    return f"{when} UTC, dca {result.tool}, engine {result.engine.words}{resumed}"


def _speeds(result: ServeCheck) -> list[str]:
    lines = []
    for length in result.lengths:
        answered = [needle for needle in result.needles if needle.length == length and needle.first_token is not None]
        if answered:
            first = [needle.first_token for needle in answered if needle.first_token is not None]
            inward = [needle.prefill_speed for needle in answered if needle.prefill_speed is not None]
            outward = [needle.decode_speed for needle in answered if needle.decode_speed is not None]
            words = [f"first token {_span(first, ' s')}"]
            if inward:
                words.append(f"{_span(inward, '')} tokens/s in")
            if outward:
                words.append(f"{_span(outward, '')} out")
            lines.append(f"    {heat.tokens(length):>9}  {', '.join(words)}")
    return lines


def _ruler(ruler: Ruler) -> list[str]:
    """RULER's scores, failures first."""
    where = f"/v1/{'chat/completions' if ruler.api == 'chat' else 'completions'}"
    where += " without a chat template" if ruler.templated is False else ""
    lines = [f"  RULER ({ruler.harness}, {ruler.samples} texts each, {where}): score in percent", ""]
    width = max((len(one.task) for one in ruler.scores), default=0)
    for one in ruler.ordered:
        mark = "FAIL" if one.code else "-" if one.outcome == "skipped" else "ok"
        score = f"{one.score:6.1f}" if one.score is not None else " " * 6
        said = f"{VERDICTS[one.outcome]}{': ' if one.detail else ''}{one.detail}"
        place = f"{one.task:<{width}}  {one.length:>9,} tokens"
        lines.append(f"  {mark:<4}  {place}  {score}  {one.answered} of {one.samples}  {said}")
        if one.code:
            lines.append(f"        {'':<{width}}  {one.remedy}")
    lines += [f"    {one.length:>9,} tokens: {one.words}" for one in ruler.lengths]
    if ruler.source:
        lines.append(f"    published: {ruler.source}")
    return lines


def _load(result: ServeCheck) -> list[str]:
    """What the engine's metrics reported."""
    if result.before is None:
        return ["  load        /metrics: not offered"]
    words = [f"{name} {' -> '.join(filter(None, values))}" for name, *values in result.load]
    return [f"  load        {', '.join(words)}{'' if result.after else ' (before the check alone)'}"]


def _span(values: list[float], unit: str) -> str:
    low, high = (f"{value:,.2f}" if value < 10 else f"{value:,.0f}" for value in (min(values), max(values)))
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"
