"""`dca serve`."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from dca.catalogue.failures import Known
from dca.cli import options, serve_check
from dca.config import plot
from dca.foundation import documents, store
from dca.foundation.errors import DcaError
from dca.serve import chart, gpus, server_rules, ways
from dca.serve import command as commands
from dca.serve import plan as plans
from dca.serve.command import Server
from dca.serve.gpus import GIB
from dca.serve.plan import ServePlan
from dca.serve.server_rules import Asked, Subject

F = TypeVar("F", bound=Callable[..., Any])
DIST = Path("dist")
METHODS = ("fp8", "awq", "gptq")
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
CACHE_DTYPES = ("auto", "fp8", "fp8_e4m3", "fp8_e5m2")
COUNT = click.IntRange(1, 2**31 - 1)
FILE = click.Path(path_type=Path, dir_okay=False)
WIDTH = 110


@click.group("serve")
def command() -> None:
    """A server for a million tokens: will it fit, with which flags, its command, starting it, and does it answer."""


command.add_command(serve_check.check)


def _subject(function: F) -> F:
    """What every command takes that plans: the model, the GPUs, and what the user fixes.

    The function is given a `subject` and its `plan` in place of these options.
    """
    taken = [
        click.argument("model", metavar="MODEL"),
        click.option("--gpus", "named", metavar="NxGIB", help="Such as 4x80 (GiB each) or 2xT4 [those here]."),
        click.option(
            "--machines",
            type=click.IntRange(1, 512),
            default=1,
            show_default=True,
            help="How many machines with these GPUs each.",
        ),
        click.option(
            "--tp",
            "--tensor-parallel-size",
            "tp",
            type=click.IntRange(1, 1024),
            help="GPUs that share the heads [as many as can].",
        ),
        click.option(
            "--pp",
            "--pipeline-parallel-size",
            "pp",
            type=click.IntRange(1, 512),
            default=1,
            show_default=True,
            help="Stages that share the layers.",
        ),
        click.option("--max-model-len", "length", type=COUNT, help="Tokens of prompt and answer [the model's own]."),
        click.option("--max-num-batched-tokens", "batched", type=COUNT, help="Tokens of a step [the most that fits]."),
        click.option("--max-num-seqs", "sequences", type=COUNT, help="Requests at once [1 with dual chunk attention]."),
        click.option(
            "--gpu-memory-utilization",
            "utilization",
            type=click.FloatRange(0.05, 1.0),
            help="In place of counting the KV cache's blocks.",
        ),
        click.option("--num-gpu-blocks-override", "blocks", type=COUNT, help="Blocks of KV cache [those needed]."),
        click.option("--quantization", type=click.Choice(METHODS), default=None, help="Of the weights."),
        click.option("--kv-cache-dtype", type=click.Choice(CACHE_DTYPES), default="auto", show_default=True),
        click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True),
        click.option("--block-size", type=click.IntRange(1, 4096), default=16, show_default=True),
        click.option("--enable-prefix-caching", "prefix_caching", is_flag=True),
        click.option("--cuda-graphs", "graphs", is_flag=True, help="Insist on CUDA graphs."),
        click.option("--recipe", help="The engine [the wheel's; the first that has the model's class]."),
        click.option("--wheel", type=FILE, metavar="FILE", help="The wheel that is to serve it, to be checked."),
    ]
    fixed = {field.name for field in fields(Asked)}

    @functools.wraps(function)
    def wrapper(
        model: str, named: str | None, machines: int, recipe: str | None, wheel: Path | None, **more: Any
    ) -> Any:
        asked = {name: more.pop(name) for name in fixed & more.keys()}
        asked["quantization"] = asked["quantization"] or ""
        if not model.strip():
            raise DcaError("DCA-201", "the model's name is empty.", remedy="name a folder, or a model of build/models.")
        if asked["utilization"] is not None and math.isnan(asked["utilization"]):
            raise DcaError("DCA-201", "--gpu-memory-utilization is no number.", remedy="such as 0.85.")
        if machines > 1 and named is None:
            raise DcaError("DCA-201", "--machines wants the GPUs of one.", remedy="such as --gpus 8x80 --machines 2.")
        visible = _visible(more.get("visible", ""))
        cards = (
            gpus.parse(named, machines) if named is not None else gpus.of_this_machine(chosen=visible.get(gpus.VISIBLE))
        )
        # A server elsewhere does not see this shell's variables.
        local = named is None or click.get_current_context().info_name == "run"
        env = {**os.environ, **visible} if local else {}
        subject, served = plans.subject_of(model, Asked(**asked), gpus=cards, recipe=recipe, wheel=wheel, env=env)
        return function(subject=subject, plan=plans.make(subject, served), **more)

    wrapped: Any = wrapper
    for option in reversed(taken):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


def _visible(text: str) -> dict[str, str]:
    """--visible as a variable of the server; empty when it is not given.

    Raises:
        DcaError: DCA-201 for what are no numbers of GPUs.
    """
    if text and not re.fullmatch(r"\d{1,3}(,\d{1,3})*", text):
        raise DcaError("DCA-201", f"--visible {text} are no numbers of GPUs.", remedy="write it as 0,1,2,3.")
    return {gpus.VISIBLE: text} if text else {}


# --- plan ----------------------------------------------------------------------------------------------------------


@command.command("plan", short_help="Will it fit, what limits it, and the flags that make it fit.")
@_subject
@click.option(
    "--plot", "picture", type=FILE, metavar="FILE", help="Draw memory over the prompt's length: .svg or .png."
)
@click.option("--report", type=FILE, metavar="FILE", help="Write all of it as a page of HTML.")
@click.option("-v", "--verbose", is_flag=True, help="Every part of the memory, and other ways to make it fit.")
@options.output
def plan(
    subject: Subject,
    plan: ServePlan,
    picture: Path | None,
    report: Path | None,
    verbose: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Weights, KV cache, activations and sparse attention's buffers of each GPU against its memory.

    MODEL is a folder, a config.json, or a name in build/models. Exit 1 when it does not fit, or a setting is one that
    would fail later.
    """
    _check_files(picture, report)
    shown = chart.panels(plan, subject.shape, subject.gpus)
    if picture is not None:
        store.write_bytes(picture, plot.as_file(chart.svg(shown), picture.suffix.lower(), "memory.svg"))
    if report is not None:
        store.write_bytes(report, chart.page(plan, shown).encode())
    if as_json:
        click.echo(documents.dumps(plan).decode(), nl=False)
    elif not quiet or plan.errors:
        click.echo(render(plan, verbose=verbose))
        if not quiet:
            click.echo("\n" + chart.text(shown))
    server_rules.refuse(plan.findings, f"{plan.model} is not to be served so.", answered=as_json)


