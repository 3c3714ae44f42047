"""What of the user's variables reaches each program, and what is named as left out."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from dca.foundation import certificates, environment, runner, store
from dca.foundation.environment import PASSED, Program
from dca.foundation.errors import DcaError

# What somebody may have exported for another build: whatever a program reads that changes what it makes.
PLANTED = (
    "CXX",
    "CC",
    "CUDAHOSTCXX",
    "CXXFLAGS",
    "CFLAGS",
    "CPPFLAGS",
    "LDFLAGS",
    "CPATH",
    "C_INCLUDE_PATH",
    "CPLUS_INCLUDE_PATH",
    "GCC_EXEC_PREFIX",
    "COMPILER_PATH",
    "LIBRARY_PATH",
    "LD_RUN_PATH",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "NVCC_CCBIN",
    "NVCC_PREPEND_FLAGS",
    "NVCC_APPEND_FLAGS",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDACXX",
    "CUDAARCHS",
    "PYTHONPATH",
    "PYTHONHOME",
    "CMAKE_BUILD_TYPE",
    "CMAKE_GENERATOR",
    "CMAKE_ARGS",
    "CMAKE_PREFIX_PATH",
    "MAKEFLAGS",
    "MAX_JOBS",
    "NVCC_THREADS",
    "TORCH_CUDA_ARCH_LIST",
    "VLLM_TARGET_DEVICE",
    "SETUPTOOLS_SCM_PRETEND_VERSION",
    "GIT_DIR",
    "GIT_SSL_NO_VERIFY",
    "GIT_PROXY_COMMAND",
    "UV_CONFIG_FILE",
    "UV_EXTRA_INDEX_URL",
    "UV_INDEX",
    "UV_FIND_LINKS",
    "UV_CONSTRAINT",
    "UV_INSECURE_HOST",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_CONFIG_FILE",
    "SOURCE_DATE_EPOCH",
)
# These change nothing, and are not worth a word.
QUIET = ("GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_SSH_COMMAND", "LANGUAGE", "BASH_ENV", "ENV", "VIRTUAL_ENV", "EDITOR")
PROXIES = {"HTTPS_PROXY", "https_proxy", "NO_PROXY", "SSL_CERT_FILE", "NETRC"}
OWN = {
    "compiler": set(),
    "network": PROXIES,
    "git": PROXIES | {"GIT_SSL_CAINFO"},
    "uv": PROXIES | {"UV_HTTP_TIMEOUT", "UV_LINK_MODE"},
    "conda": PROXIES | {"CONDARC"},
    "twine": PROXIES | {"TWINE_PASSWORD", "XDG_RUNTIME_DIR"},
    # The variables that a build must not see are an engine's own.
    "server": PROXIES
    | {"XDG_RUNTIME_DIR", "HF_TOKEN", "CC", "CXX", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH"}
    | {"TORCH_CUDA_ARCH_LIST", "VLLM_TARGET_DEVICE"},
}


@pytest.fixture(autouse=True)
def without_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificate authorities of the system are tested for themselves."""
    monkeypatch.setattr(certificates, "variables", dict)


@pytest.mark.parametrize("program", get_args(Program))
def test_a_program_gets_what_is_its_own_and_nothing_else(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PLANTED, *QUIET, *set().union(*OWN.values())):
        monkeypatch.setenv(name, "/planted")
    seen = environment.of(program)
    assert {name for name, value in seen.items() if value == "/planted"} == OWN[program]
    assert seen["PATH"] == os.environ["PATH"]


def test_every_kind_of_program_is_decided_about() -> None:
    assert set(PASSED) == set(get_args(Program)) == set(OWN)


@pytest.mark.slow
def test_a_program_without_a_kind_gets_what_a_compiler_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLANTED[3:]:
        monkeypatch.setenv(name, "/planted")
    done = runner.run(["env"])
    assert "/planted" not in done.text
    # Each program has a temporary folder of its own.
    wanted = {name: value for name, value in environment.of().items() if name != "TMPDIR"}
    assert set(wanted.items()) <= {tuple(line.split("=", 1)) for line in done.tail}


