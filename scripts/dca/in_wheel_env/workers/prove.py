"""Worker in a wheel's environment: runs the cases of a smoke test and prints each result as one line of JSON.

Argument: a file with the request that `dca.smoke` writes. Lines begin with `PROOF `, because vLLM prints as well.

At the level "cpu", the index conversion is a library for the CPU, and the wheel's Python runs with stand-ins for the
other kernels. At the level "gpu", the wheel's kernels run on the first GPU; without `modules` they are bare kernels. At
the level "kernels" the same, on an emulated GPU that this process was started behind, or a `sample` of it. At "shapes",
such a GPU records the launches of long prompts, and runs none. At "engine", the wheel's whole engine runs on such a
GPU, in a new child for each case.

Each variant runs in a child of this process, because a wrong kernel may end its process, damage its memory or never
return. Then the case that it ran has failed, and a new child runs the cases behind it. CUDA is used in children only:
it does not survive a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import importlib.util
import json
import mmap
import os
import pathlib
import platform
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

HERE = pathlib.Path(__file__).resolve().parent.parent
REQUEST = json.loads(pathlib.Path(sys.argv[1]).read_text())
LEVEL = REQUEST.get("level", "cpu")
ON_DEVICE = LEVEL in ("kernels", "engine", "shapes", "gpu")
# Signals that come from outside and are no finding about the wheel; SIGKILL is also how the system ends a process when
# memory runs out.
FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
TICK_SECONDS = 0.02
# How an emulated GPU ends a process whose kernels wait for ever. Whatever else it ends one for cannot be emulated.
DEADLOCK = "DCA-837"


class Progress:
    """What a child is doing, in memory that it shares with its parent."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 4096)

    def set(self, **state: object) -> None:
        """Replace the state."""
        written = json.dumps({**state, "at": time.monotonic()}).encode()
        self._shared[: len(written) + 1] = written + b"\0"

    def get(self) -> dict[str, Any]:
        """The last state that was set; empty before."""
        written = bytes(self._shared[:]).partition(b"\0")[0]
        # A child that was killed while it wrote leaves half of it.
        with contextlib.suppress(ValueError):
            return dict(json.loads(written)) if written else {}
        return {}


def sentences(end: dict[str, Any]) -> str:
    """The last words of an emulated GPU that ended the process, without the remedy that its message may contain."""
    text = " ".join(part for part in (end["text"].partition("\n  Next:")[0], end["why"]) if part)
    return " ".join(text.replace("\n  Why:", "").split()) + f" ({end['code']})"


