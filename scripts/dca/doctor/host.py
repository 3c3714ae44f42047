"""Checks of the machine itself: system, cores, memory, disk, and environment variables."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from dca.catalogue.machine import glibc
from dca.doctor.values import Finding, Subject
from dca.foundation import environment, host_memory, ignored
from dca.foundation.secrets import redact

GLIBC = (2, 28)
"""The oldest that current torch wheels support (manylinux_2_28); those of torch 2.5 support 2.17."""
FRESH_GB = 5.0
"""A first build needs 2.9 GB of cache (docs/benchmarks.md), and space to unpack and to compile."""
AGAIN_GB = 2.0
SWAP_GIB = 4.0
"""Host memory that vLLM pins for each GPU by default."""
PROCESSORS = ("x86_64", "aarch64")
JOBS = "set how many compilers run at once: dca wheel --jobs N"

# dca itself reads this variable, and its plan says so.
READ = ("CUDA_HOME",)
OF_SERVING = {
    "VLLM_*": "vLLM's own choices",
    "CUDA_VISIBLE_DEVICES": "which GPUs are visible",
    "NVIDIA_VISIBLE_DEVICES": "which GPUs are visible in a container",
    "PYTORCH_*": "torch's memory",
    "TORCH_*": "torch's own choices",
    "NCCL_*": "how GPUs communicate",
    "LD_PRELOAD": "a library in every program",
    "LD_LIBRARY_PATH": "libraries to load first",
    "PYTHONPATH": "packages to import first",
    "HF_*": "where models are loaded from",
    "TRANSFORMERS_OFFLINE": "where models are loaded from",
}
BACKEND = ("VLLM_ATTENTION_BACKEND", "DUAL_CHUNK_FLASH_ATTN")
ENGINE = ("VLLM_USE_V1", "0")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


def system(subject: Subject) -> Iterator[Finding]:
    """The operating system, the processor and the C library."""
    wanted = f"Linux on {' or '.join(PROCESSORS)}, glibc {GLIBC[0]}.{GLIBC[1]} or later"
    kind, processor, libc = platform.system(), platform.machine(), glibc()
    name = _release(subject.root / "etc/os-release")
    found = f"{name or kind}, {processor}, {f'glibc {libc}' if libc else 'no glibc'}"
    version = tuple(int(part) for part in libc.split(".")[:2]) if libc else (0,)
    if kind != "Linux" or processor not in PROCESSORS or version < GLIBC:
        yield Finding("wrong", found, wanted, "build in a container with a newer system: docker run -it debian:12")
    elif not name:
        remedy = "nothing to do: only Debian's packages of CUDA depend on the distribution's name"
        yield Finding("unknown", f"{found}; /etc/os-release cannot be read", wanted, remedy)
    else:
        yield Finding("fine", found, wanted)


def _release(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)"?$', text, re.MULTILINE)
    return match[1] if match else ""


def cores(subject: Subject) -> Iterator[Finding]:  # noqa: ARG001 - the signature of a check
    """Cores that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not count:
        yield Finding("unknown", "the number of cores cannot be read", "2 or more", JOBS)
    else:
        remedy = "give the container more: docker run --cpus 4"
        yield Finding("fine" if count > 1 else "note", str(count), "2 or more", remedy)


