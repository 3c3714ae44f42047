"""The command line as a user meets it: help, one message per mistake, exit codes, nothing left behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from dca import cli
from dca.catalogue import machine, recipes
from dca.foundation import store
from tests.support import ROOT, RunDca
from tests.support.prepared import run_dca

ENV = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}


def python(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """A Python that finds dca in this checkout."""
    return subprocess.run([sys.executable, *words], **{"env": ENV, "text": True, "capture_output": True, **options})


def test_help_names_every_command_and_loads_none() -> None:
    probe = (
        "import sys\nfrom dca.cli import run\nassert run(['--help']) == 0\n"
        "print(sorted({'pydantic', 'rich', 'requests', 'git', 'torch'} & set(sys.modules)))"
    )
    done = python("-c", probe, check=True)
    assert done.stdout.endswith("[]\n")
    for name in ("plan", "fetch", "wheel", "inspect"):
        assert f"  {name} " in done.stdout


@pytest.mark.network
@pytest.mark.parametrize(
    ("arguments", "exit_code", "code", "words"),
    [
        (["whel"], 2, "DCA-201", "Did you mean `dca wheel`?"),
        (["plan", "--nonsense"], 2, "DCA-201", "--nonsense"),
        (["plan", "--recipe", "vllm-0.10.3"], 2, "DCA-203", "did you mean --recipe vllm-0.10.2?"),
        (["plan", "--cuda", "twelve"], 2, "DCA-201", "write it as 12.1"),
        (["plan", "--arch", "hopper"], 2, "DCA-201", "8.0,9.0"),
        (["plan", "--python", "4"], 2, "DCA-201", "3.12"),
        (["plan", "--source", "/no/such/folder"], 2, "DCA-204", "does not exist"),
        (["plan", "--companion", "flash-attention"], 2, "DCA-201", "NAME=PATH"),
        (["plan", "--cuda", "11.8"], 3, "DCA-303", "CUDA 12.x"),
        (["plan", "--recipe", "vllm-0.10.2", "--arch", "12.0+PTX"], 3, "DCA-304", "choose from 8.0"),
        (["plan", "--recipe", "vllm-0.10.2", "--arch", "7.5"], 3, "DCA-305", "--prebuilt all"),
        (["plan", "--recipe", "vllm-0.10.2", "--python", "3.99"], 3, "DCA-306", "needs Python >=3.9"),
        (["plan", "--arch", ","], 2, "DCA-201", "--arch is empty"),
        (["plan", "--dirty"], 2, "DCA-201", "needs a local folder"),
        (["plan", "--toolkit", "/usr"], 2, "DCA-204", "has no bin/nvcc"),
        (["plan", "--recipe", "vllm-0.10.2", "--with", "index-only,core"], 3, "DCA-309", "cannot be combined"),
        (["plan", "--recipe", "vllm-0.10.2", "--strict-cuda", "--cuda", "12.1"], 3, "DCA-302", "leave --strict"),
        (["plan", "--recipe", "vllm-0.10.2", "--source", "/usr/share/keyrings"], 2, "DCA-204", "requirements/cuda.txt"),
        (["wheel", "--out", "/etc/hostname/dist"], 2, "DCA-204", "cannot be written"),
        (["plan", "--recipe", "vllm-0.10.2", "--profile", "fat"], 3, "DCA-309", "it offers lean and full"),
        (["inspect", "/no/such.whl"], 2, "DCA-204", "is not a file"),
    ],
)
def test_a_mistake_gets_one_message_with_its_code(
    tmp_path: Path, arguments: list[str], exit_code: int, code: str, words: str
) -> None:
    more = [] if arguments[0] in ("inspect", "whel") else ["--cache-dir", str(tmp_path / "cache")]
    done = run_dca(*arguments, *more, cwd=tmp_path)
    assert done.returncode == exit_code, done.stderr
    assert done.stderr.startswith(f"{code}: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", ["plan --nonsense", "plan --cuda", "serve plan DIR --gpus", "config check"])
def test_wrong_usage_names_the_help_of_the_command(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(words.split()) == 2
    command = words.partition(" -")[0].removesuffix(" DIR")
    assert capsys.readouterr().err.endswith(f"dca {command} --help`.\n")


@pytest.mark.network
def test_an_error_as_json_is_one_document(dca: RunDca, tmp_path: Path) -> None:
    done = dca("plan", "--cuda", "11.8", "--json", "--cache-dir", tmp_path)
    document = json.loads(done.stdout)
    assert (document["schema"], document["code"], document["exit"], done.returncode) == ("dca.error/1", "DCA-303", 3, 3)


@pytest.mark.long
@pytest.mark.network
def test_a_plan_is_the_same_bytes_in_a_shuffled_environment(dca: RunDca, cache: store.Store, tmp_path: Path) -> None:
    noise = {f"DCA_NOISE_{number}": str(number) for number in range(50)}
    noise |= {"LC_ALL": "C", "LANG": "de_DE.UTF-8", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7", "MAX_JOBS": "99"}
    noise |= {"CXX": "clang++", "TORCH_CUDA_ARCH_LIST": "5.0", "NVCC_APPEND_FLAGS": "-O0", "CMAKE_GENERATOR": "Xcode"}
    codes = set()
    for seed in range(3):
        order = list({**os.environ, **noise}.items())
        random.Random(seed).shuffle(order)
        env = {**dict(order), "PYTHONPATH": ENV["PYTHONPATH"]}
        words = ("-m", "dca", "plan", "--json", "--cache-dir", tmp_path)
        codes.add(python(*words, cwd=tmp_path, env=env, check=True).stdout)
    assert len(codes) == 1
    plain = json.loads(dca("plan", "--json", "--cache-dir", tmp_path).stdout)
    noisy = json.loads(codes.pop())
    # What it ignores is said, and is all that differs.
    told = {one["name"] for one in noisy.pop("ignored")} - {one["name"] for one in plain.pop("ignored")}
    assert told >= {"MAX_JOBS", "CXX", "TORCH_CUDA_ARCH_LIST", "NVCC_APPEND_FLAGS", "CMAKE_GENERATOR"}
    assert noisy == plain


@pytest.mark.slow
def test_an_index_that_cannot_be_reached_is_no_plan_and_leaves_nothing_and_no_credentials(
    dca: RunDca, tmp_path: Path
) -> None:
    done = dca(
        "wheel",
        "--recipe",
        "vllm-0.10.2",
        "--cache-dir",
        tmp_path / "cache",
        "--out",
        tmp_path / "dist",
        env={"UV_DEFAULT_INDEX": "http://user:s3cret@127.0.0.1:9/simple/"},
    )
    assert done.returncode == 3
    assert "the package index cannot be reached" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_sdist_with_another_hash_is_refused(dca: RunDca, tmp_path: Path) -> None:
    (tmp_path / "vllm-0.10.2.tar.gz").write_bytes(b"something else")
    done = dca(
        "wheel",
        "--recipe",
        "vllm-0.10.2",
        "--source",
        tmp_path / "vllm-0.10.2.tar.gz",
        "--cache-dir",
        tmp_path / "cache",
    )
    assert done.returncode == 4
    assert "DCA-401" in done.stderr


def test_a_file_size_limit_that_stands_in_for_a_full_disk_leaves_nothing_half_made(tmp_path: Path) -> None:
    """Writing fails in the middle of a file, as on a full disk; only the error's number is another and is set."""
    out = tmp_path / "dist"
    script = (
        "import resource, signal, sys, errno\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "from dca.foundation import store\n"
        "from pathlib import Path\n"
        "try:\n"
        "    store.write_bytes(Path(sys.argv[1]), b'x' * 100_000)\n"
        "except OSError as error:\n"
        "    error.errno = errno.ENOSPC\n"
        "    from dca.foundation.errors import from_os_error\n"
        "    print(from_os_error(error)); sys.exit(0)\n"
    )
    out.mkdir()
    (out / "a").write_text("old")
    done = python("-c", script, out / "a")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("DCA-101")
    assert [path.name for path in out.iterdir()] == ["a"]
    assert (out / "a").read_text() == "old"