class Found:
    """What an emulated GPU found."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self._wrong = [line for line in lines if line["kind"] not in ("known", "end")]
        self._ends = [line for line in lines if line["kind"] == "end"]
        self.known = list(dict.fromkeys(line["text"] for line in lines if line["kind"] == "known"))
        """Known faults of the kernels, a sentence each."""

    def wrong(self, *, last: bool = False) -> str:
        """What a kernel did wrong in a sentence, and how many such findings there are; "" for none.

        Args:
            last: the last finding instead of the first.
        """
        if not self._wrong:
            return next((sentences(line) for line in self._ends if line["code"] == DEADLOCK), "")
        one, count = self._wrong[-1 if last else 0], len(self._wrong) - 1
        more = f", and {count} more findings" if count else ""
        block = ", ".join(map(str, one["block"]))
        place = f"block ({block}), warp {one['warp']}, lane {one['lane']}, PTX line {one['ptx_line']}"
        source = f", {one['source']}" if one["source"] else ""
        return f"{one['kernel']}: {one['text']} ({one['kind']}; {place}{source}){more}"

    @property
    def untestable(self) -> str:
        """Why the emulated GPU ended the process, where the kernels did nothing wrong; "" if it did not."""
        return "" if self.wrong() else next(map(sentences, self._ends), "")


class Findings:
    """What an emulated GPU finds in the kernels that it runs from now on, by the file that it writes them to."""

    def __init__(self) -> None:
        self._file = pathlib.Path(os.environ.get("DCA_EMULATION_FINDINGS", ""))
        self._read = self._file.stat().st_size if self._file.is_file() else 0

    def read(self) -> Found:
        """Those since the last call."""
        if not self._file.is_file():
            return Found([])
        with self._file.open("rb") as file:
            file.seek(self._read)
            lines = [json.loads(line) for line in file.read().splitlines()]
            self._read = file.tell()
        return Found(lines)


def tell(**line: object) -> None:
    """Print one line of the result."""
    print("PROOF " + json.dumps(line), flush=True)


def load_packages(oracle: str) -> None:
    """Create a package for the oracle and the proof, without the rest of dca, and without its folder on the path."""
    for name in ("dca", "dca.in_wheel_env"):
        home = types.ModuleType(name)
        home.__path__ = [str(HERE)] if name == "dca.in_wheel_env" else []
        sys.modules[name] = home
    load("dca.in_wheel_env.oracle", pathlib.Path(oracle, "__init__.py"))


def load(name: str, file: pathlib.Path) -> types.ModuleType:
    """Load a module with a name from a file."""
    folder = [str(file.parent)] if file.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folder)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a module")
    module = importlib.util.module_from_spec(spec)
    if folder:
        sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def wheel_module(name: str, overlay: str | None) -> types.ModuleType:
    """A module of the overlay if it has it, else of the wheel."""
    module = importlib.import_module(name)
    path = pathlib.Path(overlay or "", *name.split(".")).with_suffix(".py")
    if not overlay or not path.is_file():
        return module
    registry = importlib.import_module("vllm.model_executor.custom_op").CustomOp.op_registry
    # vLLM rejects a class whose name is registered, as that of the wheel already is.
    with mock.patch.dict(registry, clear=True):
        return load(name, path)


def conversion_kernel(library: str) -> Callable[[Any, Any], None]:
    """The index conversion of a library that was compiled for the CPU."""
    import torch

    convert = ctypes.CDLL(library).convert

    def pointer(tensor: Any) -> ctypes.c_void_p:
        return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())

    def numbers(values: Any) -> Any:
        return None if values is None else torch.tensor(values, dtype=torch.int32)

    def kernel(batch: Any, into: Any) -> None:
        vertical, slash = batch.vertical.contiguous(), batch.slash.contiguous()
        tensors = [*into, numbers(batch.query_lengths), numbers(batch.key_lengths), vertical, slash]
        tensors += [numbers(batch.vertical_count), numbers(batch.slash_count)]
        size, heads, verticals = vertical.shape
        sizes = (size, heads, verticals, slash.shape[-1], batch.longest)
        convert(*map(pointer, tensors), *map(ctypes.c_int64, sizes), ctypes.c_int(batch.causal))

    return kernel


def run(cases: list[Any], variant: dict[str, Any], skip: int, progress: Progress) -> None:
    """Run cases one by one and report each result; a failed case does not stop the others.

    Args:
        cases: each a `dca.in_wheel_env.proof.case.Case`.
        variant: that they run on.
        skip: how many of them were run before.
        progress: of this process.
    """
    from dca.in_wheel_env.proof.case import KNOWN, Untestable, Wrong, label

    seed, findings = REQUEST["seed"], Findings()
    for number, case in enumerate(cases[skip:], start=skip + 1):
        result: dict[str, Any] = {"variant": variant["name"], "case": case.name, "proves": case.proves, "seed": seed}
        progress.set(number=number, result=result)
        tell(begins=case.name)
        label(case.name)
        started = time.monotonic()
        try:
            result |= {"passed": True, "figures": case.run(seed)}
        except Wrong as wrong:
            result |= {"passed": False, "detail": str(wrong)}
        except Untestable as reason:
            result |= {"passed": False, "tested": False, "detail": str(reason)}
        except Exception as error:
            result |= {"passed": False, "detail": f"{type(error).__name__}: {error} ({place(error)})"}
        found = findings.read()
        if fault := found.wrong():
            result |= {"passed": False, "tested": True, "detail": fault}
        elif found.known and result["passed"]:
            known = [result["figures"][KNOWN]] if KNOWN in result["figures"] else []
            result["figures"][KNOWN] = " ".join([*known, *found.known])
        tell(**result, seconds=round(time.monotonic() - started, 3))
        if not result["passed"]:
            if REQUEST.get("first") and result.get("tested", True):
                break
            if not device_works():
                # CUDA refuses every further call of this process.
                progress.set(number=number, again=True)
                return
        if LEVEL == "engine" and number < len(cases):
            # An engine leaves its groups of processes and its settings behind.
            progress.set(number=number, again=True)
            return
    progress.set(finished=True)


def device_works() -> bool:
    """Whether the GPU still takes work from this process; an illegal address in a kernel ends that."""
    if not ON_DEVICE:
        return True
    import torch

    try:
        torch.cuda.synchronize()
    except Exception:
        return False
    return True


def place(error: Exception) -> str:
    """The line of the wheel's code that failed, else of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    of_wheel = [frame for frame in frames if "/vllm/" in frame.filename]
    last = (of_wheel or frames)[-1]
    return f"{pathlib.Path(last.filename).name}:{last.lineno}"


