"""`dca serve`."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import click

from dca.catalogue.logs import forms
from dca.cli import options, serve_check, show_known
from dca.cli.packing import packed
from dca.cli.serve_check import check_picture
from dca.cli.terminal import wrapped
from dca.config import plot
from dca.foundation import documents, store
from dca.foundation.errors import DcaError
from dca.serve import chart, engines, gpus, server_rules, ways
from dca.serve import command as commands
from dca.serve import measured as logs
from dca.serve import plan as plans
from dca.serve.command import Server
from dca.serve.gpus import GIB
from dca.serve.measured import Corrections, Measured
from dca.serve.plan import ServePlan
from dca.serve.server_rules import Asked, Subject
from dca.serve.vllm_recipe import recipe

DIST = Path("dist")
RECIPE = "recipe"
CORRECTIONS = "serving/corrections.json"
"""In the cache."""
METHODS = ("fp8", "awq", "gptq")
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
CACHE_DTYPES = ("auto", "fp8", "fp8_e4m3", "fp8_e5m2")
COUNT = click.IntRange(1, 2**31 - 1)
LENGTH = click.IntRange(-1, 2**31 - 1)


@click.group("serve")
def command() -> None:
    """Plan a server's memory and flags, start it, and check its answers."""


command.add_command(serve_check.check)


@dataclass(frozen=True)
class Wish:
    """The model, the GPUs, and what the user fixes.

    Args:
        named: the GPUs of each machine; None for those of this machine.
        recipe: the engine's; None for the wheel's, else the first that has the model's class.
        wheel: a wheel to check against the model.
        asked: settings that the user fixes.
        log: what a server's log says of its memory.
        known: what earlier logs taught.
    """

    model: str
    named: str | None
    machines: int
    recipe: str | None
    wheel: Path | None
    asked: Asked
    log: Measured | None = None
    known: Corrections = field(default_factory=Corrections)

    def beside(self, log: Measured) -> Wish:
        """The same for the settings of a server's log, where the user fixes none."""
        told: dict[str, Any] = {
            "tp": log.tp,
            "length": log.length,
            "batched": log.batched,
            "sequences": log.sequences,
            "utilization": log.utilization,
            "cache_gib": log.reserved_gib,
        }
        asked = {name: value for name, value in told.items() if getattr(self.asked, name) is None and value}
        if log.version and not self.asked.version and self.recipe is None and self.wheel is None:
            asked |= {"version": log.version, "v1_told": log.v1, "logged": True}
        asked |= {"pp": log.pp} if log.pp and self.asked.pp == 1 else {}
        asked |= {"dcp": log.dcp} if log.dcp and self.asked.dcp == 1 else {}
        asked |= {"eager": True} if log.eager else {}
        asked |= {"reused_told": log.reused} if log.reused is not None else {}
        asked |= {"kv_cache_dtype": log.cache_dtype} if log.cache_dtype.startswith("fp8") else {}
        return replace(self, asked=replace(self.asked, **asked), log=log)

    def cards(self, chosen: str | None) -> gpus.Gpus:
        """The GPUs: those named, else those of a log, else this machine's.

        Args:
            chosen: CUDA_VISIBLE_DEVICES; the environment's when None.
        """
        log = self.log
        if log is not None and log.card_gib and self.named is None:
            return gpus.Gpus(count=(self.asked.tp or 1) * self.asked.pp, memory_gib=log.card_gib)
        found = gpus.of_this_machine(chosen=chosen) if self.named is None else gpus.parse(self.named, self.machines)
        return found.model_copy(update={"memory_gib": log.card_gib}) if log is not None and log.card_gib else found

    def plan(self, *, visible: str = "", local: bool = False) -> tuple[Subject, ServePlan]:
        """What is served, and how.

        Args:
            visible: numbers of the GPUs to use; all when empty.
            local: whether the server starts on this machine; without --gpus it does in any case.

        Raises:
            DcaError: DCA-201, and what `gpus.parse`, `gpus.of_this_machine` and `plans.subject_of` raise.
        """
        if not self.model.strip():
            raise DcaError("DCA-201", "the model's name is empty.", remedy="name a folder, or a model of build/models.")
        if self.asked.utilization is not None and math.isnan(self.asked.utilization):
            raise DcaError("DCA-201", "--gpu-memory-utilization is not a number.", remedy="give one such as 0.85.")
        if self.machines > 1 and self.named is None:
            raise DcaError("DCA-201", "--machines needs --gpus.", remedy="for example --gpus 8x80 --machines 2.")
        if visible and not re.fullmatch(r"\d{1,3}(,\d{1,3})*", visible):
            what = f"--visible {visible} is not a list of GPU numbers."
            raise DcaError("DCA-201", what, remedy="write it as 0,1,2,3.")
        chosen = {gpus.VISIBLE: visible} if visible else {}
        cards = self.cards(chosen.get(gpus.VISIBLE))
        # A server on another machine does not see this shell's variables.
        env = {**os.environ, **chosen} if local or self.named is None else {}
        subject, served = plans.subject_of(
            self.model, self.asked, gpus=cards, recipe=self.recipe, wheel=self.wheel, env=env
        )
        correction = self.known.of(cards, subject.asked.version)
        if correction is not None:
            subject = replace(subject, asked=replace(subject.asked, correction_gib=correction.most))
        made = plans.make(subject, served)
        return subject, plans.beside(subject, made, self.log) if self.log is not None else made


