"""GPUs and their driver, from NVML if its Python library is installed, else from nvidia-smi."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

from dca.catalogue import machine
from dca.foundation import runner
from dca.foundation.documents import Value


class Card(Value):
    """One GPU.

    Args:
        name: as the driver reports it.
        arch: compute capability, such as 8.0.
        memory_gb: 10^9 bytes.
    """

    name: str
    arch: str
    memory_gb: float


class Seen(Value):
    """The GPUs that were found.

    Args:
        cards: the visible GPUs.
        hidden: how many more there are that a server does not see.
        driver: its version ("550.54.15"); empty without one.
        cuda: the CUDA version that it reports to support; empty if it reports none.
        asked: the source, NVML or nvidia-smi.
        problem: why nothing could be read; empty if there is no driver.
    """

    cards: tuple[Card, ...] = ()
    hidden: int = 0
    driver: str = ""
    cuda: str = ""
    asked: str = ""
    problem: str = ""

    @property
    def memory_gb(self) -> float:
        """Total memory of the GPUs."""
        return sum(card.memory_gb for card in self.cards)


def look() -> Seen:
    """The GPUs of this machine; a machine without a driver has none."""
    library = _library()
    return (_by_library(library) if library else None) or _by_program()


def visible(seen: Seen, chosen: str | None) -> Seen:
    """The GPUs that are visible to a server.

    Args:
        seen: all that there are.
        chosen: CUDA_VISIBLE_DEVICES, as `machine.visible` reads it; None if it is not set.
    """
    left = machine.visible(seen.cards, chosen)
    return seen.model_copy(update={"cards": left, "hidden": max(0, len(seen.cards) - len(left))})


def _library() -> Any:
    """The module of nvidia-ml-py; None if the deprecated pynvml, which has a module of the same name, is installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("nvidia-ml-py")
        with contextlib.suppress(PackageNotFoundError):
            version("pynvml")
            return None
        import pynvml
    except (PackageNotFoundError, ImportError):
        return None
    return pynvml


def _by_library(nvml: Any) -> Seen | None:
    """What NVML reports; None if there is no driver."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        return Seen(cards=tuple(_cards(nvml)), driver=driver, cuda=_cuda(nvml), asked="NVML")
    except nvml.NVMLError as error:
        return Seen(asked="NVML", problem=str(error))
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _cards(nvml: Any) -> Iterator[Card]:
    for number in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(number)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        total = nvml.nvmlDeviceGetMemoryInfo(handle).total
        yield Card(name=_text(nvml.nvmlDeviceGetName(handle)), arch=f"{major}.{minor}", memory_gb=total / 1e9)


def _cuda(nvml: Any) -> str:
    """The CUDA version of libcuda ("12.4"); empty without that library."""
    try:
        number = nvml.nvmlSystemGetCudaDriverVersion_v2()
    except nvml.NVMLError:
        return ""
    return f"{number // 1000}.{number % 1000 // 10}"


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _by_program() -> Seen:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Seen()
    asked = "name,compute_cap,memory.total,driver_version"
    done = runner.probe([program, f"--query-gpu={asked}", "--format=csv,noheader,nounits"])
    if not done.ok:
        return Seen(asked="nvidia-smi", problem=done.tail[0] if done.tail else "no output")
    cards, driver = [], ""
    for line in done.tail:
        name, *rest = line.rsplit(",", 3)
        arch, mebibytes, version = (part.strip() for part in rest) if len(rest) == 3 else ("", "", "")
        if re.fullmatch(r"\d+\.\d", arch) and mebibytes.isdigit():
            cards.append(Card(name=name.strip(), arch=arch, memory_gb=int(mebibytes) * 2**20 / 1e9))
            driver = version
    own = machine.driver()
    return Seen(cards=tuple(cards), driver=driver, cuda=own.cuda if own else "", asked="nvidia-smi")
