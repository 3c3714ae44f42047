"""Models and GPUs for tests of serving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dca.catalogue import recipes
from dca.serve import gpus, plan
from dca.serve.plan import ServePlan
from dca.serve.server_rules import Asked, Subject
from dca.serve.shape import Shape, quantized, read

SEVEN, FOURTEEN = "Qwen2.5-7B-Instruct-1M", "Qwen2.5-14B-Instruct-1M"
THIRTY, LARGE = "Qwen3-30B-A3B-Instruct-2507", "Qwen3-235B-A22B-Instruct-2507"
ORDINARY, OLD = "Qwen2.5-7B-Instruct", "Qwen1.5-7B-Chat"
MILLION = 1_010_000
ALL = recipes.compiling(recipes.load_all())
# layers, hidden, inner, heads, key heads, vocabulary, length
SHAPES = {
    "Qwen1.5-14B": (40, 5120, 13696, 40, 40, 152064, 32768),
    "Qwen1.5-32B": (64, 5120, 27392, 40, 8, 152064, 32768),
    "Qwen2.5-7B": (28, 3584, 18944, 28, 4, 152064, 32768),
    "Qwen2.5-14B": (48, 5120, 13824, 40, 8, 152064, 32768),
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
DCA = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}


def config(name: str = "Qwen2.5-7B", **changed: Any) -> dict[str, Any]:
    """A config.json; None removes a key."""
    layers, hidden, inner, heads, keys, vocabulary, length = SHAPES[name]
    values = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": vocabulary,
        "max_position_embeddings": length,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "rms_norm_eps": 1e-6,
    }
    return {key: value for key, value in {**values, **changed}.items() if value is not None}


def folder(place: Path, name: str = "Qwen2.5-7B", **changed: Any) -> str:
    """A model's folder with that config.json."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps(config(name, **changed), indent=2) + "\n", encoding="utf-8")
    return str(place)


def shape(model: str = SEVEN, method: str = "") -> Shape:
    return quantized(method, read(model)[0])


def subject(
    model: str,
    where: str,
    *,
    env: dict[str, str] | None = None,
    recipe: str | None = None,
    machines: int = 1,
    wheel: Path | None = None,
    **asked: Any,
) -> tuple[Subject, str]:
    return plan.subject_of(
        model, Asked(**asked), gpus=gpus.parse(where, machines), recipe=recipe, env=env or {}, wheel=wheel
    )


def planned(model: str, where: str, **more: Any) -> ServePlan:
    """The plan of `dca serve plan MODEL --gpus WHERE`."""
    return plan.make(*subject(model, where, **more))


def codes(shown: ServePlan, severity: str = "error") -> list[str]:
    return [finding.code for finding in shown.findings if finding.severity == severity]


def flags(shown: ServePlan) -> dict[str, str]:
    return {flag.name: flag.value for flag in shown.flags}


def way(shown: ServePlan, words: str) -> Any:
    """The way to make it fit whose change begins so."""
    (fitting,) = [way for way in shown.ways if way.change.startswith(words)]
    return fitting