def _wish(model: str, named: str | None, machines: int, recipe: str | None, wheel: Path | None, **asked: Any) -> Wish:
    length, size, version = asked["length"], asked.pop("cache_bytes"), asked["version"]
    if length == 0:
        raise DcaError("DCA-201", "--max-model-len 0: no tokens.", remedy="give a number of tokens, or -1.")
    if version is not None and not re.fullmatch(r"v?\d+\.\d+(\.\d+)*", version):
        raise DcaError("DCA-201", f"--engine-version {version} is no version.", remedy="write it as 0.33.0.")
    if version is not None and (recipe is not None or wheel is not None):
        what = "--engine-version is for vLLM as it is published, and --recipe and --wheel are for another engine."
        raise DcaError("DCA-201", what, remedy="omit one of them.")
    if asked["eager"] and asked["graphs"]:
        what = "--enforce-eager turns CUDA graphs off, and --cuda-graphs requires them."
        raise DcaError("DCA-201", what, remedy="omit one of them.")
    given = {
        **asked,
        "quantization": asked["quantization"] or "",
        "length": None if length == -1 else length,
        "unlimited": length == -1,
        "version": (version or "").removeprefix("v"),
        "cache_gib": size / GIB if size is not None else None,
    }
    return Wish(model, named, machines, recipe, wheel, Asked(**given))


