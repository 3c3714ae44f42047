"""`dca serve check`."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import click

from dca.cli import options
from dca.config import plot
from dca.foundation import documents, store
from dca.foundation.errors import DcaError
from dca.serve import check as engine
from dca.serve.check import Needle, Probe, Request, ServeCheck, heat
from dca.serve.check.budget import limit_of
from dca.serve.check.probes import PROBES
from dca.serve.check.report import render as render_page

LONGEST = 2 * 10**7
MOST_CELLS = 1000
BLANK = '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'
SECONDS = click.FloatRange(0.01, 10**6)


def _schema(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(documents.canonical(documents.json_schema(ServeCheck)).decode(), nl=False)
        ctx.exit()


@click.command("check", short_help="What a running server really answers, up to a million tokens.")
@click.argument("url")
@click.option("--model", default="", help="The name that it is served under [the server's only one].")
@click.option("--api-key-env", "variable", metavar="NAME", help="An environment variable that holds the server's key.")
@click.option(
    "--length",
    metavar="N",
    help="The greatest length to try, in tokens, such as 1010000 or 1M [what the server takes].",
)
@click.option("--lengths", metavar="N,N", help="Just these lengths [from 4096 on, each twice the one before].")
@click.option(
    "--depths", metavar="P,P", default="0,25,50,75,100", show_default=True, help="Where the fact stands, in %."
)
@click.option("--max-cost", metavar="COST", help="Not more than this: 5M (tokens), 30min, or an amount beside --price.")
@click.option("--price", metavar="IN[,OUT]", help="What a million tokens of prompts cost, and of answers.")
@click.option("--timeout", type=SECONDS, default=engine.TIMEOUT, show_default=True, help="Seconds for a short request.")
@click.option("--needle-timeout", type=SECONDS, help="Seconds for a long one [60, and 1.5 for a thousand tokens].")
@click.option("--skip", "skipped", multiple=True, metavar="NAME", help=f"Leave out: {', '.join(PROBES)}, needles.")
@click.option("--need", "needed", multiple=True, metavar="NAME", help="A feature whose refusal fails the check.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the texts.")
@click.option("--plot", "picture", type=click.Path(path_type=Path, dir_okay=False), help="The heat map: .svg or .png.")
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Also write the result here, as a page of HTML."
)
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_schema,
    help="The JSON Schema of --json, and nothing else.",
)
@options.cache
@options.output
def check(
    url: str,
    model: str,
    variable: str | None,
    length: str | None,
    lengths: str | None,
    depths: str,
    max_cost: str | None,
    price: str | None,
    timeout: float,
    needle_timeout: float | None,
    skipped: tuple[str, ...],
    needed: tuple[str, ...],
    seed: int,
    picture: Path | None,
    report: Path | None,
    cache_dir: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Ask a running OpenAI-compatible server for everything that clients of a long-context model rely on.

    URL is such as http://HOST:8000. Short requests come first: models, chat, completion, streaming, sampling, tool
    call, structured output. Then prompts of growing length with one fact in them, at several depths. Exit 1 when
    something that was tried went wrong.
    """
    for flag, path in (("--plot", picture), ("--report", report)):
        if path is not None and not options.can_be_written(path):
            raise DcaError("DCA-204", f"{flag}: {path} cannot be written.", remedy="name another place.")
    if picture is not None:
        # Before anything is sent: whether such a file can be made here.
        plot.as_file(BLANK, picture.suffix.lower(), "heat.svg")
    asked = Request(
        url=url,
        model=model,
        key=_key(variable),
        length=_tokens("--length", length) if length else None,
        lengths=_lengths(lengths, length),
        depths=_depths(depths),
        skipped=_names("--skip", skipped, (*PROBES, engine.NEEDLES)),
        needed=_names("--need", needed, tuple(PROBES)),
        timeout=timeout,
        needle_timeout=needle_timeout,
        limit=limit_of(max_cost, price),
        seed=seed,
    )
    if not model.isprintable():
        raise DcaError("DCA-201", "--model holds what cannot be printed.", remedy="check the name.")
    if contradicting := set(asked.skipped) & set(asked.needed):
        raise DcaError("DCA-201", f"--skip and --need both name {min(contradicting)}.", remedy="leave one of them out.")
    if picture is not None and engine.NEEDLES in asked.skipped:
        raise DcaError("DCA-201", "--plot draws what --skip needles leaves out.", remedy="leave one of them out.")
    cache = options.open_cache(cache_dir).open()
    with options.terminal(as_json=as_json, quiet=quiet) as reporter:
        result = engine.check(asked, reporter, lambda seen: _keep(seen, cache))
    _keep(result, cache)
    if report is not None:
        store.write_bytes(report, render_page(result).encode())
    if picture is not None and result.needles:
        store.write_bytes(picture, plot.as_file(heat.svg(result), picture.suffix.lower(), "heat.svg"))
    if as_json:
        click.echo(documents.dumps(result).decode(), nl=False)
    elif not quiet:
        click.echo(render(result))
    if not result.passed:
        first = result.troubles[0]
        raise DcaError(
            first.code,
            f"{result.model} at {result.url} does not answer as it should: {len(result.troubles)} of "
            f"{_tried(result)} requests went wrong.",
            why="\n".join(f"{_place(trouble)}: {trouble.detail}" for trouble in result.troubles[:5])
            + (f"\nand {len(result.troubles) - 5} more." if len(result.troubles) > 5 else ""),
            remedy=first.remedy,
            answered=as_json,
        )