def ram(subject: Subject) -> Iterator[Finding]:
    """Memory of the host and of every control group of this process, against what one compiler needs."""
    least = min((loaded.recipe.lean.job_memory_gib for loaded in subject.recipes), default=4.0)
    need, wanted = least, f"{least:g} GiB for each compiler"
    if subject.purpose == "serve":
        need = SWAP_GIB * max(1, len(subject.gpus.cards))
        wanted = f"more than {need:g} GiB: vLLM pins {SWAP_GIB:g} GiB for each GPU (--swap-space)"
    try:
        limit = host_memory.limit_bytes(subject.proc, subject.cgroup) / 2**30
        free = host_memory.available_bytes(subject.proc, subject.cgroup) / 2**30
    except (OSError, ValueError) as error:
        yield Finding("unknown", f"memory cannot be read ({error})", wanted, JOBS)
        return
    by = host_memory.limiting(subject.proc, subject.cgroup)
    found = f"{limit:.1f} GiB, {free:.1f} free" + (f"; limited by {by}" if by else "")
    if limit < need:
        yield Finding("wrong", found, wanted, "give the machine or the container more: docker run --memory 16g")
    elif not (subject.proc / "self/cgroup").is_file():
        remedy = "if the container has a limit of its own: dca wheel --jobs N"
        yield Finding("unknown", f"{found}; control groups cannot be read", wanted, remedy)
    elif free < need:
        yield Finding("note", found, wanted, "end other programs, or run fewer compilers: dca wheel --jobs 1")
    else:
        jobs = f"; {int(free / least)} compilers at once" if subject.purpose == "build" else ""
        yield Finding("fine", found + jobs, wanted)


def disk(subject: Subject) -> Iterator[Finding]:
    """Free disk space for the build."""
    folder = subject.cache
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    built = (subject.cache / "env").is_dir() and (subject.cache / "toolkit").is_dir()
    need = AGAIN_GB if built else FRESH_GB
    wanted = f"{need:g} GB in {subject.cache}"
    elsewhere = "export DCA_CACHE_DIR=/a/larger/disk/dca"
    try:
        free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        yield Finding("unknown", f"{folder}: {error.strerror}", wanted, elsewhere)
        return
    if os.access(folder, os.W_OK | os.X_OK):
        yield Finding("fine" if free >= need else "wrong", f"{free:.1f} GB free", wanted, elsewhere)
    else:
        yield Finding("wrong", f"{folder} cannot be written", wanted, elsewhere)


def variables(subject: Subject) -> Iterator[Finding]:
    """Environment variables that silently change a build, or how a model is served."""
    if why := environment.temporary_is_wrong(temporary := subject.env.get("TMPDIR", "")):
        wanted = "a folder for temporary files, which every build needs"
        yield Finding("wrong", f"TMPDIR={temporary}: {why}", wanted, "unset TMPDIR")
    about = _about_builds(subject) if subject.purpose == "build" else _about_serving(subject)
    changing = {name: subject.env[name] for name in about}
    details = tuple(f"{name}={_safe(name, subject.env[name])}: {what}" for name, what in about.items())
    names = ", ".join(changing) or "none that matters"
    if subject.purpose == "build":
        harmful = [name for name in changing if name not in READ]
        wanted = "none; a build ignores them, pip and CMake do not" if harmful else ""
        yield Finding("note" if harmful else "fine", names, wanted, f"unset {' '.join(harmful)}", details)
        return
    if subject.model is not None and not subject.needs_dual_chunk and changing.get(BACKEND[0]) == BACKEND[1]:
        found = f"{BACKEND[0]}={BACKEND[1]}, but the model's config.json has no dual_chunk_attention_config"
        yield Finding("wrong", found, f"{BACKEND[0]} unset", f"unset {BACKEND[0]}", details)
        return
    for name, right in (BACKEND, ENGINE):
        if subject.model is not None and subject.needs_dual_chunk and changing.get(name, right) != right:
            wanted = f"{name} unset, or {right}"
            yield Finding("wrong", f"{name}={changing[name]}", wanted, f"unset {name}", details)
            return
    remedy = f"unset {' '.join(changing)}, unless you set it on purpose"
    yield Finding("note" if changing else "fine", names, "", remedy, details)


def _about_builds(subject: Subject) -> dict[str, str]:
    """The variables that change a build which does not leave them out, and what each changes."""
    return {one.name: one.changes for one in ignored.of(caller=subject.env)}


def _about_serving(subject: Subject) -> dict[str, str]:
    """The variables that change how a model is served, and what each changes."""
    found = {}
    for name in sorted(subject.env):
        if what := next((what for key, what in OF_SERVING.items() if fnmatchcase(name, key)), ""):
            found[name] = what
    return found


def _safe(name: str, value: str) -> str:
    """A value without its secrets."""
    return "(not shown)" if _SECRET.search(name) else redact(value)[:200]
