"""The examples without a server in real vLLMs for CPUs, with a tiny random model: all but the sense of answers."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.serve.conftest import Engines
from tests.support import ROOT, real_vllm

pytestmark = [pytest.mark.network, pytest.mark.whole]

EXAMPLES = ROOT / "examples"
NAMES = ("vllm-0.32", "vllm-0.10.2")
HUB = """
from shutil import copytree

def snapshot_download(name, local_dir):
    return copytree({model!r}, local_dir)
"""
"""In place of ModelScope's library, which has no server here."""


@dataclass(frozen=True)
class Example:
    """An example, and what it says with a model whose answers make no sense.

    Args:
        name: of the file.
        words: after the model.
        said: lines that it must print, besides an answer.
        fixed: words in place of the model and what follows it.
    """

    name: str
    words: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    fixed: tuple[str, ...] = field(default=())


OFFLINE = {
    "a batch": Example("offline_batch", ("First?", "Second?", "--max-tokens", "8"), ("> First?", "> Second?")),
    "a long text": Example("offline_1m", ("book.txt", "Who?", "--gpus", "1", "--length", "16384", "--max-tokens", "8")),
    "quantized": Example("quantized", ("--length", "4096")),
    "all GPUs": Example("multi_gpu"),
    "a stand-in for ModelScope": Example("from_modelscope", fixed=("Org/Name", "--into", "models", "--length", "4096")),
}


@pytest.mark.parametrize("engine", NAMES)
@pytest.mark.parametrize("example", OFFLINE.values(), ids=OFFLINE.keys())
def test_an_offline_example_computes_in_a_real_engine(
    engine: str, example: Example, engines: Engines, tiny_chat: Path, tmp_path: Path
) -> None:
    made = engines(engine)
    (tmp_path / "book.txt").write_text("Call me Ishmael. " * 500)
    (tmp_path / "modelscope.py").write_text(HUB.format(model=str(tiny_chat)))
    words = example.fixed or (str(tiny_chat), *example.words)
    # Without the engine's log, standard output is the example's alone.
    quiet = {"PYTHONPATH": str(tmp_path), "VLLM_LOGGING_LEVEL": "ERROR"}
    env = {**real_vllm.environment(made, tmp_path), **quiet}
    argv: list[str | Path] = [made.python, EXAMPLES / f"{example.name}.py", *words]
    done = subprocess.run(argv, env=env, cwd=tmp_path, text=True, capture_output=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert set(example.said) <= set(done.stdout.splitlines())
    assert "ERROR" not in done.stdout
    # An answer of random weights may be empty, but its line is there: without an answer an example ends before it.
    assert done.stdout.endswith("\n")