def _check_files(*files: Path | None) -> None:
    for file in files:
        if file is not None and not options.can_be_written(file):
            raise DcaError("DCA-204", f"{file} cannot be written.", remedy="name another place.")
    if files[0] is not None:
        plot.as_file("", files[0].suffix.lower() if files[0].suffix.lower() != ".png" else ".svg", "memory.svg")


def render(plan: ServePlan, *, verbose: bool = False) -> str:
    """A plan as text."""
    best = plan.best
    lines = [f"{plan.model} on {plan.gpus}, by {plan.recipe}", ""]
    verdict = "fits" if plan.planned.fits else "does not fit"
    lines.append(f"  {plan.planned.settings.length:,} tokens: {verdict}. {_upper(ways.ending(plan.planned))}")
    if plan.longest:
        lines.append(f"  at most {plan.longest:,} tokens fit; the limit is {plan.binding}.")
    minimum = f"; the model's card asks for {plan.minimum_gb} GB, at its full length" if plan.minimum_gb else ""
    lines.append(f"  needed over all GPUs: {plan.needed_gb:.0f} GB{minimum}.")
    for finding in plan.findings:
        lines += ["", f"  {finding.severity:<7}  {finding.code}  {finding.what}", f"{'':20}{finding.remedy}"]
    lines += ["", "GiB of each GPU"]
    for term in best.terms:
        lines.append(f"  {term.bytes / GIB:6.1f}  {term.what}")
    lines.append(f"  {best.total / GIB:6.1f}  of {best.card / GIB:g}, with a prompt of {best.settings.length:,} tokens")
    lines += ["", f"flags for {best.settings.length:,} tokens" if plan.instead else "flags"]
    settings = [(f"{variable.name}={variable.value}", variable.reason) for variable in plan.environment]
    settings += [(" ".join(filter(None, (flag.name, flag.value))), flag.reason) for flag in plan.flags]
    width = max((len(name) for name, _ in settings), default=0)
    lines += [line for name, reason in settings for line in _wrapped(f"  {name:<{width}}  ", reason)]
    if verbose or not plan.planned.fits:
        lines += ["", "other ways"]
        for way in plan.ways:
            lines += _wrapped(f"  {'fits    ' if way.fits else 'does not'}  ", f"{way.change}: {way.what}")
    lines += ["", *(line for text in plan.notes for line in _wrapped("  ", text))]
    return "\n".join(lines)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _wrapped(head: str, text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(
        text,
        max(WIDTH, len(head) + 30),
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
        break_long_words=False,
    )


# --- command -------------------------------------------------------------------------------------------------------


def _server(function: F) -> F:
    """What is asked of a server beside its memory: the function is given a `server` in place of these options."""
    taken = [
        click.option("--served-model-name", "name", default="", help="What clients call the model."),
        click.option("--host", default="", help="The address to listen on."),
        click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True),
        click.option("--api-key", is_flag=True, help="Ask for a key, which the server reads from VLLM_API_KEY."),
        click.option("--tools", is_flag=True, help="Answer with calls of tools."),
        click.option("--chat-template", default="", metavar="FILE", help="In place of the tokenizer's own."),
        click.option("--modelscope", is_flag=True, help="The model's name is ModelScope's."),
        click.option("--visible", default="", metavar="0,1", help="Numbers of the GPUs to use (CUDA_VISIBLE_DEVICES)."),
        click.option("--alloc-conf", "alloc", default="", help="PYTORCH_CUDA_ALLOC_CONF."),
        click.option("--force", is_flag=True, help="Although something is wrong."),
    ]
    asked = {field.name for field in fields(Server)}

    @functools.wraps(function)
    def wrapper(subject: Subject, tools: bool, **more: Any) -> Any:
        parser = subject.engine.tool_parser if tools else ""
        server = Server(tool_parser=parser, **{name: more.pop(name) for name in asked & more.keys()})
        return function(subject=subject, server=server, **more)

    wrapped: Any = wrapper
    for option in reversed(taken):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