def driver_version() -> str | None:
    """The version of the GPU's driver, as its own tools print it."""
    try:
        management = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    version = ctypes.create_string_buffer(80)
    if management.nvmlInit_v2() or management.nvmlSystemGetDriverVersion(version, ctypes.c_uint(len(version))):
        return None
    return version.value.decode()


def tell_device() -> bool:
    """Report the GPU; returns whether there is one."""
    import torch

    if not torch.cuda.is_available():
        tell(broken=f"torch {torch.__version__} finds no GPU, or its driver is too old for CUDA {torch.version.cuda}")
        return False
    tell(
        device=torch.cuda.get_device_name(0),
        capability=list(torch.cuda.get_device_capability(0)),
        memory=torch.cuda.get_device_properties(0).total_memory,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        driver=driver_version(),
    )
    return True


def layer_modules(overlay: str | None) -> Any:
    """The wheel's Python of the layer; None for bare kernels."""
    from dca.in_wheel_env.proof.layer import Modules

    if REQUEST["modules"] is None:
        return None
    return Modules(*(wheel_module(REQUEST["modules"][part], overlay) for part in ("backend", "rotary")))


def cpu_cases(variant: dict[str, Any]) -> list[Any]:
    """The cases of a variant for the CPU."""
    from dca.in_wheel_env.proof import composition, conversion, itself, precision, whole

    kernel = conversion_kernel(variant["kernel"])
    modules = layer_modules(variant["overlay"])
    listed = itself.cases() + conversion.cases(kernel, REQUEST["rows"], REQUEST["sampled"])
    if modules:
        listed += composition.cases(modules, kernel)
        listed += precision.cases(modules, precision.DTYPES, whole.host(modules, "cpu", kernel), "cpu")
    return listed


def gpu_cases(variant: dict[str, Any]) -> list[Any]:
    """The cases of a variant for the GPU; reports what they leave out."""
    from dca.in_wheel_env.proof import kernels, ops

    before = ops.registered("cuda")
    modules = layer_modules(variant["overlay"])
    loaded = kernels.load_kernels(bare=modules is None)
    others = ops.registered("cuda") - before
    sample = bool(REQUEST.get("sample"))
    extent = kernels.extent_of(
        REQUEST["dtypes"],
        REQUEST["head_dims"],
        emulated=LEVEL == "kernels",
        quick=sample or bool(REQUEST.get("quick")),
    )
    left_out = [*kernels.left_out(loaded, modules, extent), *ops.left_out(others, extent.ops)]
    tell(variant=variant["name"], kernels=loaded.source, left_out=left_out)
    if sample:
        return kernels.sample(kernels.cases(loaded, modules, extent))
    return [*ops.cases(others, extent.dtypes, "cuda", extent.ops), *kernels.cases(loaded, modules, extent)]


def engine_cases(variant: dict[str, Any]) -> list[Any]:
    """The cases of a variant for a whole engine; reports what stood in for a part of a real one."""
    from dca.in_wheel_env.proof import engine

    tell(variant=variant["name"], stood_in=list(engine.STOOD_IN))
    return engine.cases(REQUEST["family"])