_subject = packed(
    _wish,
    "wish",
    click.argument("model", type=options.MODEL_NAME, metavar="MODEL"),
    options.download,
    click.option(
        "--gpus",
        "named",
        metavar="NxGIB",
        show_default="those of this machine",
        help="GPUs, such as 4x80 (GiB each) or 2xT4.",
    ),
    click.option(
        "--machines",
        type=click.IntRange(1, 512),
        default=1,
        show_default=True,
        help="Number of machines with these GPUs each.",
    ),
    click.option(
        "--tp",
        "--tensor-parallel-size",
        "tp",
        type=click.IntRange(1, 1024),
        show_default="as many as possible",
        help="Number of GPUs that share the heads.",
    ),
    click.option(
        "--pp",
        "--pipeline-parallel-size",
        "pp",
        type=click.IntRange(1, 512),
        default=1,
        show_default=True,
        help="Number of stages that share the layers.",
    ),
    click.option(
        "--decode-context-parallel-size",
        "--dcp",
        "dcp",
        type=click.IntRange(1, 1024),
        default=1,
        show_default=True,
        help="Number of ranks that share the tokens of the KV cache.",
    ),
    click.option(
        "--enable-expert-parallel", "expert_parallel", is_flag=True, help="Share a mixture's experts between ranks."
    ),
    click.option(
        "--max-model-len",
        "length",
        type=LENGTH,
        show_default="the model's own",
        help="Tokens of prompt and answer; -1 for the most that fits.",
    ),
    click.option(
        "--max-num-batched-tokens",
        "batched",
        type=COUNT,
        show_default="the most that fits",
        help="Tokens per step.",
    ),
    click.option(
        "--max-num-seqs",
        "sequences",
        type=COUNT,
        show_default="1 with dual chunk attention",
        help="Number of concurrent requests.",
    ),
    click.option(
        "--gpu-memory-utilization",
        "utilization",
        type=click.FloatRange(0.05, 1.0),
        help="Share of the GPU's memory to use, instead of a counted number of KV cache blocks.",
    ),
    click.option(
        "--num-gpu-blocks-override",
        "blocks",
        type=COUNT,
        show_default="as many as needed",
        help="Number of KV cache blocks.",
    ),
    click.option(
        "--quantization",
        type=click.Choice(METHODS),
        show_default="that of config.json",
        help="Quantization of the weights.",
    ),
    click.option(
        "--kv-cache-dtype",
        type=click.Choice(CACHE_DTYPES),
        default="auto",
        show_default=True,
        help="Data type of the KV cache.",
    ),
    click.option(
        "--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="Data type of the activations."
    ),
    click.option(
        "--block-size",
        type=click.IntRange(1, 4096),
        default=16,
        show_default=True,
        help="Tokens per block of the KV cache.",
    ),
    click.option(
        "--enable-prefix-caching",
        "prefix_caching",
        is_flag=True,
        help="Reuse what was computed for the same beginning of a prompt.",
    ),
    click.option("--cuda-graphs", "graphs", is_flag=True, help="Require CUDA graphs."),
    click.option("--enforce-eager", "eager", is_flag=True, help="Use no CUDA graphs."),
    click.option("--trust-remote-code", "trusted", is_flag=True, help="Let the engine run the model's own code."),
    click.option(
        "--kv-cache-memory-bytes",
        "cache_bytes",
        type=click.IntRange(1, 2**50),
        metavar="BYTES",
        help="KV cache of each GPU, instead of what is left.",
    ),
    click.option(
        "--kv-offloading-size",
        "offload_gib",
        type=click.FloatRange(min=0, min_open=True, max=2**20),
        metavar="GIB",
        help="Host memory for cached prompts that the GPUs have no room for.",
    ),
    click.option(
        "--engine-version",
        "version",
        metavar="VERSION",
        show_default="the recipe's",
        help="Plan for this version of vLLM as it is published, such as 0.33.0.",
    ),
    click.option(
        "--recipe",
        show_default="the wheel's, else the first that has the model's class",
        help="Recipe of the engine.",
    ),
    click.option("--wheel", type=options.FILE, metavar="FILE", help="Wheel that will serve the model; it is checked."),
)


# --- plan ----------------------------------------------------------------------------------------------------------


@command.command("plan", short_help="Show whether it fits, what limits it, and the flags that make it fit.")
@_subject
@click.option(
    "--plot",
    "picture",
    type=options.FILE,
    metavar="FILE",
    help="Draw memory over the length of the prompt: .svg or .png.",
)
@click.option("--report", type=options.FILE, metavar="FILE", help="Write everything to this file, as an HTML page.")
@click.option(
    "--measured",
    type=options.FILE,
    metavar="LOG",
    help="Compare with what a server's log says of its memory, and correct later plans for such GPUs.",
)
@click.option("-v", "--verbose", is_flag=True, help="Also show other ways to make it fit.")
@options.cache
@options.output
def plan(
    wish: Wish,
    picture: Path | None,
    report: Path | None,
    measured: Path | None,
    verbose: bool,
    cache_dir: Path | None,
    output: options.Output,
) -> None:
    """Compare weights, KV cache, activations and sparse attention's buffers of each GPU with its memory.

    MODEL is a folder, a config.json, or a name in build/models. Exit 1 when it does not fit, or when a setting would
    fail later.
    """
    kept = options.open_cache(cache_dir).root / CORRECTIONS
    wish = replace(wish, known=_corrections(cache_dir))
    if measured is not None:
        wish = wish.beside(logs.read(_log(measured)))
    subject, made = wish.plan()
    if made.measured is not None and made.measured.beside_gib is not None and made.version:
        learned = wish.known.learned(subject.gpus, made.version, made.measured.beside_gib)
        documents.write(learned, kept)
    check_picture(picture)
    options.check_writable("--report", report)
    shown = chart.panels(made, subject.shape, subject.gpus)
    if picture is not None:
        store.write_bytes(picture, plot.as_file(chart.svg(shown), picture.suffix.lower(), "memory.svg"))
    if report is not None:
        store.write_bytes(report, chart.page(made, shown).encode())
    text = render(made, verbose=verbose) + ("" if output.quiet else f"\n\n{chart.text(shown)}")
    output.show(made, text, always=bool(made.errors))
    server_rules.refuse(made.findings, _unfit(made), answered=output.as_json)


