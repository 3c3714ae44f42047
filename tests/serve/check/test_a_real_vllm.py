"""`dca serve` and the examples against real vLLMs for CPUs, with a tiny random model: all but the sense of answers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dca.serve import check as checking
from dca.serve.check import probes
from tests.serve.check.conftest import Check, Done
from tests.serve.conftest import Engines
from tests.support import ROOT, left_alive, real_vllm, wait_for
from tests.support.real_vllm import Vllm
from tests.support.servers import free_port

pytestmark = [pytest.mark.network, pytest.mark.whole]

NAMES = ("vllm-0.32", "vllm-0.10.2")
SECONDS = "300"
"""For a request: a busy machine is slow, and that is no fault of the server."""
EXAMPLES = ROOT / "examples"
CUT = "The answer was cut at its limit, within the JSON:"


@pytest.fixture(scope="module", params=NAMES)
def server(
    request: pytest.FixtureRequest, engines: Engines, tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Vllm]:
    """A server without tools, that calls its model by two names."""
    folder = tmp_path_factory.mktemp("vllm")
    names = ("--served-model-name", "tiny", "other")
    with real_vllm.serving(engines(request.param), tiny_chat, folder, *names) as running:
        yield running


@pytest.fixture(scope="module")
def seen() -> dict[str, Done]:
    return {}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights use all the tokens that they may."""
    monkeypatch.setattr(probes, "REASONING", 256)


@pytest.fixture
def whole(server: Vllm, check: Check, seen: dict[str, Done]) -> Done:
    """Everything, once for each server."""
    if server.url not in seen:
        words = ["--lengths", "1024,4096", "--depths", "0,100", "--seed", "7", "--json"]
        seen[server.url] = check(server.url, *words, "--timeout", SECONDS, "--needle-timeout", SECONDS)
    return seen[server.url]


def test_a_real_vllm_is_asked_for_everything(whole: Done, server: Vllm) -> None:
    told = whole.told
    named = {probe["name"]: probe for probe in told["probes"]}
    release = server.made.version.partition("+")[0]
    assert (told["engine"]["name"], told["engine"]["version"].partition("+")[0]) == ("vllm", release)
    assert (told["model"], told["max_model_len"]) == ("tiny", 16384)
    for name in ("models", "chat", "completion", "stream", "sampling"):
        assert named[name]["status"] == "passed", named[name]
    # Random weights do not calculate: that is the model's fault, and is told as such.
    assert (named["sense"]["status"], named["sense"]["code"]) == ("failed", "DCA-163")
    # It has no tool flags, and says so; the remedy names both. 0.10.2 lets the client name a tool all the same, and
    # random weights make a call of it that is cut.
    assert named["tools"]["status"] in ("refused", "undecided"), named["tools"]
    assert "--enable-auto-tool-choice --tool-call-parser" in named["tools"]["remedy"]
    # It enforces the schema, so that even random weights keep to it as far as they get.
    assert named["structured"]["status"] in ("passed", "undecided"), named["structured"]
    assert "follows the schema, with response_format" in named["structured"]["detail"]
    assert {probe["after"] for probe in told["probes"]} == {"answers"}
    assert whole.code == 1
    assert whole.err.startswith("DCA-163: tiny at ")


def test_the_settings_of_a_real_vllm_are_seen(whole: Done) -> None:
    flags = {flag["name"]: flag["value"] for flag in whole.told["flags"]}
    assert (flags["--max-model-len"], flags["--served-model-name"]) == ("16384", "tiny other")
    assert {"--block-size", "--kv-cache-dtype", "--gpu-memory-utilization", "num_gpu_blocks"} <= flags.keys()
    assert int(flags["num_gpu_blocks"]) > 0


def test_the_tokens_that_a_real_vllm_counts_keep_every_prompt_within_its_length(whole: Done) -> None:
    needles = whole.told["needles"]
    assert [(one["length"], one["depth"]) for one in needles] == [
        (1024, 0.0),
        (1024, 100.0),
        (4096, 0.0),
        (4096, 100.0),
    ]
    for one in needles:
        assert (one["outcome"], one["counted"], one["code"]) == ("lost", "usage", "DCA-163"), one
        # What is kept free for texts that differ, and a sentence of 113 letters: here a letter is a token.
        assert 0.85 * (one["length"] - 64) - 130 <= one["tokens"] <= one["length"] - 64
        assert 0 < one["first_token"] < one["seconds"] < one["deadline"]
        assert one["prefill_speed"] > 0 < one["decode_speed"]
    assert whole.told["reached"] == 0
    assert 0.95 < whole.told["chars_per_token"] < 1.05


def test_what_a_real_vllm_can_do_passes_by_its_other_name_too(server: Vllm, check: Check) -> None:
    skipped = "sense,tools,structured,completion,needles"
    done = check(server.url, "--skip", skipped, "--model", "other", "--timeout", SECONDS, "--json")
    assert (done.code, done.told["model"]) == (0, "other"), done.err


def test_a_prompt_past_the_length_of_a_real_vllm_is_refused_in_its_own_words(server: Vllm, check: Check) -> None:
    words = ["--skip", ",".join(probes.PROBES), "--lengths", "20000,24000", "--depths", "50"]
    done = check(server.url, *words, "--timeout", SECONDS, "--needle-timeout", SECONDS, "--json")
    first, second = done.told["needles"]
    assert (first["outcome"], first["code"], second["outcome"]) == ("refused", "DCA-162", "skipped")
    assert "16384" in first["detail"]
    assert "--max-model-len" in first["remedy"]