def test_locale_time_zone_and_hash_seed_are_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_ALL", "LANG", "TZ", "PYTHONHASHSEED"):
        monkeypatch.setenv(name, "planted")
    seen = environment.of()
    assert [seen[name] for name in ("LC_ALL", "TZ", "PYTHONHASHSEED")] == ["C.UTF-8", "UTC", "0"]


def test_what_is_added_takes_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_JOBS", "64")
    seen = environment.of("git", {"MAX_JOBS": "2", "TZ": "Asia/Tokyo", "GIT_CONFIG_GLOBAL": "/own"})
    assert (seen["MAX_JOBS"], seen["TZ"], seen["GIT_CONFIG_GLOBAL"]) == ("2", "Asia/Tokyo", "/own")


def test_only_variables_that_are_named_are_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ONE_A", "1"), ("ONE_B", ""), ("OTHER", "2"), ("TWO", "3")):
        monkeypatch.setenv(name, value)
    assert environment.passed(["ONE_*", "TWO"]) == {"ONE_A": "1", "TWO": "3"}


@pytest.mark.parametrize(
    ("value", "folders"),
    [
        (None, []),
        ("", []),
        ("/usr/local/cuda", ["/usr/local/cuda"]),
        (":/usr/local/cuda", ["/usr/local/cuda"]),
        ("/usr/local/cuda:", ["/usr/local/cuda"]),
        ("/a::/b", ["/a", "/b"]),
        (" /a ", ["/a"]),
        ("~/cuda", ["/home/me/cuda"]),
    ],
)
def test_a_variable_that_names_folders_is_read_as_a_list(
    value: str | None, folders: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    caller = {} if value is None else {"CUDA_HOME": value}
    assert [str(folder) for folder in environment.folders("CUDA_HOME", caller)] == folders


# --- the temporary folder ------------------------------------------------------------------------------------


def _missing(folder: Path) -> Path:
    return folder / "gone"


def _file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


def _circle(folder: Path) -> Path:
    (folder / "circle").symlink_to(folder / "circle")
    return folder / "circle"


def _not_to_write(folder: Path) -> Path:
    # Not even root may create files there.
    return Path("/proc/self")


BAD = pytest.mark.parametrize("bad", [_missing, _file, _circle, _not_to_write], ids=lambda bad: bad.__name__)


@BAD
def test_a_temporary_folder_that_cannot_be_used_is_refused_by_its_variable(bad: object, tmp_path: Path) -> None:
    value = str(bad(tmp_path))  # type: ignore[operator]
    with pytest.raises(DcaError) as refused:
        environment.check_temporary(value)
    assert refused.value.code == "DCA-215"
    assert refused.value.what.startswith(f"TMPDIR={value} is not a folder for temporary files: ")


def test_a_temporary_folder_is_tried_without_a_trace_and_none_is_as_good(tmp_path: Path) -> None:
    environment.check_temporary(str(tmp_path))
    environment.check_temporary("")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@BAD
def test_no_program_starts_and_no_folder_is_made_with_one_that_cannot_be_used(
    bad: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(bad(tmp_path)))  # type: ignore[operator]
    with pytest.raises(DcaError) as refused:
        runner.run(["true"])
    assert refused.value.code == "DCA-215"
    with pytest.raises(DcaError) as refused, store.scratch():
        pass
    assert refused.value.code == "DCA-215"
    with store.scratch(tmp_path):
        pass
    # What is only asked for its version works all the same.
    assert runner.probe(["env"]).ok
    assert "TMPDIR" not in runner.probe(["env"]).text


@pytest.mark.slow
def test_a_relative_temporary_folder_is_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here/tmp").mkdir(parents=True)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TMPDIR", "tmp")
    done = runner.run(["sh", "-c", "mktemp"], cwd=tmp_path / "there")
    assert Path(done.tail[-1]).parent == tmp_path / "here/tmp"


# --- git -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("place", [".gitconfig", ".config/git/config"])
def test_git_reads_no_configuration_of_the_user(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('[url "ssh://git@github.com/"]\ninsteadOf = https://github.com/\n[core]\nfsmonitor = true\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.editor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "planted")
    words = ["git", "config", "--list"]
    assert "insteadof" in subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    done = runner.run(words, cwd=tmp_path, env=environment.of("git"))
    assert done.tail == ()
