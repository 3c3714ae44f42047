"""Names what the user has set and no program of a build gets, although it would change the build."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from dca.foundation.documents import Value
from dca.foundation.secrets import redact
from dca.foundation.user_config import Setting

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
# How git writes a setting that is on.
_ON = ("true", "yes", "on", "1", "")


class Ignored(Value):
    """What the user has set and no program of a build gets, although it would change the build.

    Args:
        name: of the variable, or the file, key and value of a configuration.
        changes: what it would change.
        instead: how to have that with dca; empty if there is no such way.
    """

    name: str
    changes: str
    instead: str = ""


def _about(name: str) -> Ignored | None:
    """What a variable would change in a build; None if nothing."""
    for pattern, changes, instead in _CHANGING:
        if fnmatchcase(name, pattern):
            return Ignored(name=name, changes=changes, instead=instead)
    return None


def of(
    settings: Sequence[Setting] = (), used: Sequence[str] = (), caller: Mapping[str, str] | None = None
) -> tuple[Ignored, ...]:
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
    found = [one for name in names if (one := _about(name))]
    return (*found, *dict.fromkeys(_of_files(settings)))


def _of_files(settings: Sequence[Setting]) -> Iterator[Ignored]:
    for setting in settings:
        if setting.program == "git" and setting.key.endswith("sslverify") and setting.value.lower() in _ON:
            continue
        for pattern, changes, instead in _CHANGING_KEYS:
            if re.fullmatch(pattern, f"{setting.program}: {setting.key}"):
                name = f"{setting.file}: {redact(setting.key)} = {redact(setting.value)}"
                yield Ignored(name=name, changes=changes, instead=instead)
                break
