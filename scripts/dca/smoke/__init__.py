"""Proves that a wheel's dual chunk attention computes the right results: on a GPU, and in large part on a CPU.

There are five levels. `static` reads the wheel's files. `cpu` runs the source of the index conversion and the wheel's
own Python on the CPU, against the oracle. `kernels` runs the wheel's modules and the PTX of its kernels on an emulated
GPU, `gpu` the kernels on a real one. Both include `static` and `cpu`. `engine` runs the wheel's whole engine on an
emulated GPU, and is run only by name. Where no level is asked for and there is no GPU, `cpu` comes with a sample of the
cases of `kernels`.
"""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from dca import inspection
from dca.catalogue import archs, machine, recipes
from dca.catalogue.recipes import KERNELS
from dca.contract import values as contract
from dca.emulation.recording import Wish
from dca.foundation import documents, environment, runner, store, together
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.foundation.run import Run
from dca.smoke import emulated, static, subject
from dca.smoke.emulated import EmulatedGpu
from dca.smoke.subject import Subject
from dca.smoke.values import INCLUDED, CaseResult, Level, ProvenSource, Smoke, folder_of
from dca.toolchain.environments import WORKERS

__all__ = ["SEEDS", "CaseResult", "Level", "Request", "Smoke", "drawn_seed", "smoke"]

# Random rows of 64 queries of the index conversion, and rows of a head at a model's length: without and with --quick.
ROWS, SAMPLED = (100_000, 4_000), (200, 20)
PROVE_SECONDS = 7200.0
# After this, a case counts as one that does not end: without and with --quick.
CASE_SECONDS = (3600.0, 300.0)
# Seeds are below this.
SEEDS = 2**31
MARK = "PROOF "
# Where a traceback begins: of an exception, and of a signal.
TRACEBACK, FATAL = "Traceback (most recent call last):", "Fatal Python error:"
NOT_BY_STATIC = ("the results of the kernels: --level cpu proves part of them, --level kernels and gpu all.",)
NOT_BY_CPU = (
    "the CUDA kernels of sparse and dense attention: --level kernels runs their PTX without a GPU, --level gpu the "
    "kernels.",
    "the index conversion as compiled for a GPU: only its source is proven.",
    "speed.",
)
# In the place of those, where a sample of the kernels' cases was run.
NOT_BY_SAMPLE = (
    "the CUDA kernels beyond a sample of their cases, which ran from their PTX: --level kernels runs all cases without "
    "a GPU, --level gpu the kernels.",
    "speed.",
)
NOT_BY_KERNELS = ("ptxas and the GPU: kernels ran from their PTX, and only --level gpu runs their machine code.",)
NOT_BY_ENGINE = (
    "ptxas and the GPU: kernels ran from their PTX, and only --level gpu runs their machine code.",
    "NCCL, vLLM's own all-reduce and more than two ranks.",
)
# The levels that a plugin has; one that runs it in a real engine belongs here, and in `_run`.
OF_PLUGIN: tuple[Level, ...] = ("static",)
NOT_BY_PLUGIN = (
    "the results of dual chunk attention: no level runs a plugin in an engine yet.",
    "that the modules of the plugin can be imported: none of its code was run.",
)
NOT_OF_KERNELS = "dual chunk attention as a whole: the wheel has bare kernels, without the engine's Python."


def drawn_seed() -> int:
    """A seed that no earlier run need have had."""
    return secrets.randbelow(SEEDS)


@dataclass(frozen=True)
class Request:
    """The request for a smoke test.

    Args:
        wheel: the file.
        level: to run, with those that it includes; None for `gpu` if there is one, else `cpu`.
        archs: GPU archs that the wheel must support; those it was built for when empty.
        python: of an environment with the wheel's requirements; one is created when not given.
        source: a clone or sdist with the source of the index conversion.
        overlays: folders whose files replace those of the wheel and of the source, at the same paths; each is proven
            separately. Without any, the unchanged wheel is proven.
        quick: fewer repetitions.
        first: whether a variant stops at its first failed case.
        seed: of all random numbers; drawn if not given, so that lengths differ from run to run.
        cases: names; all when empty.
        words: of the command line, without the overlays, to repeat a case.
        visible: CUDA_VISIBLE_DEVICES; None for every GPU.
        record: what to record of the launches of the level `kernels`, to replay them on a GPU; None for nothing.
        node: the kind of machine that this is, such as gpu:h100, which has reports of its own; empty for none.
    """

    wheel: Path
    level: Level | None
    archs: tuple[str, ...] = ()
    python: Path | None = None
    source: Path | None = None
    overlays: tuple[Path, ...] = ()
    quick: bool = False
    first: bool = False
    seed: int = field(default_factory=drawn_seed)
    cases: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    visible: str | None = None
    record: Wish | None = None
    node: str = ""