def _launch(
    subject: Subject, plan: ServePlan, server: Server, *, image: str = "", program: str = "vllm"
) -> commands.Launch:
    """What is started, or the refusal of what cannot be.

    Args:
        subject: what is served.
        plan: how.
        server: what is asked of it beside its memory.
        image: of a container; the usual one when empty.
        program: `vllm`, or its path for a unit.

    Raises:
        DcaError: DCA-201 for too few GPUs, a value that is none, or ModelScope where it does not work.
    """
    visible, ranks = server.visible, plan.best.settings.tp * plan.best.settings.pp
    count = len(visible.split(","))
    if visible and count < ranks // subject.gpus.machines:
        raise DcaError(
            "DCA-201",
            f"--visible {visible} leaves {count} GPUs, and the plan is for {ranks}.",
            remedy=f"--gpus {count}x{subject.gpus.memory_gib:g}",
        )
    for flag, text in (
        ("--served-model-name", server.name),
        ("--host", server.host),
        ("--chat-template", server.chat_template),
        ("--alloc-conf", server.alloc),
        ("--image", image),
    ):
        if any(not character.isprintable() for character in text) or text.startswith("-"):
            raise DcaError("DCA-201", f"{flag} is no such value.", remedy="give it without control characters.")
    if server.modelscope and subject.shape.dual_chunk and subject.file is None:
        raise DcaError(
            "DCA-201",
            "--modelscope: the engine looks for the sparse table of such a model in a local folder, or on "
            "another hub, and would run dense.",
            remedy=f"modelscope download --model {plan.served} --local_dir DIR, and name DIR here.",
        )
    folder = subject.file is not None
    return commands.launch(plan, subject.gpus, server, folder=folder, image=image or commands.IMAGE, program=program)