# --- what is asked -------------------------------------------------------------------------------------------------


def _key(variable: str | None) -> str:
    """The server's key, which never stands on a command line, where others see it."""
    if variable is None:
        return ""
    if not (key := os.environ.get(variable, "")):
        raise DcaError("DCA-201", f"--api-key-env: {variable} is not set, or empty.", remedy=f"export {variable}=KEY")
    if not key.isascii() or not key.isprintable():
        raise DcaError(
            "DCA-201", f"--api-key-env: {variable} holds characters that no key has.", remedy="check what it is set to."
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
            remedy="write it as 131072, 128K or 1M; 256 at least.",
        )
    return count


def _lengths(text: str | None, length: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    if length is not None:
        raise DcaError("DCA-201", "--length and --lengths exclude each other.", remedy="give one of them.")
    lengths = {_tokens("--lengths", word) for word in text.split(",")}
    if len(lengths) > MOST_CELLS:
        raise DcaError("DCA-201", f"--lengths: {len(lengths)} are too many.", remedy="give a few.")
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
    names = tuple(dict.fromkeys(word for words in texts for word in re.split(r"[,\s]+", words) if word))
    for name in names:
        if name not in known:
            raise DcaError(
                "DCA-201", f"{flag} {name}: there is no such request.", remedy=f"they are {', '.join(known)}."
            )
    return names


# --- what is told --------------------------------------------------------------------------------------------------


def _keep(result: ServeCheck, cache: store.Store) -> None:
    key = store.sha256_bytes(f"{result.url} {result.model}".encode())[:16]
    documents.write(result, cache.folder("run", f"serve-check-{key}") / "serve-check.json")


def _tried(result: ServeCheck) -> int:
    probes = sum(probe.status != "skipped" for probe in result.probes)
    return probes + sum(needle.outcome != "skipped" for needle in result.needles)


def _place(trouble: Probe | Needle) -> str:
    return trouble.name if isinstance(trouble, Probe) else f"{trouble.length:,} tokens, depth {trouble.depth:g} %"


MARKS = {"passed": "ok", "failed": "FAIL", "refused": "no", "skipped": "-"}


def render(result: ServeCheck) -> str:
    """A check as text."""
    takes = f", takes {result.max_model_len:,} tokens" if result.max_model_len else ""
    lines = ["", f"{result.model} at {result.url}{takes}", ""]
    width = max(len(probe.name) for probe in result.probes)
    for probe in result.probes:
        detail = f": {probe.detail}" if probe.detail else ""
        lines.append(f"  {MARKS[probe.status]:<4}  {probe.name:<{width}}  {probe.proves}{detail}")
        if probe.status != "passed" and probe.remedy:
            lines.append(f"        {'':<{width}}  {probe.remedy}")
    if result.needles:
        lines += [
            "",
            "  a fact in long prompts: across, their tokens; down, where it stands; time to the first token",
            "",
        ]
        lines += [f"    {row}" for row in heat.text(result)]
        lines += ["", *_speeds(result)]
    cost = result.cost
    money = f", {cost.money:.2f} at the prices given" if cost.money is not None else ""
    tokens = f"{cost.prompt_tokens:,} tokens in, {cost.answer_tokens:,} out"
    lines += ["", f"  cost        {cost.requests} requests, {tokens}, {cost.seconds:.1f} s{money}"]
    lines += [f"  not proven  {text}" for text in result.not_proven]
    lines.append(f"  verdict     {result.verdict}")
    return "\n".join(lines)


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


def _span(values: list[float], unit: str) -> str:
    low, high = (f"{value:,.2f}" if value < 10 else f"{value:,.0f}" for value in (min(values), max(values)))
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"