@dataclass(frozen=True)
class _Variant:
    """The wheel, or the wheel with an overlay, with the index conversion compiled for the CPU."""

    overlay: Path | None
    kernel: Path

    @property
    def name(self) -> str:
        return str(self.overlay or "")


@dataclass(frozen=True)
class _Task:
    """A request with the level that is run.

    Args:
        request: as it came.
        level: that is run.
        gpu: the emulated GPU of the level `kernels`, or of the sample of its cases at the level `cpu`.
        no_sample: why there is no such sample, in a sentence; empty where none is wanted.
    """

    request: Request
    level: Level
    gpu: EmulatedGpu | None = None
    no_sample: str = ""


@dataclass
class _Findings:
    """The findings so far.

    Attributes:
        cases: the results.
        sources: the files that were run.
        environment: of the worker, as it reports it: versions of Python and torch, and the device.
        left_out: what the cases on a GPU do not prove, in words.
        stood_in: what something else took the place of, at the level `engine`, in words.
    """

    cases: list[CaseResult] = field(default_factory=list)
    sources: list[ProvenSource] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    stood_in: list[str] = field(default_factory=list)


def smoke(request: Request, known: tuple[recipes.Loaded, ...], cache: store.Store, reporter: Reporter) -> Smoke:
    """Prove a wheel.

    Returns:
        The findings, which may be failures. They are also in `smoke.json` in the run's folder, or in that of the kind
        of machine there. `smoke-LEVEL.json` has the last findings of a level about the unchanged wheel: that every
        case passes, or that any case fails.

    Raises:
        DcaError: DCA-802 when the wheel or the machine does not allow the proof, DCA-841 when the wheel has no code for
            the GPU, DCA-803 and 804 when the cases cannot be run, and the errors of creating an environment and
            fetching a source.
    """
    started = time.monotonic()
    if request.wheel.is_file():
        # An inspection unpacks every module, which takes a minute for a wheel that is not to be proven at all.
        subject.candidates(request.wheel, known)
    reporter.stage("inspect", request.wheel.name)
    inspected = inspection.inspect(request.wheel, asked=request.archs or None)
    about = subject.identify(request.wheel, inspected, known)
    left_out = static.left_out(inspected, about.recipe)
    if about.recipe.is_plugin:
        _check_plugin(request)
        request = replace(request, level="static")
    task = _task(request, about, left_out=bool(left_out))
    run = cache.open().folder("run", f"smoke-{inspected.sha256[:16]}")
    if request.node:
        # Several may run at a time, on machines that share the cache.
        run = run / folder_of(request.node)
    cases = static.check(inspected, about.recipe)
    findings = _Findings(cases=[case for case in cases if not request.cases or case.name in request.cases])
    if task.level != "static":
        _run(task, about, findings, Run(cache, reporter, run / "smoke.log"))
    if not findings.cases:
        raise DcaError(
            "DCA-201",
            f"there is no case {', '.join(request.cases)} at level {task.level}.",
            remedy="run once without --case, which lists every case by name.",
        )
    report = Smoke(
        wheel=inspected.file,
        sha256=inspected.sha256,
        version=inspected.version,
        recipe=about.recipe.name,
        level=task.level,
        python=findings.environment.get("python", ""),
        torch=findings.environment.get("torch", ""),
        device=findings.environment.get("device", ""),
        node=request.node,
        seed=request.seed,
        sources=tuple(findings.sources),
        cases=tuple(_repeatable(case, request) for case in findings.cases),
        partial=bool(request.cases)
        or not all(case.tested for case in findings.cases)
        or (request.first and not all(case.passed for case in findings.cases)),
        not_proven=NOT_BY_PLUGIN if about.recipe.is_plugin else _not_proven(task, findings, bare=_bare(inspected)),
        left_out=left_out,
        stood_in=tuple(findings.stood_in),
        seconds=round(time.monotonic() - started, 2),
    )
    documents.write(report, run / "smoke.json")
    if not request.overlays:
        _keep(report, run, more_archs=bool(request.archs))
    return report


