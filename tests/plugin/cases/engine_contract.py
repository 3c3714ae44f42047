"""What vLLM's own configuration and layers reject with the plugin, what they let pass, and what CUDA would be asked.

The argument is a folder to work in. No engine is started.
"""

from __future__ import annotations

import ast
import inspect
import os
import sys
import types
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}

import stand_ins

from dca.in_wheel_env.tiny import Tiny, make

DUAL = {"chunk_size": 128, "local_size": 32}
OPTIONS: dict[str, Any] = {"dtype": "float32", "max_model_len": 1024, "block_size": 32, "skip_tokenizer_init": True}
TABLE = ((100, 800), (100, 800))

# The model's config, options, variables, whether a sparse table lies beside the weights, and what the message has.
REJECTED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, str], bool, str]] = {
    "fp8": (DUAL, {"kv_cache_dtype": "fp8"}, {}, False, "KV cache of fp8"),
    "blocks": (DUAL, {"block_size": 128}, {}, False, "blocks of 128 tokens do not divide a chunk of 96"),
    "length": (DUAL, {"max_model_len": 2048}, {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}, False, "1024 positions"),
    "backend": (DUAL, {"attention_backend": "FLASH_ATTN"}, {}, False, "FLASH_ATTN does not know"),
    "speculation": (
        DUAL,
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}},
        {},
        False,
        "speculative decoding",
    ),
    "sparse": (DUAL, {}, {}, True, "heads of 32"),
    "numbers": (DUAL | {"local_size": 128}, {}, {}, False, "local_size must be less"),
    "factor": (DUAL | {"length_factor": "x"}, {}, {}, False, "length_factor must be"),
    "reuse": (
        DUAL | {"length_factor": "prompt", "original_max_position_embeddings": 90},
        {"enable_prefix_caching": True},
        {},
        False,
        "--no-enable-prefix-caching",
    ),
}
PASSES: dict[str, tuple[dict[str, Any] | None, dict[str, Any], bool]] = {
    "usual": (DUAL, {}, False),
    "sparse turned off": (DUAL | {"sparse_attention_enabled": False}, {}, True),
    "a model without dual chunk attention": (None, {"block_size": 128}, False),
}


def configure(folder: Path, dual: dict[str, Any] | None, options: dict[str, Any], table: bool) -> Any:
    """The configuration of an engine."""
    from vllm.engine.arg_utils import EngineArgs

    make(folder, Tiny(heads=2, kv_heads=1, dim=32, dual=dual, table=TABLE if table else ()), stand_ins.FAMILY)
    return EngineArgs(model=str(folder), **OPTIONS | options).create_engine_config()


def rejects(call: Any, text: str) -> None:
    """A call must end with a message that has this text."""
    said = "nothing"
    try:
        call()
    except Exception as error:
        said = str(error)
    assert "vllm-dca cannot serve" in said, said
    assert text in said, said