def _corrections(cache_dir: Path | None) -> Corrections:
    """What earlier logs taught; nothing when no log was ever given."""
    kept = options.open_cache(cache_dir).root / CORRECTIONS
    return documents.read_if_whole(Corrections, kept) or Corrections()


def _log(path: Path) -> str:
    """A log, which may be compressed; of a long one, its beginning and its end.

    Raises:
        DcaError: DCA-204 when it is not a file, DCA-108 when it is compressed and damaged.
    """
    if not path.is_file():
        raise DcaError("DCA-204", f"{path} does not exist, or is not a file.", remedy="name the log of a server.")
    with path.open("rb") as file:
        if forms.is_packed(file):
            return _unpacked(path, file)
        start = file.read(logs.MOST_BYTES // 2)
        file.seek(max(len(start), path.stat().st_size - logs.MOST_BYTES // 2))
        whole = start + file.read()
    # PowerShell's > writes UTF-16.
    return whole.decode("utf-16" if whole.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8", "replace")


def _unpacked(path: Path, file: BinaryIO) -> str:
    """A compressed log; of a long one, its beginning and its end."""
    form, half = forms.Form(), logs.MOST_BYTES // 2
    start, end = bytearray(), bytearray()
    for block in forms.blocks(file, form):
        kept = half - len(start)
        start += block[:kept]
        end += block[kept:]
        del end[: max(0, len(end) - half)]
    if form.damaged:
        raise DcaError(
            "DCA-108",
            f"{path} cannot be read: {form.why_unreadable}.",
            remedy="copy the log again, or give it as text.",
        )
    return bytes(start + end).decode("utf-8", "replace")


def _unfit(plan: ServePlan) -> str:
    return f"{plan.model} must not be served with these settings."


def render(plan: ServePlan, *, verbose: bool = False) -> str:
    """A plan as text."""
    best = plan.best
    lines = [f"{plan.model} on {plan.gpus}, by {plan.recipe}"]
    lines += [*wrapped("  recipe: ", plan.recipe_reason), ""]
    verdict = "fits" if plan.planned.fits else "does not fit"
    ending = ways.ending(plan.planned)
    if plan.planned.fits and plan.errors:
        verdict, ending = "fits, but see the errors below", f"it would use{ending.removeprefix(ways.STARTS)}"
    if plan.unknown:
        verdict, ending = "nobody can tell", plan.certain
    lines += wrapped("  ", f"{plan.planned.settings.length:,} tokens: {verdict}. {ending[:1].upper()}{ending[1:]}")
    if plan.longest and not plan.unknown:
        lines.append(f"  at most {plan.longest:,} tokens fit; the limit is {plan.binding}.")
    minimum = f"; the model's card requires {plan.minimum_gb} GB at its full length" if plan.minimum_gb else ""
    if not plan.unknown:
        lines.append(f"  needed on all GPUs together: {plan.needed_gb:.0f} GB{minimum}.")
        lines += wrapped("  ", plan.token_what)
    for finding in plan.findings:
        lines += ["", f"  {finding.severity:<7}  {finding.code}  {finding.what}", f"{'':20}{finding.remedy}"]
    lines += ["", "GiB per GPU"]
    for term in best.terms:
        lines.append(f"  {term.bytes / GIB:6.1f}  {term.what}")
    lines.append(f"  {best.total / GIB:6.1f}  of {best.card / GIB:g}, with a prompt of {best.settings.length:,} tokens")
    if plan.measured is not None:
        version = f"vLLM {plan.measured.version} " if plan.measured.version else ""
        lines += ["", f"what {version}printed, beside the plan for its settings"]
        lines += [f"  {line}" for line in logs.words(plan.measured)]
    lines += ["", f"flags for {best.settings.length:,} tokens" if plan.instead else "flags"]
    settings = [(f"{variable.name}={variable.value}", variable.reason) for variable in plan.environment]
    settings += [(" ".join(filter(None, (flag.name, flag.value))), flag.reason) for flag in plan.flags]
    width = max((len(name) for name, _ in settings), default=0)
    lines += [line for name, reason in settings for line in wrapped(f"  {name:<{width}}  ", reason)]
    if verbose or not plan.planned.fits:
        lines += ["", "other ways"]
        for way in plan.ways:
            lines += wrapped(f"  {'fits    ' if way.fits else 'does not'}  ", f"{way.change}: {way.what}")
    lines += ["", *(line for text in plan.notes for line in wrapped("  ", text))]
    return "\n".join(lines)


# --- command -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """How a server is started.

    Args:
        server: its settings.
        tools: whether it answers with tool calls.
        force: whether errors of the plan are ignored.
    """

    server: Server
    tools: bool
    force: bool


def _start(tools: bool, force: bool, **server: Any) -> Start:
    return Start(Server(**server), tools, force)


_server = packed(
    _start,
    "start",
    click.option(
        "--served-model-name",
        "name",
        default="",
        show_default="the model's own",
        help="Name that clients use for the model.",
    ),
    click.option("--host", default="", help="Address to listen on."),
    click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to listen on."),
    click.option("--api-key", is_flag=True, help="Require a key, which the server reads from VLLM_API_KEY."),
    click.option("--tools", is_flag=True, help="Answer with tool calls."),
    click.option("--chat-template", default="", metavar="FILE", help="Chat template instead of the tokenizer's own."),
    click.option("--modelscope", is_flag=True, help="Download the model by its name from ModelScope."),
    click.option("--visible", default="", metavar="0,1", help="Numbers of the GPUs to use (CUDA_VISIBLE_DEVICES)."),
    click.option("--alloc-conf", "alloc", default="", help="Value of PYTORCH_CUDA_ALLOC_CONF."),
    click.option("--force", is_flag=True, help="Continue although the plan has errors."),
)


def _launch(
    subject: Subject, plan: ServePlan, start: Start, *, image: str = "", program: str = "vllm"
) -> commands.Launch:
    """What is started.

    Args:
        subject: what is served.
        plan: how.
        start: what the server is started with beside that.
        image: of a container; the default when empty.
        program: `vllm`, or its path for a unit.

    Raises:
        DcaError: an error of the plan, unless --force is given; DCA-201 for too few GPUs, a wrong value, or ModelScope
            where it does not work.
    """
    if not start.force:
        server_rules.refuse(plan.findings, _unfit(plan))
    parser = engines.tool_parser(subject.shape, subject.engine) if start.tools else ""
    if start.tools and not parser:
        classes = " or ".join(subject.shape.architectures)
        raise DcaError(
            "DCA-201",
            f"--tools: which parser reads the tool calls of {classes} is not known here.",
            remedy="omit it, and add --enable-auto-tool-choice and --tool-call-parser NAME to the command; vLLM's "
            "documentation lists the names.",
        )
    server = replace(start.server, tool_parser=parser)
    visible, ranks = server.visible, plan.best.settings.tp * plan.best.settings.pp
    count = len(visible.split(","))
    if visible and count < ranks // subject.gpus.machines:
        raise DcaError(
            "DCA-201",
            f"--visible {visible} leaves {count} GPUs, but the plan needs {ranks}.",
            remedy=f"--gpus {count}x{subject.gpus.memory_gib:g}",
        )
    for flag, text in (
        ("--served-model-name", server.name),
        ("--host", server.host),
        ("--chat-template", server.chat_template),
        ("--alloc-conf", server.alloc),
        ("--image", image),
    ):
        if not text.isprintable() or text.startswith("-"):
            what = f"the value of {flag} starts with a dash or holds control characters."
            raise DcaError("DCA-201", what, remedy="remove them.")
    if server.modelscope and subject.shape.dual_chunk and subject.file is None:
        raise DcaError(
            "DCA-201",
            "--modelscope: the engine looks for the sparse table of such a model in a local folder or on another hub, "
            "and would run dense.",
            remedy=f"modelscope download --model {plan.served} --local_dir DIR, and name DIR here.",
        )
    where = commands.Where(image, program, subject.engine.recipe if subject.engine.stock else "")
    return commands.launch(plan, subject.gpus, server, folder=subject.file is not None, where=where)


@command.command("command", short_help="Print the exact command: shell, docker, systemd, k8s, Python or recipe.")
@_subject
@_server
@click.option(
    "--format",
    "form",
    type=click.Choice([*commands.FORMATS, RECIPE]),
    default="shell",
    show_default=True,
    help="Form of the command.",
)
@click.option(
    "--image", default="", show_default=f"{commands.IMAGE}, or vLLM's own of a release", help="Image of the container."
)
@click.option(
    "--vllm", "program", default="vllm", show_default=True, metavar="FILE", help="Program; a unit needs its path."
)
@options.cache
@options.output
def show(
    wish: Wish, start: Start, form: str, image: str, program: str, cache_dir: Path | None, output: options.Output
) -> None:
    """Print the command that starts the server, with its environment and the flags of `dca serve plan`."""
    wish = replace(wish, known=_corrections(cache_dir))
    subject, made = wish.plan(visible=start.server.visible)
    launch = _launch(subject, made, start, image=image, program=program)
    text = recipe(subject, made, launch) if form == RECIPE else commands.FORMATS[form](launch)
    if form == "shell" and not output.quiet:
        text = "\n".join([text, "", "# why", *commands.reasons(made.flags)])
    output.show(launch, text.rstrip("\n"), always=True)


# --- run -----------------------------------------------------------------------------------------------------------


@command.command("run", short_help="Start the server, after doctor, config check and a quick smoke test.")
@_subject
@_server
@click.option(
    "--python",
    type=options.PATH,
    metavar="FILE",
    show_default="the active environment's, else the newest in the cache",
    help="Python of the environment with the wheel.",
)
@click.option(
    "--skip",
    "skipped",
    multiple=True,
    type=click.Choice(["doctor", "config", "smoke"]),
    help="Skip this check. Can be repeated.",
)
@click.option(
    "--log",
    type=options.FILE,
    metavar="FILE",
    show_default="in the cache",
    help="File for the server's output.",
)
@options.cache
@options.output
def run(
    wish: Wish,
    start: Start,
    python: Path | None,
    skipped: tuple[str, ...],
    log: Path | None,
    cache_dir: Path | None,
    output: options.Output,
) -> None:
    """Start the server of `dca serve command` here, and show its log with the known failures in it.

    Ctrl-C stops it: the server has half a minute to end and to free its GPUs.
    """
    from dca.serve import ready
    from dca.serve import run as serving

    wish = replace(wish, known=_corrections(cache_dir))
    subject, made = wish.plan(visible=start.server.visible, local=True)
    launch = _launch(subject, made, start)
    subject = replace(subject, settings=made.best.settings)
    if subject.gpus.machines > 1:
        raise DcaError(
            "DCA-201",
            "`dca serve run` starts a server on one machine only.",
            remedy="`dca serve command` prints what to start on each machine.",
        )
    options.check_writable("--log", log)
    if launch.api_key and not os.environ.get(commands.API_KEY):
        raise DcaError("DCA-201", f"--api-key: {commands.API_KEY} is not set.", remedy=f"export {commands.API_KEY}=…")
    cache = options.open_cache(cache_dir)
    with output.terminal() as reporter:
        interpreter = ready.python_of(subject, python, cache)
        program = serving.program(interpreter)
        ready.check(subject, interpreter, cache, reporter, skipped=skipped, wheels=sorted(DIST.glob("*.whl")))
    folder = cache.open().folder("run", "serve")
    documents.write(made, folder / "serve.json")
    # Servers that run at once have different ports, so that each has its own log.
    target = log or folder / f"serve-{launch.port}.log"
    target.parent.mkdir(parents=True, exist_ok=True)
    argv = [str(program), *launch.words(launch.model)]
    env = serving.environment(launch.environment, interpreter)

    def tell(text: str) -> None:
        if not output.as_json and not output.quiet:
            click.echo(text)

    def started() -> None:
        url = f"http://{launch.host or '127.0.0.1'}:{launch.port}/v1"
        click.echo(f"  The server is ready: {url}. Ctrl-C stops it.", err=True)

    watcher = serving.Watcher(tell=tell, known=show_known, ready=started)
    if not output.quiet:
        click.echo(f"  log: {target}", err=True)
    output.show(serving.serve(argv, env, target, watcher), "")
