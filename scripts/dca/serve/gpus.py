"""The GPUs that serve a model: those the user names, or this machine's."""

from __future__ import annotations

import difflib
import os
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from dca.catalogue import targets
from dca.catalogue.recipes import Arch, Name
from dca.config.models import Count
from dca.doctor import nvidia
from dca.foundation import data, datafile
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError

Gib = Annotated[float, Field(gt=0)]
Profile = Annotated[str, StringConstraints(pattern=r"^\d+g\.\d+gb$")]
GIB = 2**30
VISIBLE = "CUDA_VISIBLE_DEVICES"
MOST_GPUS = 4096
_CAPABILITY = re.compile(r"(?:sm_?|compute_?)?(\d{1,2})\.?(\d)[af]?", re.IGNORECASE)
SAME_GIB = 1.0
"""Less than two cards of the same name and different memory differ by."""
MOST_GIB = 512.0
"""More than any GPU has; numbers from here on are names, such as 4090."""


def _known_processor(value: str) -> str:
    if value not in targets.PROCESSORS:
        raise ValueError(f"the processors are {', '.join(targets.PROCESSORS)}")
    return value


class KnownCard(Value):
    """A GPU of build/gpus; `memory_gib` is what the driver reports, `torch_gib` what torch sees of it.

    A card without `arch` runs no CUDA. One with `processor` is only in machines with that one, as `uname -m` prints it.
    """

    name: Name
    names: tuple[str, ...] = ()
    memory_gib: Gib
    torch_gib: Gib | None = None
    arch: Arch | Literal[""] = ""
    processor: Annotated[str, AfterValidator(_known_processor)] = ""
    slices: dict[Profile, Gib] = {}


class Known(Value):
    """build/gpus/gpus.toml."""

    schema_: Literal["dca.gpus/2"] = Field(alias="schema")
    hidden_gib: Annotated[float, Field(ge=0)]
    context_gib: Annotated[float, Field(ge=0)]
    spare_share: Annotated[float, Field(ge=0, lt=1)]
    cards: tuple[KnownCard, ...]

    def seen_gib(self, card: KnownCard) -> float:
        """Memory of a GPU as torch, and so an engine, sees it, in 2^30 bytes."""
        return card.torch_gib or round(card.memory_gib - self.hidden_gib, 2)


class Part(Value):
    """A GPU, or a slice of one.

    Args:
        name: the card's name, with the MIG profile of a slice.
        arch: compute capability; empty for a card that runs no CUDA.
        gib: memory as torch sees it, in 2^30 bytes.
        mig: whether it is a slice.
    """

    name: str
    arch: str
    gib: float
    mig: bool = False


class Gpus(Value):
    """GPUs of one server.

    Args:
        count: GPUs over all machines.
        machines: number of machines, each with the same number of GPUs.
        memory_gib: memory of each GPU as torch sees it, in 2^30 bytes; of the smallest if they differ.
        archs: compute capabilities; empty when only the memory is known.
        without_cuda: whether one of them runs no CUDA.
        names: names of the GPUs; empty when only the memory is known.
        local: whether they are this machine's.
        mig: whether any of them is a MIG slice, which exchanges no data with another one.
    """

    count: Count
    machines: Count = 1
    memory_gib: float
    archs: tuple[str, ...] = ()
    without_cuda: bool = False
    names: tuple[str, ...] = ()
    local: bool = False
    mig: bool = False

    @property
    def each(self) -> int:
        """GPUs of one machine."""
        return self.count // self.machines

    @property
    def words(self) -> str:
        """A description for people."""
        where = f" on {self.machines} machines" if self.machines > 1 else ""
        if not self.names:
            return f"{self.count} x {self.memory_gib:g} GiB{where}"
        return f"{self.count} x {' and '.join(self.names)} ({self.memory_gib:g} GiB){where}"


@cache
def load(path: Path | None = None) -> Known:
    """The GPUs known by name.

    Raises:
        DcaError: DCA-202 for a wrong key or value.
    """
    return datafile.load(Known, path or data.gpus_file())