def layers(config: Any) -> None:
    """A layer without the config, and one whose keys another rotary layer turns, are rejected when they are made."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.rotary_embedding import get_rope

    def layer(name: str, **more: Any) -> Any:
        return Attention(2, 32, 0.2, num_kv_heads=1, prefix=f"model.layers.0.{name}", **more)

    given = {"layer_idx": 0, "dual_chunk_attention_config": DUAL}
    with set_current_vllm_config(config):
        rejects(lambda: layer("a"), "does not hand it to all of its attention layers")
        rejects(lambda: layer("b", **given), "its rotary embedding does not")
        made = get_rope(32, 1024, rope_parameters={"rope_theta": 1e4}, dual_chunk_attention_config=DUAL)
        assert type(made).__name__ == "DualChunkRotary"
        assert type(layer("c", **given).impl).__name__ == "CpuImpl"
        rejects(lambda: layer("d", logits_soft_cap=1.0, **given), "logits_soft_cap")
        # One token keeps its shape, which vLLM's own layer loses.
        query, key = made(torch.tensor([100]), torch.ones(1, 64), torch.ones(1, 32))
        assert query.shape == (1, 64)
        assert key.shape == (1, 32)


def on_cuda() -> None:
    """vLLM finds the backend for CUDA by its name and lets it have what it supports."""
    import torch
    from vllm.platforms.interface import DeviceCapability
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    from vllm.v1.attention.selector import AttentionSelectorConfig

    from vllm_dca.refusals import BACKEND

    register_backend(BACKEND, "vllm_dca.backend.DualChunkBackend")
    backend = AttentionBackendEnum[BACKEND].get_class()
    assert AttentionBackendEnum[backend.get_name()].get_class() is backend

    def reasons(major: int = 9, **changed: Any) -> list[str]:
        usual = {
            "head_size": 128,
            "dtype": torch.bfloat16,
            "kv_cache_dtype": "auto",
            "block_size": 16,
            "use_rswa": True,
        }
        asked = AttentionSelectorConfig(**usual | changed)
        return list(backend.validate_configuration(device_capability=DeviceCapability(major, 0), **asked._asdict()))

    assert reasons() == []
    assert reasons(block_size=None) == []
    for changed, text in (
        ({"head_size": 100}, "head_size"),
        ({"head_size": 264}, "head_size"),
        ({"dtype": torch.float32}, "dtype"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype"),
        ({"block_size": 8}, "block_size"),
        ({"has_sliding_window": True}, "sliding window"),
        ({"has_sink": True}, "sinks"),
        ({"major": 7}, "compute capability"),
        ({"use_dcp": True}, "DCP"),
    ):
        assert [text in reason for reason in reasons(**changed)] == [True], (changed, reasons(**changed))


def signatures() -> None:
    """Every argument of the call of flash-attention is one of vLLM's function, which cannot be imported here."""
    import vllm
    from vllm import _custom_ops

    from vllm_dca import backend

    folder = Path(vllm.__file__).parent / "vllm_flash_attn"
    if folder.is_dir():
        theirs = ast.parse((folder / "flash_attn_interface.py").read_text())
        ours = ast.walk(ast.parse(Path(backend.__file__).with_name("flash.py").read_text()))
        calls = {n.func.id: n for n in ours if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        # Queries, keys and values, and the four lists, are given by their place.
        first = ("q", "k", "v", "block_count", "block_offset", "column_count", "column_index")
        for name, placed in (("flash_attn_varlen_func", ()), ("sparse_attn_varlen_func", first)):
            (function,) = (n for n in theirs.body if isinstance(n, ast.FunctionDef) and n.name == name)
            known = [one.arg for one in (*function.args.args, *function.args.kwonlyargs)]
            assert known[: len(placed)] == list(placed)
            assert {one.arg for one in calls[name].keywords} <= set(known[len(placed) :])
            assert len(calls[name].args) == (3 if placed else 0)
        # That one is the package's own, too.
        assert "    flash_attn_varlen_func," in (folder / "__init__.py").read_text()
        print("flash-attention's signatures fit")
    else:
        print("no Python of flash-attention here: its signatures were not compared")
    assert len(inspect.signature(_custom_ops.reshape_and_cache_flash).parameters) == 8


def with_a_stand_in_of_flash_attention() -> None:
    """A function with flash-attention's arguments, computed by plain PyTorch, gives the same attention."""
    import random

    import torch
    from drawn import draw, error, installed

    from vllm_dca import attention

    asked = []

    def varlen(**given: Any) -> tuple[Any, Any]:
        asked.append(given)
        assert given["return_softmax_lse"] is True
        starts, lengths, longest = (given[name] for name in ("cu_seqlens_q", "seqused_k", "max_seqlen_k"))
        assert int(lengths.max()) == longest
        assert int(torch.diff(starts).max()) == given["max_seqlen_q"]
        assert {starts.dtype, lengths.dtype, given["block_table"].dtype} == {torch.int32}
        assert int(starts[-1]) == len(given["q"])
        # What version 2 makes of a sequence without keys or queries is other sequences' log-sum-exp.
        assert int(lengths.min()) > 0
        assert int(torch.diff(starts).min()) > 0
        call = attention.Call(None, starts, 0, lengths, given["block_table"], longest, given["causal"])
        cache = attention.Cache(given["k"], given["v"])
        out, lse = attention.TorchAttention(given["softmax_scale"])(given["q"], cache, call)
        return out, lse

    stand_ins.register(varlen)
    from vllm_dca import flash

    plugin = installed()
    plugin.attention = types.SimpleNamespace(
        **vars(attention) | {"TorchAttention": lambda scale: flash.FlashAttention(scale, 3)}
    )
    chance = random.Random(5)
    for _ in range(12):
        drawn = draw(chance)
        if any(request.queries for request in drawn.requests):
            assert error(drawn, plugin) < 2e-5, drawn
    assert {given["fa_version"] for given in asked} == {3}
    assert {given["causal"] for given in asked} == {True, False}
    assert [flash.choose(major, None) for major in (8, 9, 10, 12)] == [2, 3, 2, 2]
    assert flash.choose(9, 2) == 2
    said = ""
    try:
        flash.choose(10, 3)
    except ValueError as wrong:
        said = str(wrong)
    assert "compute capability 9.0" in said


def main(folder: Path) -> None:
    """Try all of them."""
    for name, (dual, options, variables, table, text) in REJECTED.items():
        before = dict(os.environ)
        os.environ.update(variables)
        place = folder / f"rejected-{name}"
        rejects(lambda p=place, d=dual, o=options, t=table: configure(p, d, o, t), text)
        os.environ.clear()
        os.environ.update(before)
        print(f"rejected: {name}", flush=True)
    passed = {name: configure(folder / name, *wanted) for name, wanted in PASSES.items()}
    layers(passed["usual"])
    on_cuda()
    signatures()
    with_a_stand_in_of_flash_attention()
    print("all rejected")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
