"""The examples run: clients against a real server, those that need GPUs with transformers in place of the engine."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dca.config import readers
from dca.foundation import store
from dca.foundation.events import Silent
from tests.serve.check.conftest import Real
from tests.support import ROOT
from tests.support import scripted_server as scripted
from tests.support.scripted_server import Asked, Reply, Scripted

EXAMPLES = ROOT / "examples"
WORKER = ROOT / "tests/workers/run_example.py"
CLIENTS = ("openai_client", "structured_output", "tool_use")
OFFLINE = ("from_modelscope", "multi_gpu", "offline_1m", "offline_batch", "quantized")


def run(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    """An example as a user runs it."""
    argv: list[str | Path] = [sys.executable, EXAMPLES / f"{name}.py", *map(str, words)]
    return subprocess.run(argv, text=True, capture_output=True, timeout=120, check=False)


def test_every_example_is_tested_here_and_described() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {*CLIENTS, *OFFLINE}
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in names:
        text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        assert f"`{name}.py`" in readme
        assert f"python examples/{name}.py" in (ast.get_docstring(ast.parse(text)) or "")
        assert len(text.splitlines()) < 90


# --- clients -------------------------------------------------------------------------------------------------------


def test_story_c3_the_openai_client_streams_from_a_server_that_nobody_here_wrote(real: Real) -> None:
    done = run("openai_client", real.url, "Hello", "--plain", "--max-tokens", 12)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n[length]\n")
    assert len(done.stdout) > len("\n[length]\n")


def test_tool_use_asks_a_server_that_nobody_here_wrote(real: Real) -> None:
    """Random weights call nothing, and the example says so."""
    done = run("tool_use", real.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The model did not call the tool, but answered: ")


def test_structured_output_asks_a_server_that_nobody_here_wrote(real: Real) -> None:
    """Random weights keep to no schema, and the example says so."""
    done = run("structured_output", real.url)
    assert done.returncode == 1
    assert done.stderr.startswith("The answer violates the schema: ")


@pytest.mark.slow
def test_the_client_sends_the_recommended_sampling_to_a_scripted_server(serve: Callable[..., Scripted]) -> None:
    place = serve()
    done = run("openai_client", place.url, "Hello", "--model", scripted.MODEL)
    assert (done.returncode, done.stdout) == (0, "ready\n[stop]\n")
    (sent,) = [request.body for request in place.asked if request.body]
    assert [sent[name] for name in ("temperature", "top_p", "repetition_penalty", "top_k")] == [0.7, 0.8, 1.05, 20]


@pytest.mark.slow
def test_story_c4_a_tool_is_called_and_its_result_answered_by_a_scripted_server(
    serve: Callable[..., Scripted],
) -> None:
    def script(asked: Asked) -> Reply:
        last = asked.body["messages"][-1]
        if last["role"] == "tool":
            return Reply(f"It is {json.loads(last['content'])['celsius']} degrees.")
        return scripted.right(asked)

    place = serve(script=script)
    done = run("tool_use", place.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'The model calls get_weather({"city": "Lisbon"})\nIt is 21 degrees.\n'
    second = place.asked[-1].body["messages"]
    assert [message["role"] for message in second] == ["user", "assistant", "tool"]
    assert second[2]["tool_call_id"] == second[1]["tool_calls"][0]["id"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "version", "field"),
    [
        ((), "0.32.0", "response_format"),
        (("--guided",), "", "guided_json"),
        (("--guided",), "0.10.2+dca5.cu124", "guided_json"),
        (("--guided",), "0.32.0", "structured_outputs"),
    ],
)
def test_story_c4_structured_output_is_read_back_from_a_scripted_server(
    serve: Callable[..., Scripted], words: tuple[str, ...], version: str, field: str
) -> None:
    pages = {"/version": json.dumps({"version": version})} if version else {}
    place = serve(script=lambda _asked: Reply(json.dumps(scripted.GOOD)), pages=pages)
    done = run("structured_output", place.url, *words)
    assert (done.returncode, done.stdout) == (0, "Moby-Dick, 1851, a novel\n")
    assert [field in request.body for request in place.asked if request.body] == [True]


# --- with the engine's Python API ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(cache: store.Store, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> readers.Installed:
    """The wheel's own Python, in an environment with what it runs with."""
    known = readers.find("vllm-0.10.2", readers.load_all())
    return readers.install(known, cache, [wheel], Silent(), tmp_path_factory.mktemp("engine") / "log")


@dataclass(frozen=True)
class Ran:
    """What came of an example.

    Args:
        out: what it printed.
        engine: arguments that the engine was given.
        sampling: temperature, top_p and repetition_penalty.
    """

    out: str
    error: str
    engine: dict[str, Any] = field(default_factory=dict)
    sampling: list[float] = field(default_factory=list)
    downloaded: str = ""