@pytest.mark.network
def test_a_full_device_is_named_as_such(cache: store.Store) -> None:
    with Path("/dev/full").open("w") as full:
        words = ("-m", "dca", "plan", "--json", "--cache-dir", cache.root)
        done = python(*words, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.startswith("DCA-101: the disk is full")


@pytest.mark.long
@pytest.mark.slow
def test_the_package_is_installed_with_its_data_outside_of_the_checkout(tmp_path: Path) -> None:
    """`pip install .` as a user runs it, then the data from an empty folder."""
    python, copy = tmp_path / "venv/bin/python", tmp_path / "copy"
    # Named, because a checkout may also have environments, wheels and caches of gigabytes.
    copy.mkdir()
    for name in ("build", "patches", "scripts"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    # The build backend and the libraries are those of this environment; nothing is downloaded.
    env = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
    subprocess.run(
        [machine.find_uv(), "pip", "install", "--quiet", "--python", python, "--no-deps", "--no-build-isolation", copy],
        check=True,
        env=env,
    )
    shutil.rmtree(copy)
    script = (
        "from dca.foundation import data; from dca.catalogue import recipes\n"
        "print(data.data_root())\n"
        "print([one.recipe.name for one in recipes.load_all()], (data.lean_folder() / 'CMakeLists.txt').is_file())"
    )
    done = subprocess.run([python, "-c", script], cwd=tmp_path, env=env, text=True, capture_output=True, check=True)
    root, names = done.stdout.splitlines()
    assert root.startswith(str(tmp_path / "venv"))
    assert names == f"{[loaded.recipe.name for loaded in recipes.load_all()]} True"
    assert (tmp_path / "venv/bin/dca").is_file()


@pytest.mark.parametrize("ignored", [True, False])
def test_under_nohup_the_end_of_the_terminal_is_no_interruption(ignored: bool) -> None:
    program = (
        "import signal, sys; from dca import cli\n"
        f"signal.signal(signal.SIGHUP, signal.{'SIG_IGN' if ignored else 'SIG_DFL'})\n"
        "cli.run = lambda _: signal.raise_signal(signal.SIGHUP)\n"
        "cli.main()"
    )
    done = python("-c", program)
    assert ("Interrupted" in done.stderr, done.returncode) == ((False, 0) if ignored else (True, 1))
