"""Checks of the machine itself: system, cores, memory, disk, and the environment variables that change a build."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from dca.catalogue.machine import glibc
from dca.doctor.values import Result, Subject
from dca.foundation import host_memory
from dca.foundation.secrets import redact

GLIBC = (2, 28)
"""Of the oldest systems that today's torch wheels run on (manylinux_2_28); those of torch 2.5 run on 2.17."""
FRESH_GB = 12.0
"""A first build takes 9.1 GB of cache (docs/benchmarks.md) and room to unpack."""
AGAIN_GB = 2.0
SWAP_GIB = 4.0
"""Of the host's memory that vLLM pins for each GPU unless told otherwise."""
PROCESSORS = ("x86_64", "aarch64")

# Variables that change a build, with what they do to one that is not scrubbed of them; * stands for any ending.
OF_BUILDS = {
    "CC": "the C compiler",
    "CXX": "the C++ compiler",
    "CUDAHOSTCXX": "nvcc's host compiler",
    "NVCC_CCBIN": "nvcc's host compiler",
    "NVCC_PREPEND_FLAGS": "flags of every nvcc",
    "NVCC_APPEND_FLAGS": "flags of every nvcc",
    "CFLAGS": "flags of every compiler",
    "CXXFLAGS": "flags of every compiler",
    "CPPFLAGS": "flags of every compiler",
    "CUDAFLAGS": "flags of every nvcc",
    "LDFLAGS": "flags of the linker",
    "CPATH": "headers that are found first",
    "C_INCLUDE_PATH": "headers that are found first",
    "CPLUS_INCLUDE_PATH": "headers that are found first",
    "LIBRARY_PATH": "libraries that are found first",
    "LD_LIBRARY_PATH": "libraries that are loaded first",
    "LD_PRELOAD": "a library in every program",
    "CMAKE_*": "CMake's own choices",
    "CUDACXX": "which nvcc CMake takes",
    "CUDA_HOME": "which toolkit is taken",
    "CUDA_PATH": "which toolkit is taken",
    "CUDAARCHS": "GPU architectures",
    "TORCH_CUDA_ARCH_LIST": "GPU architectures",
    "MAX_JOBS": "compilers at once",
    "NVCC_THREADS": "divides the compilers at once",
    "MAKEFLAGS": "compilers at once",
    "CMAKE_BUILD_PARALLEL_LEVEL": "compilers at once",
    "PYTHONPATH": "packages that are found first",
    "PYTHONHOME": "Python's own library",
    "SETUPTOOLS_SCM_PRETEND_VERSION*": "the wheel's version",
    "VLLM_TARGET_DEVICE": "what is built",
    "VLLM_USE_PRECOMPILED": "copies modules in place of building them",
    "VLLM_CUTLASS_SRC_DIR": "a companion's source",
    "VLLM_FLASH_ATTN_SRC_DIR": "a companion's source",
    "FETCHCONTENT_BASE_DIR": "where CMake keeps companions",
    "USE_*": "parts of torch extensions",
}
# dca itself reads this one, and says so in its plan.
READ = ("CUDA_HOME",)
OF_SERVING = {
    "VLLM_*": "vLLM's own choices",
    "CUDA_VISIBLE_DEVICES": "which GPUs are seen",
    "NVIDIA_VISIBLE_DEVICES": "which GPUs a container sees",
    "PYTORCH_*": "torch's memory",
    "TORCH_*": "torch's own choices",
    "NCCL_*": "how GPUs talk to each other",
    "LD_PRELOAD": "a library in every program",
    "LD_LIBRARY_PATH": "libraries that are loaded first",
    "PYTHONPATH": "packages that are found first",
    "HF_*": "where models come from",
    "TRANSFORMERS_OFFLINE": "where models come from",
}
BACKEND = ("VLLM_ATTENTION_BACKEND", "DUAL_CHUNK_FLASH_ATTN")
ENGINE = ("VLLM_USE_V1", "0")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


def system(subject: Subject) -> Iterator[Result]:
    """The operating system, the processor and the C library."""
    code, wanted = "machine.system", f"Linux on {' or '.join(PROCESSORS)}, glibc {GLIBC[0]}.{GLIBC[1]} or later"
    kind, processor, libc = platform.system(), platform.machine(), glibc()
    name = _release(subject.root / "etc/os-release")
    found = f"{name or kind}, {processor}, {f'glibc {libc}' if libc else 'no glibc'}"
    version = tuple(int(part) for part in libc.split(".")[:2]) if libc else (0,)
    if kind != "Linux" or processor not in PROCESSORS or version < GLIBC:
        yield Result(
            code=code,
            status="wrong",
            found=found,
            wanted=wanted,
            remedy="build in a container of a newer system: docker run -it debian:12",
        )
    elif not name:
        yield Result(
            code=code,
            status="unknown",
            found=f"{found}; /etc/os-release cannot be read",
            wanted=wanted,
            remedy="nothing depends on the distribution's name, except Debian's packages of CUDA",
        )
    else:
        yield Result(code=code, status="fine", found=found, wanted=wanted)