def _check_plugin(request: Request) -> None:
    """Reject what a plugin does not have: levels that run kernels of the wheel's own, and GPU archs.

    Raises:
        DcaError: DCA-802.
    """
    if request.level not in (None, *OF_PLUGIN) or request.archs or request.overlays or request.record:
        raise DcaError(
            "DCA-802",
            f"{request.wheel.name} is a plugin: its level is {' or '.join(OF_PLUGIN)}.",
            why="the other levels run kernels of the wheel's own, and a plugin has none.",
            remedy="run it without --arch, --overlay and --record, and with --level static.",
        )


def _task(request: Request, about: Subject, *, left_out: bool) -> _Task:
    """The level that a request asks for, or that this machine allows.

    Args:
        request: as it came.
        about: the wheel.
        left_out: whether the wheel lacks kernels by design, so that the levels which run them have nothing to run.

    Raises:
        DcaError: DCA-838 when the level `kernels` is asked for and the wheel's PTX is not there, DCA-839 when the file
            with it is damaged, DCA-841 when the wheel has no code for the GPU.
    """
    if left_out:
        return _Task(request, "static" if request.level == "static" else "cpu")
    if request.level == "engine" and _bare(about.inspected):
        raise DcaError(
            "DCA-802",
            f"{request.wheel.name} has no engine: it has bare kernels alone.",
            remedy="use --level kernels, which runs them.",
        )
    if request.level == "kernels" or request.level == "engine":
        return _Task(request, request.level, emulated.choose(about))
    cards = machine.visible(machine.gpus(), request.visible)
    level = request.level or ("gpu" if cards else "cpu")
    if level == "gpu":
        _check_cards(about, cards)
    if request.level or level == "gpu" or request.cases or request.overlays:
        return _Task(request, level)
    try:
        return _Task(request, level, emulated.choose(about))
    except DcaError as error:
        if error.code != "DCA-838":
            raise
        return _Task(request, level, no_sample=f"a sample of the kernels without a GPU: {error.why}")


def _check_cards(about: Subject, cards: Sequence[machine.Gpu]) -> None:
    """Reject a wheel that none of the GPUs can run: its kernels would fail, and nothing is wrong with it.

    Raises:
        DcaError: DCA-841.
    """
    unfit = {
        card: [m.path for m in about.proven if archs.how_reached(card.arch, m.exact_sass, m.exact_ptx) == archs.NOT]
        for card in dict.fromkeys(cards)
    }
    if unfit and all(unfit.values()):
        codes = sorted({code for m in about.proven for code in (*m.sass, *(f"{ptx}+PTX" for ptx in m.ptx))})
        paths = dict.fromkeys(path for missing in unfit.values() for path in missing)
        raise DcaError(
            "DCA-841",
            f"{about.wheel.name} has no code for {' or '.join(f'{card.name} ({card.arch})' for card in unfit)}.",
            why=f"{' and '.join(paths)} cannot run there; the wheel's kernels are for {', '.join(codes) or 'no arch'}.",
            remedy="build one with `dca wheel --arch`, or use `--level kernels` or `--level cpu`, which need no GPU.",
        )


def _keep(report: Smoke, run: Path, *, more_archs: bool) -> None:
    """Keep a report that can be published with its wheel, or that reports a failure.

    A complete run that passes replaces earlier failures at its level and those it includes; a partial run does not.

    Args:
        report: about the unchanged wheel.
        run: folder of its reports.
        more_archs: whether the user named archs, which need not be those that the wheel was built for.
    """
    failed = {case.name for case in report.failed}
    if (report.partial and not failed) or (more_archs and failed == {f"static/{static.ARCHS}"}):
        return
    documents.write(report, run / f"smoke-{report.level}.json")
    if report.passed:
        for level in INCLUDED[report.level]:
            file = run / f"smoke-{level}.json"
            if (before := documents.read_if_whole(Smoke, file)) and not before.passed:
                file.unlink()


