"""GPUs and their driver: by NVML where its Python library is installed, else by the driver's own program."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

from dca.foundation import runner
from dca.foundation.documents import Value


class Card(Value):
    """One GPU.

    Args:
        name: as its driver calls it.
        arch: its compute capability, such as 8.0.
        memory_gb: 10^9 bytes.
    """

    name: str
    arch: str
    memory_gb: float


class Seen(Value):
    """What was found.

    Args:
        cards: the GPUs.
        hidden: how many more there are, which a server does not see.
        driver: its version ("550.54.15"); empty without one.
        asked: who said so.
        problem: why nothing could be read; empty when there simply is no driver.
    """

    cards: tuple[Card, ...] = ()
    hidden: int = 0
    driver: str = ""
    asked: str = ""
    problem: str = ""

    @property
    def memory_gb(self) -> float:
        """Of all GPUs."""
        return sum(card.memory_gb for card in self.cards)


def look() -> Seen:
    """The GPUs of this machine; a machine without a driver has none."""
    library = _library()
    if library is not None:
        seen = _by_library(library)
        if seen is not None:
            return seen
    return _by_program()


def visible(seen: Seen, chosen: str | None) -> Seen:
    """The GPUs that a server sees.

    Args:
        seen: all that there are.
        chosen: CUDA_VISIBLE_DEVICES, None where it is not set. As with CUDA, nothing behind the first that is not there
            counts. Names of devices (UUIDs) count by their number.
    """
    if chosen is None:
        return seen
    left: list[Card] = []
    for word in [part.strip() for part in chosen.split(",")] if chosen.strip() else []:
        if word.isascii() and word.isdigit():
            if int(word) >= len(seen.cards):
                break
            left.append(seen.cards[int(word)])
        elif re.match(r"(GPU|MIG)-", word) and len(left) < len(seen.cards):
            left.append(seen.cards[len(left)])
        else:
            break
    return seen.model_copy(update={"cards": tuple(left), "hidden": max(0, len(seen.cards) - len(left))})


def _library() -> Any:
    """nvidia-ml-py; not the deprecated package that has a module of the same name."""
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
    """What NVML tells; None when it has no driver to ask."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        return Seen(cards=tuple(_cards(nvml)), driver=_text(nvml.nvmlSystemGetDriverVersion()), asked="NVML")
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


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _by_program() -> Seen:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Seen()
    asked = "name,compute_cap,memory.total,driver_version"
    done = runner.probe([program, f"--query-gpu={asked}", "--format=csv,noheader,nounits"])
    if not done.ok:
        return Seen(asked="nvidia-smi", problem=done.tail[0] if done.tail else "nvidia-smi says nothing")
    cards, driver = [], ""
    for line in done.tail:
        name, *rest = line.rsplit(",", 3)
        arch, mebibytes, version = (part.strip() for part in rest) if len(rest) == 3 else ("", "", "")
        if re.fullmatch(r"\d+\.\d", arch) and mebibytes.isdigit():
            cards.append(Card(name=name.strip(), arch=arch, memory_gb=int(mebibytes) * 2**20 / 1e9))
            driver = version
    return Seen(cards=tuple(cards), driver=driver, asked="nvidia-smi")