def test_an_interrupted_check_of_a_real_vllm_is_continued(server: Vllm, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "dca", "serve", "check", server.url, "--skip", ",".join(probes.PROBES)]
    words += ["--lengths", "1024,2048,4096", "--timeout", SECONDS, "--needle-timeout", SECONDS, "--json"]
    words += ["--cache-dir", str(tmp_path / "cache"), "--report", str(tmp_path / "page.html")]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    first = subprocess.Popen(words, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def answered() -> int:
        kept = list((tmp_path / "cache").glob("run/serve-check-*/serve-check.json"))
        return len(json.loads(kept[0].read_text())["needles"]) if kept else 0

    try:
        assert wait_for(lambda: answered() >= 3 or first.poll() is not None, 600)
        first.send_signal(signal.SIGINT)
        out, wrong = first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 130, wrong
    assert json.loads(out)["interrupted"]
    assert str(tmp_path / "page.html") in wrong
    again = subprocess.run(words, env=env, text=True, capture_output=True, check=False, timeout=1200)
    told = json.loads(again.stdout)
    assert told["resumed"] >= 3
    assert len(told["needles"]) == 3 * len(checking.DEPTHS)
    assert not told["interrupted"]


# --- the examples ----------------------------------------------------------------------------------------------------


def example(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    argv: list[str | Path] = [sys.executable, EXAMPLES / f"{name}.py", *map(str, words)]
    return subprocess.run(argv, text=True, capture_output=True, timeout=600, check=False)


@pytest.mark.parametrize("plain", [(), ("--plain",)], ids=["recommended sampling", "plain"])
def test_the_client_streams_from_a_real_vllm(server: Vllm, plain: tuple[str, ...]) -> None:
    done = example("openai_client", server.url, "Hello", "--max-tokens", 24, *plain)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\n\[(length|stop)\]\n$", done.stdout)
    assert len(done.stdout) > len("\n[length]\n")


@pytest.mark.parametrize("guided", [(), ("--guided",)], ids=["response_format", "vLLM's own field"])
def test_a_schema_is_kept_by_a_real_vllm(server: Vllm, guided: tuple[str, ...]) -> None:
    """Random weights keep to the schema because they must; their texts may be too long."""
    done = example("structured_output", server.url, *guided)
    if done.returncode:
        assert done.stderr.startswith(CUT), done.stderr
        assert re.match(r'\s*\{\s*"title"', done.stderr.removeprefix(CUT))
    else:
        assert re.search(r", -?\d+, (a novel|not a novel)\n$", done.stdout)


def test_a_real_vllm_without_tool_flags_is_told_which_it_lacks(server: Vllm) -> None:
    done = example("tool_use", server.url)
    assert done.returncode == 1
    assert done.stderr.startswith("The server rejects the tools: ")
    assert "--enable-auto-tool-choice" in done.stderr
    assert "Traceback" not in done.stderr


# --- dca serve run ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    """A server that `dca serve run` started.

    Args:
        url: of it.
        dca: the process of the command.
        log: what the server wrote.
    """

    url: str
    dca: subprocess.Popen[str]
    log: Path


KEY = "a-key-of-the-test"
ENGINE = {"vllm-0.32": ("--engine-version", "0.32.0"), "vllm-0.10.2": ("--recipe", "vllm-0.10.2")}


@pytest.mark.parametrize("name", NAMES)
def test_serve_run_starts_a_real_vllm_that_is_checked_and_ends_with_it(
    name: str, engines: Engines, tiny_chat: Path, check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, port = engines(name), free_port()
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    # There is no GPU that doctor would find, and no wheel to prove.
    words = [sys.executable, "-m", "dca", "serve", "run", str(tiny_chat), "--gpus", "1x16", *ENGINE[name]]
    words += ["--python", made.python, "--skip", "doctor", "--skip", "smoke", "--dtype", "float32", "--enforce-eager"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "served", "--api-key", "--tools"]
    words += ["--max-model-len", "4096", "--log", str(tmp_path / "log"), "--cache-dir", str(tmp_path / "cache")]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "VLLM_NO_USAGE_STATS": "1", **made.variables}
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(words, env=env, text=True, stdout=said, stderr=said, cwd=tmp_path)
    running = Running(f"http://127.0.0.1:{port}", process, tmp_path / "log")
    family: list[Any] = []
    try:
        wait_for(lambda: process.poll() is not None or real_vllm.answers(running.url), real_vllm.START_SECONDS)
        assert real_vllm.answers(running.url), (tmp_path / "said").read_text()[-4000:]
        assert wait_for(lambda: f"The server is ready: {running.url}/v1" in (tmp_path / "said").read_text())
        family = real_vllm.below(process.pid)
        assert len(family) >= 2
        done = check(
            running.url, "--api-key-env", "VLLM_API_KEY", "--skip", "needles,sense", "--timeout", SECONDS, "--json"
        )
        named = {probe["name"]: probe for probe in done.told["probes"]}
        assert (done.told["model"], done.told["max_model_len"]) == ("served", 4096)
        # It has the tool flags, so random weights are the reason that nothing is called.
        assert (named["tools"]["status"], named["tools"]["code"]) == ("failed", "DCA-163"), named["tools"]
        assert "the server has its tool flags" in named["tools"]["remedy"]
        flags = {flag["name"] for flag in done.told["flags"]}
        assert {"--enable-auto-tool-choice", "--tool-call-parser", "--api-key", "--served-model-name"} <= flags
        called = example("tool_use", running.url)
        assert called.returncode == 0, called.stderr
        assert called.stdout.startswith("The model did not call the tool, but answered: ")
        refused = check(running.url, "--skip", "needles")
        assert refused.code == 1
        assert "DCA-160" in refused.err
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
        assert left_alive([one.pid for one in family]) == []
    finally:
        process.kill()
        process.wait()
        real_vllm.kill(family)
    text = (tmp_path / "said").read_text()
    assert KEY not in text
    assert KEY not in running.log.read_text()