def _bare(inspected: inspection.Inspection) -> bool:
    return bool(inspected.recorded and inspected.recorded.profile == KERNELS)


def _not_proven(task: _Task, findings: _Findings, *, bare: bool) -> tuple[str, ...]:
    by_level = {
        "static": NOT_BY_STATIC,
        "cpu": (*(NOT_BY_SAMPLE if task.gpu else NOT_BY_CPU), *filter(None, [task.no_sample])),
        "kernels": (*NOT_BY_KERNELS, *findings.left_out),
        "engine": NOT_BY_ENGINE,
        "gpu": tuple(findings.left_out),
    }[task.level]
    return (*by_level, *([NOT_OF_KERNELS] if bare and task.level == "cpu" else []))


def _repeatable(case: CaseResult, request: Request) -> CaseResult:
    overlay = ["--overlay", case.overlay] if case.overlay else []
    node = ["--node", request.node] if request.node else []
    words = ["dca", "smoke", *request.words, *overlay, *node, "--level", case.level, "--case", case.name]
    words += [] if case.seed is None else ["--seed", str(case.seed)]
    return case.model_copy(update={"repeat": shlex.join(words)})


def _run(task: _Task, about: Subject, findings: _Findings, run: Run) -> None:
    """Run the cases of the levels above `static` in the wheel's environment, and add to the findings.

    Raises:
        DcaError: DCA-802 when there is no GPU for the cases that require one, and others, see `smoke`.
    """
    request = task.request
    if request.cases and all(name.startswith("static/") for name in request.cases):
        return
    run.log.unlink(missing_ok=True)
    python = request.python or subject.environment(about, run)
    with store.scratch(run.cache.root) as folder:
        run.reporter.stage("unpack", about.wheel.name)
        subject.unpack(about, folder / "wheel")
        if task.level == "engine":
            _in_engine(task, about, findings, python, folder, run)
            return
        variants = []
        for overlay in request.overlays or (None,):
            if not _bare(about.inspected):
                findings.sources += _python_files(about, overlay, folder / "wheel")
            source, proven = subject.kernel_source(about, request.source, overlay, folder, run)
            findings.sources.append(proven)
            kernel = folder / f"conversion-{proven.sha256}.so"
            try:
                if not kernel.is_file():
                    subject.kernel_for_cpu(source, kernel, run.log)
            except DcaError as error:
                if len(request.overlays) < 2:
                    raise
                # The other overlays can be proven all the same.
                findings.cases.append(_not_compiled(overlay, error))
                continue
            variants.append(_Variant(overlay, kernel))
        findings.sources = list(dict.fromkeys(findings.sources))
        asked = _worker_request(request, about, folder / "wheel", variants)
        with together.Tasks() as tasks:
            on = f" and an emulated GPU of compute capability {task.gpu.arch}" if task.gpu else ""
            run.reporter.stage("prove", f"on the CPU{on}")
            kernels = tasks.start(partial(_on_emulated_gpu, task, python, asked, folder, run)) if task.gpu else None
            _listen(prove(python, {**asked, "level": "cpu"}, folder, run.reporter, run.log), findings, "cpu")
        if kernels:
            _listen(kernels.result, findings, "kernels")
        if task.gpu and request.record:
            run.reporter.stage("record", "the launches of long prompts, which a GPU will be timed with")
            env = emulated.variables(task.gpu, python, folder, run, replace(request.record, shapes=True))
            _recorded(prove(python, {**asked, "level": "shapes"}, folder, run.reporter, run.log, env=env))
        if task.level == "gpu":
            run.reporter.stage("prove", "on the GPU")
            on_gpu = {**asked, "level": "gpu"}
            env = {} if request.visible is None else {"CUDA_VISIBLE_DEVICES": request.visible}
            lines = prove(python, on_gpu, folder, run.reporter, run.log, env=env)
            missing = next((line["broken"] for line in lines if "broken" in line and "variant" not in line), "")
            if missing:
                raise DcaError(
                    "DCA-802",
                    "there is no GPU to run the kernels on.",
                    why=missing,
                    remedy="use a machine with a GPU, or `--level kernels`, which runs their PTX without one.",
                )
            _listen(lines, findings, "gpu")


