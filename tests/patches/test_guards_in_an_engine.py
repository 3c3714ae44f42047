"""What the settings that guards refuse do in the wheel's engine, on the emulated GPU, without and with the guards."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dca.catalogue import kept_ptx
from dca.contract import values as contract
from tests.support import ROOT

FAMILY = contract.load().model.model_dump(mode="json")
TABLE = {str(head): ["vertical_and_slash", 1000, 1000, 1.0] for head in range(4)}


@dataclass(frozen=True)
class Harm:
    """Settings that a guard refuses.

    Args:
        settings: arguments of the engine.
        env: variables.
        config: keys of config.json.
        dual: keys of its `dual_chunk_attention_config`.
        prompts: lengths of the requests in tokens, one after the other; all begin alike.
        original: length from which the length factor counts; 0 for none.
        chunking: tokens of a chunk and local ones.
        ends: what the error has in it when the engine ends without the guard; empty when the answers are wrong.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    dual: dict[str, Any] = field(default_factory=dict)
    prompts: tuple[int, ...] = (250,)
    original: int = 0
    chunking: tuple[int, int] = (144, 32)
    ends: str = ""


HARMS = {
    # vLLM refuses another backend by itself; the guard chooses the right one where none is set.
    "DCA-811": Harm(env={"VLLM_ATTENTION_BACKEND": "FLASH_ATTN"}, ends="please set VLLM_ATTENTION_BACKEND"),
    "DCA-813": Harm(settings={"kv_cache_dtype": "fp8"}, ends="Error"),
    "DCA-814": Harm(settings={"enable_prefix_caching": True}, prompts=(190, 430), original=100),
    "DCA-815": Harm(
        settings={"max_model_len": 512},
        env={"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"},
        config={"max_position_embeddings": 128},
        prompts=(400,),
        ends="Error",
    ),
    "DCA-816": Harm(dual={"sparse_attention_enabled": True, "sparse_attention_threshold": 100}, ends="Error"),
    "DCA-817": Harm(
        dual={
            "sparse_attention_config": [TABLE],
            "sparse_attention_enabled": True,
            "sparse_attention_threshold": 100,
        },
        ends="IndexError",
    ),
    "DCA-818": Harm(
        dual={
            "sparse_attention_config": [{**TABLE, "3": ["stream_llm", 100, 800, 0.5]}] * 2,
            "sparse_attention_enabled": True,
            "sparse_attention_threshold": 100,
        },
        ends="AssertionError",
    ),
    # vLLM refuses this one too, when it builds the model.
    "DCA-819": Harm(chunking=(144, 40), ends="chunk_len must be divisible by block_size"),
    "DCA-820": Harm(settings={"enable_chunked_prefill": False, "max_num_batched_tokens": 1024}),
}


def outcome(python: Path, wheel: Path, dca: Path, harm: Harm, *, guarded: bool) -> tuple[dict[str, Any], str]:
    """What came of it, and everything that was printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "PYTHON"))}
    env |= harm.env | ({} if guarded else {"VLLM_PLUGINS": ""})
    words = [dca, "emulate", "--ptx", kept_ptx.beside(wheel), "--quiet", "--", python]
    words += [ROOT / "tests/support/engine_worker.py", json.dumps({**asdict(harm), "family": FAMILY})]
    done = subprocess.run(list(map(str, words)), env=env, capture_output=True, text=True, timeout=3600, check=False)
    told = [line for line in done.stdout.splitlines() if line.startswith("OUTCOME ")]
    assert told, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(told[-1].removeprefix("OUTCOME ")), done.stdout + done.stderr


@pytest.mark.whole
@pytest.mark.parametrize("code", HARMS)
def test_without_a_guard_answers_are_wrong_or_the_engine_ends(run_python: Path, wheel: Path, code: str) -> None:
    program, harm = ROOT / ".venv/bin/dca", HARMS[code]
    found, printed = outcome(run_python, wheel, program, harm, guarded=False)
    print(code, found)
    if harm.ends:
        assert harm.ends in found.get("error", ""), found
    else:
        assert found.get("off", 0.0) > 4 * found["bound"], found
    assert code not in printed


@pytest.mark.whole
@pytest.mark.parametrize("code", HARMS)
def test_with_the_guard_its_message_comes_first(run_python: Path, wheel: Path, code: str) -> None:
    found, printed = outcome(run_python, wheel, ROOT / ".venv/bin/dca", HARMS[code], guarded=True)
    assert code in found.get("error", "") + printed
