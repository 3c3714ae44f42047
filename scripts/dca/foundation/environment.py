"""Decides which of the user's variables reach each program that dca runs; the rest is left out."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from dca.foundation import certificates
from dca.foundation.errors import DcaError

Program = Literal["compiler", "git", "network", "uv", "conda", "twine", "server"]
"""Kinds of programs. "compiler" is every program that needs no network; "network" one that needs nothing else."""

EVERY = ("HOME", "PATH", "TMPDIR", "USER", "LOGNAME", "TERM")
_PROXIES = (
    "ALL_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "all_proxy",
    "https_proxy",
    "http_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NETRC",
)
# Patterns of the variables that a kind of program gets besides EVERY. No entry may change what is built.
PASSED: Mapping[Program, tuple[str, ...]] = {
    "compiler": (),
    "network": _PROXIES,
    "git": (*_PROXIES, "GIT_SSL_CAINFO", "GIT_SSL_CAPATH"),
    # Its index is named by dca, which downloads from the same.
    "uv": (
        *_PROXIES,
        "UV_CONCURRENT_*",
        "UV_HTTP_TIMEOUT",
        "UV_KEYRING_PROVIDER",
        "UV_LINK_MODE",
        "UV_NATIVE_TLS",
        "UV_PYTHON_INSTALL_DIR",
        "UV_SYSTEM_CERTS",
    ),
    "conda": (
        *_PROXIES,
        "CONDARC",
        "CONDA_ENVS_PATH",
        "CONDA_PKGS_DIRS",
        "MAMBARC",
        "MAMBA_ROOT_PREFIX",
        "MAMBA_EXE",
    ),
    # Passwords are not passed on its command line, which every user of the machine can read. XDG_* and DBUS_* are for
    # the keyring.
    "twine": (
        *_PROXIES,
        "TWINE_USERNAME",
        "TWINE_PASSWORD",
        "TWINE_CERT",
        "TWINE_CLIENT_CERT",
        "XDG_*",
        "DBUS_*",
        "PYTHON_KEYRING_*",
    ),
    "server": (
        *_PROXIES,
        "VLLM_*",
        "CUDA_*",
        "NVIDIA_*",
        "NCCL_*",
        "GLOO_*",
        "HF_*",
        "HUGGING_FACE_*",
        "TRANSFORMERS_*",
        "TORCH_*",
        "TORCHINDUCTOR_*",
        "PYTORCH_*",
        "TRITON_*",
        "RAY_*",
        "OMP_*",
        "MKL_*",
        "XDG_*",
        "MODELSCOPE_*",
        "UCX_*",
        "FI_*",
        "IB_*",
        "MASTER_*",
        "LD_LIBRARY_PATH",
        "CC",
        "CXX",
    ),
}
# Set for every program of a kind. git reads no configuration of the user or the system; `user_config` hands on the part
# of it that is about the network.
FIXED: Mapping[Program, Mapping[str, str]] = {
    "git": {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "XDG_CONFIG_HOME": "/nonexistent",
    },
    "uv": {"UV_NO_CONFIG": "1"},
}


def of(
    program: Program = "compiler", extra: Mapping[str, str] | None = None, caller: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The whole environment of a program.

    Args:
        program: its kind.
        extra: variables that take precedence.
        caller: the user's variables; by default those of this process.
    """
    env = passed((*EVERY, *PASSED[program]), caller)
    trusted = certificates.variables() if caller is None else {}
    if program == "git":
        # Configuration of the user about certificates, which `user_config` hands on, must come first.
        env |= {name: value for name, value in trusted.items() if name != "GIT_SSL_CAINFO"}
    elif program != "compiler":
        env |= trusted
    if "TMPDIR" in env:
        # Programs run in other folders than this one.
        env["TMPDIR"] = str(Path(env["TMPDIR"]).absolute())
    env |= {
        "LC_ALL": "C.UTF-8",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return {**env, **FIXED.get(program, {}), **(extra or {})}


def passed(patterns: Sequence[str], caller: Mapping[str, str] | None = None) -> dict[str, str]:
    """The caller's variables that are not empty and whose names match one of the patterns."""
    variables = os.environ if caller is None else caller
    return {
        name: value for name, value in variables.items() if value and any(fnmatchcase(name, one) for one in patterns)
    }


def folders(name: str, caller: Mapping[str, str] | None = None) -> tuple[Path, ...]:
    """The folders that a variable names: one, or several as in PATH; empty entries name none."""
    value = (os.environ if caller is None else caller).get(name, "")
    return tuple(Path(entry).expanduser() for text in value.split(os.pathsep) if (entry := text.strip()))


def check_temporary(value: str | None = None) -> None:
    """Reject a TMPDIR that cannot be used, before a program fails because of it.

    Args:
        value: of the variable; by default the caller's.

    Raises:
        DcaError: DCA-215.
    """
    value = os.environ.get("TMPDIR", "") if value is None else value
    if why := temporary_is_wrong(value):
        raise DcaError(
            "DCA-215",
            f"TMPDIR={value} is not a folder for temporary files: {why}.",
            why="compilers and this tool write their temporary files there.",
            remedy="unset TMPDIR, or set it to a folder in which you may write.",
        )


def temporary_is_wrong(value: str) -> str:
    """Why a value of TMPDIR cannot be used; empty if it can, or if it is not set."""
    try:
        return _tried(str(Path(value).absolute())) if value else ""
    except OSError as error:
        return (error.strerror or str(error)).lower()


@functools.cache
def _tried(folder: str) -> str:
    with tempfile.TemporaryFile(dir=folder):
        return ""
