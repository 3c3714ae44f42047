"""`dca kernels`: what it writes is loaded by the kernels library itself, and computes what it must."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dca.catalogue import machine
from dca.foundation import data, runner, store
from dca.pipeline.kernels import Kernels
from dca.toolchain import environments
from tests.support import ROOT, RunDca

# The library, 0.17.2, with what it requires, by hash.
LOCK = ROOT / "tests" / "cases" / "kernels" / "requirements.txt"
PROGRAM = Path(__file__).with_name("kernels_program.py")


@pytest.fixture(scope="module")
def written(dca: RunDca, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Kernels]:
    """The repositories of the session's wheel, whose modules the cache has."""
    assert wheel.is_file()
    folder = tmp_path_factory.mktemp("kernels")
    done = dca("kernels", "--to", folder, "--json", timeout=3000.0)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, Kernels.model_validate_json(done.stdout)


@pytest.fixture(scope="module")
def library(run_python: Path, cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the kernels library, for an environment whose own hub client is too old for it."""
    folder = tmp_path_factory.mktemp("library")
    words: list[str | Path] = ["--python", run_python, "--target", folder, "--no-deps", "--require-hashes", "-r", LOCK]
    done = runner.run(
        [machine.find_uv(), "pip", "install", *words],
        env=environments.uv_environment(cache),
        log=folder.with_suffix(".log"),
        timeout=900.0,
    )
    assert done.ok, done.text
    return folder


@pytest.mark.long
@pytest.mark.network
def test_the_kernels_library_loads_what_computes_as_the_oracle(
    written: tuple[Path, Kernels], library: Path, run_python: Path, dca: RunDca
) -> None:
    folder, made = written
    attention, index = made.repositories
    done = dca(
        "emulate",
        "--quiet",
        *("--check", "addresses", "--check", "shared", "--check", "races"),
        *("--ptx", attention.ptx),
        *("--", run_python, PROGRAM, folder, library, data.PACKAGE.parent),
        env={"HF_HUB_OFFLINE": "1"},
        timeout=3000.0,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"] == {"all": True, "some": True}
    # bfloat16 has eight bits; the log-sum-exp is float32.
    assert all(out < 2**-6 and lse < 1e-4 for out, lse in found["worst"].values()), found["worst"]
    assert "emulated" in found["device"]
    # The library imports a kernel under its id, which also is the namespace of its ops.
    assert found["loaded"] == [[one.name.replace("-", "_"), one.id, one.id] for one in (attention, index)]
    assert found["old"] == [True, True]
    assert attention.variant.startswith("torch28-cxx11-cu12")
    assert index.variant.startswith("torch-stable-abi28-cu12")


@pytest.mark.long
def test_the_repositories_keep_the_rules_and_are_the_same_again(
    written: tuple[Path, Kernels], dca: RunDca, tmp_path: Path
) -> None:
    folder, made = written
    for one in made.repositories:
        done = dca("inspect", one.folder, "--gpu", "A100", "--torch", "2.8", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["answer"]["says"] == "yes"
    done = dca("kernels", "--to", tmp_path / "again", "--json", timeout=3000.0)
    assert done.returncode == 0, done.stderr[-4000:]
    hashes = [
        {name: store.sha256_file(path) for name, path in store.walk(root) if path.is_file()}
        for root in (folder, tmp_path / "again")
    ]
    assert hashes[0] == hashes[1]
    assert not [name for name in hashes[0] if "_vllm_fa2_C" in name]


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--recipe", "vllm-0.33"), ("--recipe", "vllm-0.10.2", "--prebuilt", "all")])
def test_a_plan_that_compiles_nothing_is_refused(words: tuple[str, ...], dca: RunDca, tmp_path: Path) -> None:
    done = dca("kernels", *words, "--to", tmp_path / "kernels")
    assert done.returncode == 7, done.stderr
    assert "DCA-704" in done.stderr
    assert not (tmp_path / "kernels").exists()