@command.command("command", short_help="The exact command, as shell, docker, systemd, k8s or Python.")
@_subject
@_server
@click.option("--format", "form", type=click.Choice(list(commands.FORMATS)), default="shell", show_default=True)
@click.option("--image", default="", help="A container's image [dca-serve].")
@click.option("--vllm", "program", default="vllm", metavar="FILE", help="The program, with its path, for a unit.")
@options.output
def show(
    subject: Subject,
    plan: ServePlan,
    server: Server,
    form: str,
    image: str,
    program: str,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print the command that starts the server, with its environment and the flags of `dca serve plan`."""
    if not force:
        server_rules.refuse(plan.findings, f"{plan.model} is not to be served so; nothing is printed.")
    launch = _launch(subject, plan, server, image=image, program=program)
    if as_json:
        click.echo(documents.dumps(launch).decode(), nl=False)
        return
    text = commands.FORMATS[form](launch)
    if form == "shell" and not quiet:
        text = "\n".join([text, "", "# why", *commands.reasons(plan.flags)])
    click.echo(text.rstrip("\n"))


# --- run -----------------------------------------------------------------------------------------------------------


@command.command("run", short_help="Start it, after doctor, config check and quick smoke are green.")
@_subject
@_server
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Of the environment with the wheel [the active one; the newest in the cache].",
)
@click.option(
    "--skip", "skipped", multiple=True, type=click.Choice(["doctor", "config", "smoke"]), help="A check to omit."
)
@click.option("--log", type=FILE, metavar="FILE", help="Where the server's output goes [the run's folder].")
@options.cache
@options.output
def run(
    subject: Subject,
    plan: ServePlan,
    server: Server,
    python: Path | None,
    skipped: tuple[str, ...],
    log: Path | None,
    force: bool,
    cache_dir: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Start the server of `dca serve command` here, show its log with what is known of failures in it, and stop it.

    Ctrl-C stops it: the server is asked to end, and has half a minute to free its GPUs.
    """
    from dca.serve import ready
    from dca.serve import run as serving

    if not force:
        server_rules.refuse(plan.findings, f"{plan.model} is not to be served so; nothing was started.")
    if subject.gpus.machines > 1:
        raise DcaError(
            "DCA-201",
            "several machines are not started from here.",
            remedy="dca serve command prints what to start on each of them.",
        )
    if log is not None and not options.can_be_written(log):
        raise DcaError("DCA-204", f"--log: {log} cannot be written.", remedy="name another place.")
    launch = _launch(subject, plan, server)
    if launch.api_key and not os.environ.get(commands.API_KEY):
        raise DcaError("DCA-201", f"--api-key: {commands.API_KEY} is not set.", remedy=f"export {commands.API_KEY}=…")
    cache = options.open_cache(cache_dir)
    with options.terminal(as_json=as_json, quiet=quiet) as reporter:
        interpreter = ready.python_of(subject, python, cache)
        program = serving.program(interpreter)
        ready.check(subject, interpreter, cache, reporter, skipped=skipped, wheels=sorted(DIST.glob("*.whl")))
    folder = cache.open().folder("run", "serve")
    documents.write(plan, folder / "serve.json")
    # Servers that run at once have different ports, so that each has its own log.
    target = log or folder / f"serve-{launch.port}.log"
    target.parent.mkdir(parents=True, exist_ok=True)
    argv = [str(program), *launch.words(launch.model)]
    env = serving.environment(launch.environment, interpreter)

    def tell(text: str) -> None:
        if not as_json and not quiet:
            click.echo(text)

    def known(failure: Known) -> None:
        click.echo(f"  Known: {failure.title} ({failure.id}). {failure.cause}\n         {failure.remedy}", err=True)

    def started() -> None:
        click.echo(f"  It serves: http://{launch.host or '127.0.0.1'}:{launch.port}/v1. Ctrl-C stops it.", err=True)

    watcher = serving.Watcher(tell=tell, known=known, ready=started)
    if not quiet:
        click.echo(f"  log: {target}", err=True)
    served = serving.serve(argv, env, target, watcher)
    if as_json:
        click.echo(documents.dumps(served).decode(), nl=False)