def _in_engine(task: _Task, about: Subject, findings: _Findings, python: Path, folder: Path, run: Run) -> None:
    """Run the wheel's engine on the emulated GPU, with each overlay, and add to the findings."""
    request = task.request
    if task.gpu is None:
        return
    family = contract.load().model.model_dump(mode="json")
    run.reporter.stage("prove", f"the engine on an emulated GPU of compute capability {task.gpu.arch}")
    for number, overlay in enumerate(request.overlays or (None,)):
        own = folder / f"engine-{number}"
        wheel = own / "wheel"
        own.mkdir()
        if overlay is None:
            wheel = folder / "wheel"
        else:
            # An engine imports its modules by itself, so that each must be at its place.
            shutil.copytree(folder / "wheel", wheel)
            shutil.copytree(overlay, wheel, dirs_exist_ok=True)
        findings.sources += _python_files(about, overlay, folder / "wheel")
        asked = _worker_request(request, about, wheel, [_Variant(overlay, wheel)])
        asked |= {"level": "engine", "family": family}
        env = emulated.variables(task.gpu, python, own, run, checks=emulated.CHECKS_OF_ENGINES)
        # The engine starts other processes, which import it too.
        env["PYTHONPATH"] = str(wheel)
        _listen(prove(python, asked, own, run.reporter, run.log, env=env), findings, "engine")


def _recorded(lines: list[dict[str, Any]]) -> None:
    """Check that every launch that is to be timed was made.

    Raises:
        DcaError: DCA-840 when one was not.
    """
    failed = [line.get("detail") or line["broken"] for line in lines if "broken" in line or line.get("passed") is False]
    if failed:
        raise DcaError(
            "DCA-840",
            "the launches of long prompts could not be recorded.",
            why=failed[0],
            remedy="the other launches are recorded, and can be replayed.",
        )


def _on_emulated_gpu(task: _Task, python: Path, asked: dict[str, Any], folder: Path, run: Run) -> list[dict[str, Any]]:
    """The lines of the worker behind the emulated GPU, which runs beside the one for the CPU; see `prove`."""
    if task.gpu is None:
        return []
    own = folder / "kernels"
    own.mkdir()
    log = run.log.with_name("smoke-kernels.log")
    log.unlink(missing_ok=True)
    env = emulated.variables(task.gpu, python, own, run, task.request.record)
    request = {**asked, "level": "kernels", "sample": task.level == "cpu"}
    return prove(python, request, own, run.reporter, log, env=env)


def _not_compiled(overlay: Path | None, error: DcaError) -> CaseResult:
    """The failed case of an overlay whose source of the index conversion does not compile."""
    return CaseResult(
        level="cpu",
        name="conversion/compiles",
        overlay=str(overlay or ""),
        proves="the source of the index conversion compiles for the CPU",
        passed=False,
        detail=f"{error.what} {error.why}".strip(),
    )


def _worker_request(request: Request, about: Subject, wheel: Path, variants: list[_Variant]) -> dict[str, Any]:
    """The request for `workers/prove.py`, without the level."""
    rows, sampled = (numbers[request.quick] for numbers in (ROWS, SAMPLED))
    recorded = about.inspected.recorded
    modules = {"backend": about.files.backend, "rotary": about.files.rotary}
    listed = [
        {"name": variant.name, "oracle": None, "overlay": variant.name or None, "kernel": str(variant.kernel)}
        for variant in variants
    ]
    return {
        "wheel": str(wheel),
        "driver": None,
        "threads": 1,
        "rows": rows,
        "sampled": sampled,
        "quick": request.quick,
        "case_seconds": CASE_SECONDS[request.quick],
        "dtypes": list(recorded.serves.dtypes) if recorded else [],
        "head_dims": list(recorded.serves.head_dims) if recorded else [],
        "seed": request.seed,
        "cases": list(request.cases),
        "modules": None if _bare(about.inspected) else modules,
        "variants": listed,
        "first": request.first,
    }


