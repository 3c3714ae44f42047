"""`dca serve check` against the server of a real vLLM for CPUs with the plugin, which it knows by its metrics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dca.contract import engine as running
from tests.serve.check.conftest import Check
from tests.serve.conftest import Engines
from tests.support import ROOT, real_vllm

# Chunks of 1536 tokens, each 12 of the CPU's blocks.
DUAL = {"chunk_size": 2048, "local_size": 512}
SECONDS = "600"


@pytest.mark.network
@pytest.mark.whole
def test_it_is_known_and_told_how_to_prove_it(engines: Engines, tiny_chat: Path, check: Check, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_chat, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"dual_chunk_attention_config": DUAL}))
    running.write_distribution(tmp_path / "path", "vllm-dca", "0", running.entry_points())
    made = engines("vllm-0.32")
    path = f"{tmp_path / 'path'}:{ROOT / 'build/plugin'}"
    made = made.model_copy(update={"variables": {**made.variables, "PYTHONPATH": path}})
    with real_vllm.serving(made, model, tmp_path, "--served-model-name", "tiny") as server:
        words = ["--skip", "completion,stream,sense,tools", "--lengths", "1024,4096", "--depths", "50"]
        told = check(server.url, *words, "--timeout", SECONDS, "--needle-timeout", SECONDS, "--json").told
    assert "Dual chunk attention: chunks of 1536 tokens" in server.log.read_text()
    assert (told["engine"]["recipe"], told["engine"]["ordinary"]) == ("vllm-0.32", 1536)
    flags = {flag["name"]: flag["value"] for flag in told["flags"]}
    assert {name: flags.get(name) for name in (*DUAL, "length_factor")} == {
        "chunk_size": "2048",
        "local_size": "512",
        "length_factor": "token",
    }
    named = {probe["name"]: probe for probe in told["probes"]}
    # Random weights keep to the schema as far as they get.
    structured = named.pop("structured")
    assert structured["status"] in ("passed", "undecided"), structured
    assert "follows the schema, with response_format" in structured["detail"]
    assert {name: probe["status"] for name, probe in named.items()} == dict.fromkeys(
        ("models", "chat", "sampling"), "passed"
    )
    short, long = told["needles"]
    # Random weights know nothing, in chunks or without.
    assert (short["outcome"], long["outcome"]) == ("lost", "lost")
    assert "up to 1,536 tokens dual chunk attention" in short["remedy"]
    assert "dca plugin check vllm==0.32.0 --engine" in long["remedy"]
