"""Decides which of the user's variables and configuration reach each program that dca runs; the rest is left out.

`unused` names what is left out although it would change a build.
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple

from dca.foundation.errors import DcaError
from dca.foundation.secrets import redact

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
# Keys of git's configuration that are handed on, each with an optional URL: how to pass a proxy, whom to trust.
GIT_PASSED = re.compile(
    r"http\.(?:.+\.)?(?:proxy|proxyauthmethod|proxyssl(?:cainfo|cert|key)|ssl(?:cainfo|capath|cert|key)|version)"
)

_COMPILER_FLAGS, _NVCC_FLAGS = "flags of every compiler", "flags of every nvcc"
_HEADERS, _INDEX, _JOBS = "headers to use first", "where packages come from", "how many compilers run at once"
_VERSIONS, _TOOLKIT, _GIT = "which packages are installed", "which toolkit is used", "how git reads repositories"
# Variables that change a build which does not leave them out: pattern, what they change, and how to have that with dca.
_CHANGING: tuple[tuple[str, str, str], ...] = (
    ("CC", "the C compiler", ""),
    ("CXX", "the C++ compiler", ""),
    ("CUDAHOSTCXX", "nvcc's host compiler", ""),
    ("NVCC_CCBIN", "nvcc's host compiler", ""),
    ("NVCC_THREADS", "divides how many compilers run at once", "--jobs N"),
    ("NVCC_*", _NVCC_FLAGS, ""),
    ("CUDAFLAGS", _NVCC_FLAGS, ""),
    ("CFLAGS", _COMPILER_FLAGS, ""),
    ("CXXFLAGS", _COMPILER_FLAGS, ""),
    ("CPPFLAGS", _COMPILER_FLAGS, ""),
    ("LDFLAGS", "flags of the linker", ""),
    ("CPATH", _HEADERS, ""),
    ("C_INCLUDE_PATH", _HEADERS, ""),
    ("CPLUS_INCLUDE_PATH", _HEADERS, ""),
    ("GCC_*", "which programs g++ runs", ""),
    ("COMPILER_PATH", "which programs g++ runs", ""),
    ("LIBRARY_PATH", "libraries to link first", ""),
    ("LD_RUN_PATH", "where modules look for libraries", ""),
    ("LD_LIBRARY_PATH", "libraries to load first", ""),
    ("LD_PRELOAD", "a library in every program", ""),
    ("LD_*", "how programs are loaded", ""),
    ("SOURCE_DATE_EPOCH", "times in the wheel", ""),
    ("CMAKE_BUILD_PARALLEL_LEVEL", _JOBS, "--jobs N"),
    ("CMAKE_*", "CMake's own choices", ""),
    ("CUDACXX", "which nvcc CMake uses", "--toolkit DIR"),
    ("CUDA_HOME", _TOOLKIT, "--toolkit DIR"),
    ("CUDA_PATH", _TOOLKIT, "--toolkit DIR"),
    ("CUDA_ROOT", _TOOLKIT, "--toolkit DIR"),
    ("CUDA_BIN_PATH", _TOOLKIT, "--toolkit DIR"),
    ("CUDA_TOOLKIT_ROOT_DIR", _TOOLKIT, "--toolkit DIR"),
    ("CUDAToolkit_ROOT", _TOOLKIT, "--toolkit DIR"),
    ("CUDAARCHS", "GPU architectures", "--arch"),
    ("TORCH_CUDA_ARCH_LIST", "GPU architectures", "--arch"),
    ("MAX_JOBS", _JOBS, "--jobs N"),
    ("MAKEFLAGS", _JOBS, "--jobs N"),
    ("NINJAFLAGS", _JOBS, "--jobs N"),
    ("PYTHONPATH", "packages to import first", ""),
    ("PYTHONHOME", "Python's own library", ""),
    ("PYTHONOPTIMIZE", "how Python compiles", ""),
    ("SETUPTOOLS_SCM_*", "the wheel's version", ""),
    ("SETUPTOOLS_*", "how setup.py builds", ""),
    ("DISTUTILS_*", "how setup.py builds", ""),
    ("VLLM_TARGET_DEVICE", "what is built", ""),
    ("VLLM_USE_PRECOMPILED", "copies modules instead of building them", "--prebuilt all"),
    ("VLLM_CUTLASS_SRC_DIR", "a companion's source", "--companion NAME=DIR"),
    ("VLLM_FLASH_ATTN_SRC_DIR", "a companion's source", "--companion NAME=DIR"),
    ("FETCHCONTENT_BASE_DIR", "where CMake keeps companions", ""),
    ("USE_*", "parts of torch extensions", ""),
    ("UV_CACHE_DIR", "where uv keeps packages", "--cache-dir DIR"),
    ("UV_INDEX", _INDEX, "UV_DEFAULT_INDEX"),
    ("UV_*INDEX_URL", _INDEX, "UV_DEFAULT_INDEX"),
    ("UV_DEFAULT_INDEX", _INDEX, "UV_DEFAULT_INDEX"),
    ("UV_FIND_LINKS", _INDEX, "UV_DEFAULT_INDEX"),
    ("UV_INDEX_STRATEGY", _INDEX, ""),
    ("UV_CONFIG_FILE", "uv's own choices", ""),
    ("UV_INSECURE_HOST", "whom uv trusts", "SSL_CERT_FILE"),
    ("UV_OFFLINE", "whether uv downloads", "--offline"),
    ("UV_TORCH_BACKEND", _VERSIONS, ""),
    ("UV_*CONSTRAINT", _VERSIONS, ""),
    ("UV_OVERRIDE", _VERSIONS, ""),
    ("UV_PRERELEASE", _VERSIONS, ""),
    ("UV_RESOLUTION", _VERSIONS, ""),
    ("UV_EXCLUDE_NEWER", _VERSIONS, ""),
    ("UV_NO_BINARY*", _VERSIONS, ""),
    ("PIP_*INDEX_URL", _INDEX, "UV_DEFAULT_INDEX"),
    ("PIP_FIND_LINKS", _INDEX, "UV_DEFAULT_INDEX"),
    ("PIP_NO_INDEX", _INDEX, "--offline"),
    ("PIP_CONFIG_FILE", "pip's own choices", ""),
    ("PIP_PROXY", "the proxy", "HTTPS_PROXY"),
    ("PIP_CERT", "whom pip trusts", "SSL_CERT_FILE"),
    ("PIP_TRUSTED_HOST", "whom pip trusts", "SSL_CERT_FILE"),
    ("PIP_*CONSTRAINT", _VERSIONS, ""),
    ("PIP_NO_BINARY", _VERSIONS, ""),
    ("GIT_SSL_NO_VERIFY", "whom git trusts", "GIT_SSL_CAINFO"),
    ("GIT_PROXY_COMMAND", "the proxy", "HTTPS_PROXY"),
    ("GIT_EXEC_PATH", "which git runs", ""),
    ("GIT_DIR", _GIT, "--source DIR"),
    ("GIT_OBJECT_DIRECTORY", _GIT, "--source DIR"),
    ("GIT_ALTERNATE_OBJECT_DIRECTORIES", _GIT, "--source DIR"),
)
# The same for keys of configuration files, which begin with the program's name.
_CHANGING_KEYS: tuple[tuple[str, str, str], ...] = (
    (r"git: url\..*\.insteadof", "where git fetches from", "[mirrors] in config.toml"),
    (r"git: http\..*extraheader", "what git sends", ""),
    (r"git: http\.(.*\.)?sslverify", "whom git trusts", "http.sslCAInfo"),
    (r"(pip|uv): (.*\.)?(index|index[-_]url|default[-_]index)", _INDEX, "UV_DEFAULT_INDEX"),
    (r"(pip|uv): (.*\.)?(extra[-_]index[-_]url|find[-_]links)", _INDEX, "UV_DEFAULT_INDEX"),
    (r"(pip|uv): (.*\.)?no[-_]index", _INDEX, "--offline"),
    (r"pip: (.*\.)?proxy", "the proxy", "HTTPS_PROXY"),
    (r"pip: (.*\.)?(cert|trusted[-_]host)", "whom pip trusts", "SSL_CERT_FILE"),
    (r"uv: (.*\.)?allow[-_]insecure[-_]host", "whom uv trusts", "SSL_CERT_FILE"),
    (r"uv: (cache[-_]dir)", "where uv keeps packages", "--cache-dir DIR"),
    (r"(pip|uv): (.*\.)?(build[-_])?constraints?([-_]dependencies)?", _VERSIONS, ""),
)


class Unused(NamedTuple):
    """A setting of the user's that would change a build, and that no program of it gets.

    Args:
        name: of the variable, or the program, file and key of a configuration.
        changes: what it would change.
        instead: how to have that with dca; empty if there is no such way.
    """

    name: str
    changes: str
    instead: str = ""


class Setting(NamedTuple):
    """A key of a user's configuration file.

    Args:
        program: whose configuration it is.
        file: that has it.
        key: its name, with those of the tables around it.
        value: as text.
    """

    program: Literal["git", "pip", "uv"]
    file: Path
    key: str
    value: str


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


def about(name: str) -> Unused | None:
    """What a variable would change in a build, whether or not it is set; None if nothing."""
    for pattern, changes, instead in _CHANGING:
        if fnmatchcase(name, pattern):
            return Unused(name, changes, instead)
    return None


def unused(
    settings: Sequence[Setting] = (), used: Sequence[str] = (), caller: Mapping[str, str] | None = None
) -> tuple[Unused, ...]:
    """What the user has set and a build leaves out, although it would change what is built or from where.

    Args:
        settings: of the user's configuration files.
        used: variables that dca reads itself and uses.
        caller: the variables; by default those of this process.
    """
    variables = dict(os.environ if caller is None else caller)
    if "MAKELEVEL" in variables:
        # make sets it for whatever it starts.
        variables.pop("MAKEFLAGS", None)
    names = sorted(name for name, value in variables.items() if value and name not in used)
    found = [one for name in names if (one := about(name))]
    return (*found, *dict.fromkeys(_of_files(settings)))


def _of_files(settings: Sequence[Setting]) -> Iterator[Unused]:
    for setting in settings:
        if setting.program == "git" and setting.key.endswith("sslverify") and setting.value.lower() in _ON:
            continue
        for pattern, changes, instead in _CHANGING_KEYS:
            if re.fullmatch(pattern, f"{setting.program}: {setting.key}"):
                yield Unused(f"{setting.file}: {redact(setting.key)} = {redact(setting.value)}", changes, instead)
                break


# How git writes a setting that is on.
_ON = ("true", "yes", "on", "1", "")


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
