# SPDX-License-Identifier: Apache-2.0
"""What is rejected, and why: settings that would give wrong answers, or that nobody has tried.

`reasons` takes plain values, so that it can be tested without vLLM; `facts` reads them from vLLM's configuration.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import settings

PROVEN = ("0.32.0", "0.33.0")
# Set to 1, it lets the plugin work with a release of vLLM that it was not proven with.
OVERRIDE = "DCA_ALLOW_UNPROVEN_VLLM"
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
BACKEND = "DUAL_CHUNK_ATTENTION"
PLUGIN = "dual_chunk_attention"
# Tests set it in a process that they have given kernels for a CPU.
SPARSE_ON_CPU = False
# The head dimension of vLLM's sparse kernels, and how many queries of a span choose what it attends.
SPARSE_DIM, VOTERS = 128, 64


class RejectedError(ValueError):
    """A setting that cannot work with dual chunk attention, or was not proven with it."""


@dataclass(frozen=True)
class Facts:
    """What decides whether a model with dual chunk attention is served.

    Attributes:
        config: the model's `dual_chunk_attention_config`.
        version: vLLM's, without its local part.
        on_cpu: whether vLLM's platform is the CPU.
        backend: the attention backend that was asked for, by name; `None` for none.
        cache_dtype: `--kv-cache-dtype`.
        block: tokens of a block of the KV cache; 0 where vLLM chooses it later.
        max_length: `--max-model-len`, in tokens.
        rope: the rotary embedding.
        sliding_window: whether layers have one.
        speculative: whether there is speculative decoding.
        runner_v2: whether model runner V2 was chosen.
        context_parallel: ranks that share the context of a request, for decoding or prefill.
        prefix_caching: whether prefixes are cached, or a connector hands keys on.
        flash_version: the flash-attention version that was asked for; `None` for none.
        layers: of the model.
        heads: of a layer, of the queries.
        dim: of a head.
        untried: settings of `UNTRIED` that are on.
    """

    config: Any
    version: str
    on_cpu: bool
    backend: str | None
    cache_dtype: str
    block: int
    max_length: int
    rope: settings.Rope
    sliding_window: bool
    speculative: bool
    runner_v2: bool
    context_parallel: int
    prefix_caching: bool
    flash_version: int | None
    layers: int
    heads: int
    dim: int
    untried: tuple[str, ...] = ()


def unproven(version: str) -> str | None:
    """Why a release of vLLM is rejected; `None` if it was proven, or the override is set."""
    if version in PROVEN or os.environ.get(OVERRIDE) == "1":
        return None
    return (
        f"vLLM {version} was not proven with this plugin. What a plugin builds on changes from release to release, and "
        f"a wrong guess gives wrong answers. Install vLLM {' or '.join(PROVEN)}, or set {OVERRIDE}=1 to try this one"
    )


def _unusable(facts: Facts) -> str | None:
    if wrong := settings.unusable(facts.config):
        return f"{wrong}. Chunks are cut by these numbers. Restore them from the model's original config.json"
    return None


def _sparse(facts: Facts) -> str | None:
    if not settings.is_sparse(facts.config):
        return None
    table = facts.config.get("sparse_attention_config")
    if not table:
        wrong = "has no sparse_attention_config. Restore the model's sparse_attention_config.json, or s"
    elif lacking := settings.lacking(table, facts.layers, facts.heads):
        wrong = f"has an unusable sparse_attention_config: {lacking}. Use the model's own, or s"
    elif facts.config.get("sparse_attention_last_q", VOTERS) != VOTERS:
        wrong = (
            f"lets another number of queries than {VOTERS} choose the keys (sparse_attention_last_q). Remove it, or s"
        )
    elif facts.dim != SPARSE_DIM:
        wrong = f"has heads of {facts.dim}, and vLLM's sparse kernels are for {SPARSE_DIM}. S"
    elif facts.on_cpu and not SPARSE_ON_CPU:
        wrong = "there are no sparse kernels for a CPU. S"
    else:
        return None
    return (
        f"the model attends long prompts sparsely, and {wrong}et sparse_attention_enabled to false in "
        f"{settings.KEY}, by config.json or --hf-overrides: dense attention gives the same answers or better ones, and "
        "takes longer"
    )


def _cache(facts: Facts) -> str | None:
    if facts.cache_dtype not in ("auto", "float16", "bfloat16", "float32"):
        return (
            f"a KV cache of {facts.cache_dtype} was not proven with dual chunk attention. Its scales are those of one "
            "call of attention, and here are three. Remove --kv-cache-dtype"
        )
    return None


def undivided(stride: int, block: int) -> str | None:
    """Why blocks of `block` tokens do not go with chunks of `stride`; `None` if they do."""
    if stride % block:
        return (
            f"blocks of {block} tokens do not divide a chunk of {stride} (chunk_size - local_size). A block would hold "
            "keys of two chunks, and block tables could not be shifted. Choose a --block-size that divides it"
        )
    return None


def _block(facts: Facts) -> str | None:
    return undivided(settings.read(facts.config).chunking.stride, facts.block) if facts.block else None


def _length(facts: Facts) -> str | None:
    if facts.rope.rows and facts.max_length > facts.rope.rows:
        return (
            f"--max-model-len {facts.max_length} is more than the {facts.rope.rows} positions of the rotary embedding "
            f"(max_position_embeddings). The model was not made for more. Choose at most {facts.rope.rows}"
        )
    return None


def _rope(facts: Facts) -> str | None:
    if facts.rope.kind != "default":
        return (
            f"rope_type {facts.rope.kind} is ignored under dual chunk attention, so the model would not be the one "
            f"that its config describes. Remove rope_type from rope_parameters, or {settings.KEY}"
        )
    return None


def _reuse(facts: Facts) -> str | None:
    chosen = settings.read(facts.config)
    if chosen.whole_prompt and facts.prefix_caching and 0 < chosen.original < facts.max_length:
        return (
            f"with {settings.FACTOR} {settings.PROMPT!r} what is cached of a prefix depends on the length of the "
            "prompt that it came from, and other prompts would reuse it. Add --no-enable-prefix-caching and use no KV "
            f"connector, or leave {settings.FACTOR} at {settings.TOKEN!r}"
        )
    return None


def _backend(facts: Facts) -> str | None:
    # The CPU has one name for all of its backends.
    ours = (BACKEND, "CPU_ATTN") if facts.on_cpu else (BACKEND,)
    if facts.backend is not None and facts.backend not in ours:
        return (
            f"attention backend {facts.backend} does not know dual chunk attention; the model needs {BACKEND}, which "
            "is chosen without a flag. Remove --attention-backend and attention_config.backend"
        )
    return None


def _speculative(facts: Facts) -> str | None:
    if facts.speculative:
        return (
            "speculative decoding was not proven with dual chunk attention: lengths on the host are only upper bounds "
            "then, and chunks are cut by them. Remove --speculative-config"
        )
    return None


def _runner(facts: Facts) -> str | None:
    if facts.runner_v2:
        return (
            "model runner V2 was not proven with dual chunk attention. It builds the metadata of attention in its own "
            f"way. Set {RUNNER}=0"
        )
    return None


def _window(facts: Facts) -> str | None:
    if facts.sliding_window:
        return (
            "the model has layers with a sliding window. A window is a distance, and distances past a chunk are not "
            f"kept by dual chunk attention. Set use_sliding_window to false, or remove {settings.KEY}"
        )
    return None


def _context_parallel(facts: Facts) -> str | None:
    if facts.context_parallel > 1:
        return (
            "context parallelism spreads the blocks of a request over ranks, and block tables can then not be shifted. "
            "Remove --decode-context-parallel-size and --prefill-context-parallel-size"
        )
    return None


def _flash(facts: Facts) -> str | None:
    if facts.flash_version not in (None, 2, 3):
        return (
            f"flash-attention {facts.flash_version} was not proven with dual chunk attention. The plugin takes version "
            "3 on Hopper and 2 elsewhere. Remove flash_attn_version from --attention-config"
        )
    return None


# Settings that were not tried with dual chunk attention: why they may matter, and what to do.
UNTRIED = {
    "microbatches": "microbatches were not proven with dual chunk attention: they cut the plan of a step, by which "
    "chunks are cut. Remove --enable-dbo and --ubatch-size",
    "connector": "a KV connector was not proven with dual chunk attention: it hands on keys that are rotated inside "
    "chunks, and nothing checks that another engine's chunks are the same. Remove --kv-transfer-config and "
    "--kv-offloading-size",
    "stages": "pipeline parallelism was not proven with dual chunk attention. Use --tensor-parallel-size instead",
    "pooling": "pooling was not proven with dual chunk attention. Remove --runner pooling and --convert",
}


def _untried(facts: Facts) -> str | None:
    return "; ".join(UNTRIED[name] for name in facts.untried) or None


@dataclass(frozen=True)
class Layer:
    """What decides whether an attention layer can be computed.

    Attributes:
        config: the `dual_chunk_attention_config` that the model handed to the layer.
        unusual: the names of its arguments that dual chunk attention has no part for.
        decoder: whether its tokens attend earlier ones alone.
    """

    config: Any
    unusual: tuple[str, ...]
    decoder: bool


NO_ROTARY = (
    "the model's attention gets dual_chunk_attention_config, and its rotary embedding does not, or has other numbers "
    "than its config. Queries and keys would be rotated for different kinds of attention. Remove "
    f"{settings.KEY} from the model's config.json"
)


def of_layer(layer: Layer) -> list[str]:
    """Every reason why a layer is not computed; empty if it is."""
    found = []
    if not layer.config:
        found.append(
            "the model's config has dual_chunk_attention_config, and the model does not hand it to all of its "
            "attention layers. Keys would be rotated for dual chunk attention and attended without it. Remove "
            f"{settings.KEY} from the model's config.json"
        )
    if layer.unusual:
        found.append(
            f"the model's attention has {', '.join(layer.unusual)}, which dual chunk attention has no part for. Remove "
            f"{settings.KEY} from the model's config.json"
        )
    if not layer.decoder:
        found.append(
            "a layer attends later tokens too, and dual chunk attention is defined for earlier ones. Remove "
            f"{settings.KEY} from the model's config.json"
        )
    return found


CHECKS: tuple[Callable[[Facts], str | None], ...] = (
    _sparse,
    _cache,
    _block,
    _length,
    _rope,
    _reuse,
    _backend,
    _speculative,
    _runner,
    _window,
    _context_parallel,
    _flash,
    _untried,
)


def reasons(facts: Facts) -> list[str]:
    """Every reason why the model is not served, each with what to do; empty if it is."""
    first = [reason for reason in (unproven(facts.version), _unusable(facts)) if reason]
    # The other checks read the numbers.
    return first or [reason for check in CHECKS if (reason := check(facts))]


def reject(found: list[str]) -> None:
    """Raise what `reasons` found.

    Raises:
        RejectedError: there are reasons.
    """
    if found:
        listed = "".join(f"\n  - {reason}." for reason in found)
        raise RejectedError(f"vllm-dca cannot serve this model with dual chunk attention:{listed}")


def facts(vllm_config: Any, config: Mapping[str, Any], version: str, on_cpu: bool) -> Facts:
    """What decides whether the model of a vLLM configuration is served; `config` is its dual chunk attention's."""
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    attention, text = vllm_config.attention_config, vllm_config.model_config.hf_text_config
    backends = [attention.backend, *(getattr(attention, "backend_per_kind", None) or {}).values()]
    asked = [getattr(backend, "name", str(backend)) for backend in backends if backend is not None]
    chosen = bool(getattr(cache, "user_specified_block_size", False)) or on_cpu
    untried = {
        "microbatches": parallel.use_ubatching,
        "connector": vllm_config.kv_transfer_config is not None,
        "stages": parallel.pipeline_parallel_size > 1,
        "pooling": model.runner_type == "pooling",
    }
    return Facts(
        config=config,
        version=version,
        on_cpu=on_cpu,
        backend=next((name for name in asked if name != BACKEND), asked[0] if asked else None),
        cache_dtype=str(cache.cache_dtype),
        block=int(cache.block_size or 0) if chosen else 0,
        max_length=int(model.max_model_len),
        rope=settings.rope(vllm_config, int(model.get_head_size())),
        sliding_window=_has_window(text),
        speculative=vllm_config.speculative_config is not None,
        runner_v2=bool(vllm_config.use_v2_model_runner),
        context_parallel=max(parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size),
        prefix_caching=bool(cache.enable_prefix_caching) or vllm_config.kv_transfer_config is not None,
        flash_version=attention.flash_attn_version,
        layers=int(text.num_hidden_layers),
        heads=int(text.num_attention_heads),
        dim=int(model.get_head_size()),
        untried=tuple(name for name, on in untried.items() if on),
    )


# What changes nothing that attention gets, and was not proven all the same.
DOUBTFUL = ("LoRA", "prompt embeddings", "expert parallelism", "data parallelism")


def doubtful(vllm_config: Any) -> list[str]:
    """What of `DOUBTFUL` is on."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    many = parallel.data_parallel_size > 1
    on = (vllm_config.lora_config, model.enable_prompt_embeds, parallel.enable_expert_parallel, many)
    return [name for name, value in zip(DOUBTFUL, on, strict=True) if value]


def _has_window(config: Any) -> bool:
    """Whether the config asks for a sliding window: Qwen's has the window's size also where it is not used."""
    used = getattr(config, "use_sliding_window", None)
    kinds = getattr(config, "layer_types", None) or []
    return bool(getattr(config, "sliding_window", None)) and (used is not False or "sliding_attention" in kinds)