def shape_cases(variant: dict[str, Any]) -> list[Any]:
    """A case for each length whose launches are recorded."""
    from dca.in_wheel_env.proof import kernels, speed

    return speed.shapes(kernels.load_kernels(bare=layer_modules(variant["overlay"]) is None), "cuda")


def child(variant: dict[str, Any], skip: int, progress: Progress) -> None:
    """Load a variant and run its cases, in a process of its own."""
    # Where Python was when a signal ended it, for the log.
    faulthandler.enable()
    if ON_DEVICE and not tell_device():
        progress.set(finished=True, stop=True)
        return
    load_packages(variant["oracle"] or str(HERE / "oracle"))
    try:
        made = {"cpu": cpu_cases, "engine": engine_cases, "shapes": shape_cases}
        cases = made.get(LEVEL, gpu_cases)(variant)
    except Exception as error:
        tell(variant=variant["name"], broken=f"{type(error).__name__}: {error}")
        progress.set(finished=True)
        return
    names = None if LEVEL == "shapes" else variant.get("cases") or REQUEST["cases"]
    run([case for case in cases if not names or case.name in names], variant, skip, progress)


def fork(variant: dict[str, Any], skip: int, progress: Progress) -> int:
    """Start a child; returns its process ID."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        child(variant, skip, progress)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Nothing that the parent has registered to run at exit.
        os._exit(status)
    raise AssertionError


def wait(pid: int, progress: Progress) -> str:
    """Wait for a child to end; returns how it did, in words.

    Raises:
        SystemExit: a signal from outside ended it.
    """
    limit = REQUEST.get("case_seconds")
    started = time.monotonic()
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        if limit and time.monotonic() - max(started, progress.get().get("at", started)) > limit:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"it did not end within {limit:g} s"
        time.sleep(TICK_SECONDS)
    if not os.WIFSIGNALED(status):
        return f"it ended its process with status {os.WEXITSTATUS(status)}"
    by = signal.Signals(os.WTERMSIG(status))
    if by in FROM_OUTSIDE:
        sys.exit(f"{by.name} killed the process of a case: it came from outside, or memory ran out")
    return f"it crashed with {by.name} ({signal.strsignal(by)})"


def prove(variant: dict[str, Any]) -> bool:
    """Run every case on a variant; returns whether the other variants can be run."""
    done = 0
    while True:
        progress, findings = Progress(), Findings()
        ended = wait(fork(variant, done, progress), progress)
        state = progress.get()
        if state.get("finished"):
            return not state.get("stop")
        if state.get("again"):
            done = state["number"]
            continue
        # A module may end its process because of what the GPU found; its last words then say less.
        found = findings.read()
        if "result" not in state:
            broken = found.untestable or found.wrong(last=True)
            tell(variant=variant["name"], broken=broken or ended, crashed=not broken, tested=not found.untestable)
            return True
        seconds = round(time.monotonic() - state["at"], 3)
        if found.untestable:
            tell(**state["result"], passed=False, tested=False, detail=found.untestable, seconds=seconds)
        else:
            wrong = found.wrong(last=True)
            tell(**state["result"], passed=False, detail=wrong or ended, crashed=not wrong, seconds=seconds)
        if REQUEST.get("first") and not found.untestable:
            return True
        done = state["number"]


def main() -> None:
    """Run every case on every variant."""
    if REQUEST["wheel"]:
        sys.path.insert(0, REQUEST["wheel"])
    if REQUEST["driver"]:
        try:
            ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
        except OSError:
            ctypes.CDLL(REQUEST["driver"], mode=ctypes.RTLD_GLOBAL)
    import torch

    torch.set_num_threads(REQUEST["threads"])
    tell(python=platform.python_version(), torch=torch.__version__)
    if not ON_DEVICE and REQUEST["modules"]:
        # Once for all children. What is wrong with them is told by a child.
        with contextlib.suppress(Exception):
            for name in REQUEST["modules"].values():
                importlib.import_module(name)
    for variant in REQUEST["variants"]:
        if not prove(variant):
            return


main()