def _python_files(about: Subject, overlay: Path | None, wheel: Path) -> list[ProvenSource]:
    proven = []
    for module in (about.files.backend, about.files.rotary):
        name = module.replace(".", "/") + ".py"
        replaced = overlay is not None and (overlay / name).is_file()
        path = overlay / name if overlay and replaced else wheel / name
        if path.is_file():
            proven.append(
                ProvenSource(
                    path=name, sha256=store.sha256_file(path), origin="the overlay" if replaced else "the wheel"
                )
            )
    return proven


def prove(
    python: Path, request: dict[str, Any], folder: Path, reporter: Reporter, log: Path, *, env: Mapping[str, str] = {}
) -> list[dict[str, Any]]:
    """Run the worker in a wheel's environment, and return the lines that it reports.

    Args:
        python: of the environment.
        request: for `workers/prove.py`.
        folder: a scratch folder, which also has the worker's home.
        reporter: gets every case.
        log: of everything that the worker prints.
        env: further variables: the GPUs that it may use, or the emulated one.

    Raises:
        DcaError: DCA-804 when the worker fails.
    """
    lines: list[dict[str, Any]] = []
    # What was printed since the last result, by the wheel's own code if that crashed.
    said: list[str] = []

    def read(text: str) -> None:
        if not text.startswith(MARK):
            said.append(text)
            return
        line = json.loads(text.removeprefix(MARK))
        if "begins" in line:
            reporter.progress(len(lines), 0, line["begins"])
        else:
            if line.pop("crashed", False):
                place = "broken" if "broken" in line else "detail"
                line[place] += _last_words(said)
            lines.append(line)
        said.clear()

    file = folder / "request.json"
    file.write_bytes(documents.canonical(request))
    home = folder / "home"
    home.mkdir(exist_ok=True)
    # Nothing may be sent anywhere, and no log of vLLM may be kept.
    own = {"HOME": str(home), "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CONFIGURE_LOGGING": "1"}
    done = runner.run(
        [python, "-I", WORKERS / "prove.py", file],
        cwd=home,
        env=environment.of("compiler", {**env, **own}),
        log=log,
        timeout=PROVE_SECONDS,
        supervision=runner.Supervision(on_line=read),
    )
    if not done.ok:
        printed = tuple(text for text in done.tail if not text.startswith(MARK))
        # vLLM warns of a missing driver on every machine without a GPU: only what ended the process counts.
        last = next((n for n in reversed(range(len(printed))) if printed[n].startswith(TRACEBACK)), len(printed))
        raise DcaError(
            "DCA-804",
            "the cases could not be run completely" + (": they took too long." if done.timed_out else "."),
            why="\n".join(printed[-4:]),
            output=printed[last:],
            remedy=f"see {log}; with --python FILE, give the Python of your own environment with the wheel's "
            "requirements.",
        )
    return lines


def _last_words(said: list[str]) -> str:
    """What a process printed before it crashed, without the traceback that Python prints of itself."""
    end = next((n for n, text in enumerate(said) if text.startswith(FATAL)), len(said))
    words = [text.strip() for text in said[:end] if text.strip()]
    return f": {'; '.join(words[-2:])[:300]}" if words else ""


def _listen(lines: list[dict[str, Any]], findings: _Findings, level: Level) -> None:
    """Sort the worker's lines: cases, a wheel that cannot be imported, its environment and what it left out."""
    for line in lines:
        if "broken" in line:
            proves = "the wheel's dual chunk attention can be imported"
            findings.cases.append(
                CaseResult(
                    level=level,
                    name="import",
                    overlay=line["variant"],
                    proves=proves,
                    passed=False,
                    tested=line.get("tested", True),
                    detail=line["broken"],
                )
            )
        elif "case" in line:
            known = {key: value for key, value in line.items() if key not in ("variant", "case")}
            findings.cases.append(CaseResult(level=level, name=line["case"], overlay=line["variant"], **known))
        elif "left_out" in line:
            # A child that follows one that crashed says it again.
            findings.left_out += [text for text in line["left_out"] if text not in findings.left_out]
        elif "stood_in" in line:
            findings.stood_in += [text for text in line["stood_in"] if text not in findings.stood_in]
        elif "device" in line:
            capability = ".".join(map(str, line["capability"]))
            findings.environment["device"] = (
                f"{line['device']} ({capability}), driver {line['driver']}, CUDA {line['cuda']}"
            )
        else:
            findings.environment.update({key: str(value) for key, value in line.items()})