def _release(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)"?$', text, re.MULTILINE)
    return match[1] if match else ""


def cores(subject: Subject) -> Iterator[Result]:  # noqa: ARG001 - the signature of a check
    """Cores that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not count:
        yield Result(
            code="machine.cores",
            status="unknown",
            found="their number cannot be read",
            wanted="2 or more",
            remedy="say how many compilers may run: dca wheel --jobs N",
        )
        return
    yield Result(
        code="machine.cores",
        status="fine" if count > 1 else "note",
        found=str(count),
        wanted="2 or more",
        remedy="" if count > 1 else "give the container more: docker run --cpus 4",
    )


def ram(subject: Subject) -> Iterator[Result]:
    """Memory of the host and of every control group above this process, against what one compiler takes."""
    code = "machine.memory"
    least = min((loaded.recipe.lean.job_memory_gib for loaded in subject.recipes), default=4.0)
    need, wanted = least, f"{least:g} GiB for each compiler"
    if subject.purpose == "serve":
        need = SWAP_GIB * max(1, len(subject.gpus.cards))
        wanted = f"more than {need:g} GiB: vLLM pins {SWAP_GIB:g} GiB for each GPU (--swap-space)"
    try:
        limit = host_memory.limit_bytes(subject.proc, subject.cgroup) / 2**30
        free = host_memory.available_bytes(subject.proc, subject.cgroup) / 2**30
    except (OSError, ValueError) as error:
        yield Result(
            code=code,
            status="unknown",
            found=f"it cannot be read ({error})",
            wanted=wanted,
            remedy="say how many compilers may run: dca wheel --jobs N",
        )
        return
    by = host_memory.limiting(subject.proc, subject.cgroup)
    found = f"{limit:.1f} GiB, {free:.1f} free" + (f"; the limit is that of {by}" if by else "")
    if limit < need:
        yield Result(
            code=code,
            status="wrong",
            found=found,
            wanted=wanted,
            remedy="give the machine or the container more: docker run --memory 16g",
        )
    elif not (subject.proc / "self/cgroup").is_file():
        yield Result(
            code=code,
            status="unknown",
            found=f"{found}; control groups cannot be read",
            wanted=wanted,
            remedy="if the container has a limit of its own: dca wheel --jobs N",
        )
    elif free < need:
        yield Result(
            code=code,
            status="note",
            found=found,
            wanted=wanted,
            remedy="end other programs, or fewer compilers: dca wheel --jobs 1",
        )
    else:
        jobs = f"; {int(free / least)} compilers at once" if subject.purpose == "build" else ""
        yield Result(code=code, status="fine", found=found + jobs, wanted=wanted)


def disk(subject: Subject) -> Iterator[Result]:
    """Room where the build will happen."""
    code = "machine.disk"
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
        yield Result(code=code, status="unknown", found=f"{folder}: {error.strerror}", wanted=wanted, remedy=elsewhere)
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Result(code=code, status="wrong", found=f"{folder} cannot be written", wanted=wanted, remedy=elsewhere)
        return
    yield Result(
        code=code,
        status="fine" if free >= need else "wrong",
        found=f"{free:.1f} GB free",
        wanted=wanted,
        remedy="" if free >= need else elsewhere,
    )


def variables(subject: Subject) -> Iterator[Result]:
    """Environment variables that silently change a build, or how a model is served."""
    code = "machine.variables"
    known = OF_BUILDS if subject.purpose == "build" else OF_SERVING
    changing = {name: value for name, value in sorted(subject.env.items()) if _about(name, known)}
    # `make` sets it for whatever it starts, `make doctor` included.
    if "MAKELEVEL" in subject.env:
        changing.pop("MAKEFLAGS", None)
    details = tuple(f"{name}={_safe(name, value)}: {_about(name, known)}" for name, value in changing.items())
    names = ", ".join(changing) or "none that changes it"
    if subject.purpose == "serve":
        for name, right in (BACKEND, ENGINE):
            if subject.model is not None and changing.get(name, right) != right:
                yield Result(
                    code=code,
                    status="wrong",
                    found=f"{name}={changing[name]}",
                    details=details,
                    wanted=f"{name} unset, or {right}",
                    remedy=f"unset {name}",
                )
                return
        yield Result(
            code=code,
            status="note" if changing else "fine",
            found=names,
            details=details,
            remedy=f"unset {' '.join(changing)}, unless that is meant" if changing else "",
        )
        return
    loud = [name for name in changing if name not in READ]
    yield Result(
        code=code,
        status="note" if loud else "fine",
        found=names,
        details=details,
        wanted="none; dca wheel leaves them out, pip and CMake do not" if loud else "",
        remedy=f"unset {' '.join(loud)}" if loud else "",
    )


def _about(name: str, known: dict[str, str]) -> str:
    """What a variable does; nothing when it is none of them."""
    if name in known:
        return known[name]
    return next((what for key, what in known.items() if key.endswith("*") and name.startswith(key[:-1])), "")


def _safe(name: str, value: str) -> str:
    """A value without what must not be shown."""
    return "(not shown)" if _SECRET.search(name) else redact(value)[:200]