def parse(text: str, machines: int = 1, known: Known | None = None) -> Gpus:
    """The GPUs of `--gpus`.

    Args:
        text: COUNTxGIB or COUNTxNAME, separated by commas, for each machine.
        machines: number of machines.
        known: the GPUs known by name; by default those of build/gpus.

    Raises:
        DcaError: DCA-201.
    """
    listed = known or load()
    count, memory, parts = 0, MOST_GIB, []
    for word in re.split(r"[,\s]+", text.strip()):
        match = re.fullmatch(r"(?:(\d{1,5})[xX*])?([A-Za-z0-9][A-Za-z0-9.+-]*)", word)
        if match is None:
            raise _wrong(text)
        count += int(match[1] or 1)
        number = re.fullmatch(r"(\d{1,4}(?:\.\d+)?)(?:gi?b?)?", match[2], re.IGNORECASE)
        if number and not (float(number[1]) >= MOST_GIB and _within(match[2], listed)):
            size = float(number[1])
            if size >= MOST_GIB:
                raise _no_size(number[1], listed)
            if size < 1:
                raise _wrong(text)
            memory = min(memory, size)
            continue
        parts.append(_part(match[2], listed))
        memory = min(memory, parts[-1].gib)
    if not 0 < count * machines <= MOST_GPUS or any(int(match) == 0 for match in re.findall(r"(?<![\w.])(\d+)x", text)):
        raise _wrong(text)
    return Gpus(
        count=count * machines,
        machines=machines,
        memory_gib=memory,
        archs=tuple(dict.fromkeys(part.arch for part in parts if part.arch)),
        without_cuda=any(not part.arch for part in parts),
        names=tuple(dict.fromkeys(part.name for part in parts)),
        mig=any(part.mig for part in parts),
    )


def arch_of(flag: str, name: str) -> str:
    """The compute capability of a GPU.

    Args:
        flag: the option that names it, for messages.
        name: of a known GPU, in any case, also without the memory that tells it from others of its kind; or a compute
            capability such as 9.0, sm_90.

    Raises:
        DcaError: DCA-201.
    """
    if match := _CAPABILITY.fullmatch(name):
        return f"{match[1]}.{match[2]}"
    archs = {card.arch for card in _called(name) if card.arch}
    if len(archs) == 1:
        return archs.pop()
    raise DcaError(
        "DCA-201",
        f"{flag}: the GPU `{name}` is not known.",
        why=f"the known GPUs are {', '.join(card.name for card in load().cards)}.",
        remedy=f"give its compute capability: {flag} 9.0.",
    )


def processor_of(name: str) -> str:
    """The processor of the only machines that have a GPU, as `uname -m` prints it; empty if any machine can have it.

    Args:
        name: as `arch_of` takes it; of a compute capability nothing is known.
    """
    processors = {card.processor for card in ([] if _CAPABILITY.fullmatch(name) else _called(name))}
    return processors.pop() if len(processors) == 1 else ""


def _called(name: str) -> list[KnownCard]:
    """The GPUs that have a name, in any case, also without the memory that tells them apart."""
    plain = re.sub(r"[\s_]+", "-", name.strip()).lower()
    return [
        card
        for card in load().cards
        if f"{card.name.lower()}-".startswith(f"{plain}-")
        or any(plain == known.lower().replace(" ", "-") for known in card.names)
    ]


def _part(name: str, known: Known) -> Part:
    """The GPU of a name, or the MIG slice of a GPU's name and a profile: A100-80-3g.40gb."""
    match = re.fullmatch(r"(.+?)-(?:mig-)?(\d+g\.\d+gb)", name, re.IGNORECASE)
    if match is None:
        card = _card(name, known)
        return Part(name=card.name, arch=card.arch, gib=known.seen_gib(card))
    profile = match[2].lower()
    # A profile may tell cards of one name apart: only the larger A100 has 3g.40gb.
    having = known.model_copy(update={"cards": tuple(card for card in known.cards if profile in card.slices)})
    card = _card(match[1], having if _alike(match[1], having) else known)
    if profile not in card.slices:
        raise DcaError(
            "DCA-201",
            f"--gpus: build/gpus knows no MIG profile {profile} of {card.name}.",
            why=f"it knows {', '.join(card.slices) or 'none of this GPU'}.",
            remedy="give the slice's memory in GiB, which `nvidia-smi mig -lgip` shows: 1x19.5.",
        )
    return Part(name=f"{card.name}-{profile}", arch=card.arch, gib=card.slices[profile], mig=True)