@pytest.fixture(scope="module")
def offline(engine: readers.Installed, real: Real, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """The examples with transformers in place of the engine, all in one process, which vLLM takes long to load in."""
    home = tmp_path_factory.mktemp("offline")
    model = str(real.folder)
    (home / "book.txt").write_text("Call me Ishmael.")
    wrong = (EXAMPLES / "multi_gpu.py").read_text().replace("max_model_len=4096", "max_modellen=4096")
    (home / "wrong.py").write_text(wrong)
    awq = ["--quantization", "awq", "--kv-cache-dtype", "fp8_e5m2", "--dtype", "half", "--gpus", "2"]
    cases: dict[str, dict[str, Any]] = {
        "batch": {"file": "offline_batch.py", "words": [model, "First?", "Second?"]},
        "million": {"file": "offline_1m.py", "words": [model, str(home / "book.txt"), "Who?", "--quantization", "fp8"]},
        "quantized": {"file": "quantized.py", "words": [model, *awq]},
        "machines": {"file": "multi_gpu.py", "words": [model, "--gpus", "8", "--ray"]},
        "visible": {"file": "multi_gpu.py", "words": [model], "env": {"CUDA_VISIBLE_DEVICES": "1,3"}},
        "hub": {"file": "from_modelscope.py", "words": ["Qwen/Qwen2.5-7B-Instruct-1M", "--into", str(home / "models")]},
        "wrong": {"file": str(home / "wrong.py"), "words": [model]},
    }
    for one in cases.values():
        one["file"] = str(EXAMPLES / one["file"])
    request = {"paths": [str(path) for path in engine.paths], "model": model, "examples": list(cases.values())}
    (home / "request.json").write_text(json.dumps(request))
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "VLLM_NO_USAGE_STATS": "1",
    }
    done = subprocess.run(
        [engine.python, "-I", WORKER, home / "request.json"],
        env=env,
        text=True,
        cwd=home,
        capture_output=True,
        timeout=600,
        check=False,
    )
    told = [line.removeprefix("RAN ") for line in done.stdout.splitlines() if line.startswith("RAN ")]
    assert len(told) == len(cases), done.stderr[-3000:]
    return {name: Ran(**json.loads(line)) for name, line in zip(cases, told, strict=True)}


def test_each_of_them_runs_to_its_end(offline: dict[str, Ran]) -> None:
    assert {name: one.error for name, one in offline.items() if one.error and name != "wrong"} == {}
    assert all(one.sampling == [0.7, 0.8, 1.05] for name, one in offline.items() if name != "wrong")


def test_an_argument_that_the_engine_does_not_know_would_be_found(offline: dict[str, Ran]) -> None:
    assert "max_modellen" in offline["wrong"].error


def test_story_c2_offline_batch_with_the_template_and_transformers_in_place_of_the_engine(
    offline: dict[str, Ran],
) -> None:
    ran = offline["batch"]
    assert [line for line in ran.out.splitlines() if line.startswith("> ")] == ["> First?", "> Second?"]
    assert ran.engine["gpu_memory_utilization"] == 0.85


def test_story_a4_a_million_tokens_offline_with_transformers_in_place_of_the_engine(offline: dict[str, Ran]) -> None:
    told = {name: value for name, value in offline["million"].engine.items() if name != "model"}
    assert told == {
        "tensor_parallel_size": 4,
        "max_model_len": 1010000,
        "quantization": "fp8",
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 131072,
        "max_num_seqs": 1,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "num_gpu_blocks_override": 63762,
    }
    # One prompt's blocks of 16 leave 1 % of all free, as the engine asks before it takes a prompt.
    blocks = told["num_gpu_blocks_override"]
    assert blocks - 1010000 // 16 == int(0.01 * blocks)
    assert offline["million"].out.strip()


def test_story_c7_quantized_weights_with_transformers_in_place_of_the_engine(offline: dict[str, Ran]) -> None:
    names = ("quantization", "kv_cache_dtype", "dtype", "tensor_parallel_size")
    assert [offline["quantized"].engine[name] for name in names] == ["awq", "fp8_e5m2", "half", 2]


def test_story_c5_several_gpus_and_machines_with_transformers_in_place_of_the_engine(offline: dict[str, Ran]) -> None:
    told = offline["machines"].engine
    assert (told["tensor_parallel_size"], told["distributed_executor_backend"]) == (8, "ray")


def test_story_b6_visible_gpus_are_those_that_are_used_with_transformers_in_place_of_the_engine(
    offline: dict[str, Ran],
) -> None:
    assert offline["visible"].engine["tensor_parallel_size"] == 2


def test_story_c9_and_c10_a_download_and_then_the_folder_with_stand_ins_for_hub_and_engine(
    offline: dict[str, Ran],
) -> None:
    ran = offline["hub"]
    assert ran.downloaded == "Qwen/Qwen2.5-7B-Instruct-1M"
    assert ran.engine["model"].endswith("/models/Qwen2.5-7B-Instruct-1M")
    assert (Path(ran.engine["model"]) / "config.json").is_file()