def _within(name: str, known: Known) -> list[KnownCard]:
    """The GPUs with a word in their name: 4090, A6000."""
    return [card for card in known.cards if f"-{name.lower()}-" in f"{card.name.lower()}-"]


def _alike(name: str, known: Known) -> list[KnownCard]:
    """The GPUs that a name may mean, in any case: its own, else those that begin so, else those with this word."""
    lower = name.lower()
    exact = [card for card in known.cards if card.name.lower() == lower]
    begun = [card for card in known.cards if card.name.lower().startswith(lower + "-")]
    return exact or begun or _within(name, known)


def _card(name: str, known: Known) -> KnownCard:
    """The GPU of a name; an unambiguous beginning or end is enough."""
    alike = _alike(name, known)
    if len(alike) == 1:
        return alike[0]
    names = [card.name for card in known.cards]
    near = [card.name for card in alike] or difflib.get_close_matches(name.upper(), names, n=2)
    raise DcaError(
        "DCA-201",
        f"--gpus: the GPU `{name}` is {'ambiguous' if alike else 'not known'}.",
        why=f"the known GPUs are {', '.join(names)}.",
        remedy=(f"did you mean {' or '.join(near)}? Else " if near else "") + "give its memory in GiB: 4x80.",
    )


def _no_size(number: str, known: Known) -> DcaError:
    named = [card.name for card in known.cards if card.name.endswith(f"-{number}")]
    return DcaError(
        "DCA-201",
        f"--gpus: no GPU has {number} GiB.",
        why="a number is the memory of each GPU in GiB.",
        remedy=f"if that is the GPU's name, write {' or '.join(named)}." if named else "give its memory in GiB: 4x80.",
    )


def _wrong(text: str) -> DcaError:
    return DcaError(
        "DCA-201",
        f"--gpus {text}: not a list of GPUs.",
        remedy="write it as 4x80 (GiB each), 2xT4, or 1x24,1x48 for two kinds.",
    )


def of_this_machine(seen: nvidia.Seen | None = None, chosen: str | None = None) -> Gpus:
    """The GPUs of this machine that a server would see.

    Args:
        seen: the GPUs found; by default this machine is searched.
        chosen: CUDA_VISIBLE_DEVICES; by default the environment's.

    Raises:
        DcaError: DCA-103 when there is no GPU, or none is visible.
    """
    seen = nvidia.look() if seen is None else seen
    seen = nvidia.visible(seen, os.environ.get(VISIBLE) if chosen is None else chosen)
    cards = seen.cards
    if not cards:
        why = seen.problem or (f"{VISIBLE} hides all GPUs." if seen.hidden else "no driver reports a GPU.")
        raise DcaError(
            "DCA-103",
            "this machine has no GPU to plan for.",
            why=why,
            remedy="name the server's GPUs, such as --gpus 4x80 for four GPUs of 80 GiB.",
        )
    return Gpus(
        count=len(cards),
        memory_gib=min(_seen_gib(card, load()) for card in cards),
        archs=tuple(dict.fromkeys(card.arch for card in cards)),
        local=True,
        names=tuple(dict.fromkeys(card.name for card in cards)),
    )


def _seen_gib(card: nvidia.Card, known: Known) -> float:
    """Memory of a GPU of this machine as torch sees it, in 2^30 bytes, from what the driver reports."""
    reported = card.memory_gb * 1e9 / GIB
    # Cards of one name are sold with different memory, and the longer of two matching names is the card's.
    alike = [
        (len(name), listed)
        for listed in known.cards
        for name in listed.names
        if card.name.startswith(name) and abs(listed.memory_gib - reported) < SAME_GIB
    ]
    if alike:
        return known.seen_gib(max(alike, key=lambda pair: pair[0])[1])
    return round(max(reported - known.hidden_gib, reported / 2), 2)
