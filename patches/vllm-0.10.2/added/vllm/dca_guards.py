# SPDX-License-Identifier: Apache-2.0
"""Safe defaults and clear refusals for models with dual chunk attention (DCA).

vLLM 0.10.2 can serve these models, but leaves several choices to the user that it does not check: a wrong one
ends in a bare assert, in an error at the first long prompt, or in wrong answers. This module makes the
choices that have only one right answer and refuses the others while the engine is being configured, before
any weight is loaded. A model whose config has no `dual_chunk_attention_config` is left alone.

vLLM calls `register` through its entry point group `vllm.general_plugins`, in every process. Only a process
that builds an engine config meets the hooks; engine and worker processes inherit the environment and the
checked config from it. Setting `VLLM_PLUGINS` to a list without `dca_guards` leaves the guards out.

All functions above `register` take plain values and need neither vLLM nor torch; the hooks below it read
those values from vLLM's objects.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

BACKEND_VAR = "VLLM_ATTENTION_BACKEND"
ENGINE_VAR = "VLLM_USE_V1"
BACKEND = "DUAL_CHUNK_FLASH_ATTN"
TABLE_FILE = "sparse_attention_config.json"
PATTERN = "vertical_and_slash"

CODES: dict[str, str] = {
    "DCA-811": "the attention backend or the engine is not the one that dual chunk attention needs",
    "DCA-812": "CUDA graphs do not work with dual chunk attention",
    "DCA-813": "an FP8 KV cache does not work with dual chunk attention",
    "DCA-814": "prefix caching would reuse keys that were scaled for another length",
    "DCA-815": "max_model_len is larger than the rotary embedding's table",
    "DCA-816": "there is no sparse attention table",
    "DCA-817": "the sparse attention table does not cover the model's layers and heads",
    "DCA-818": "an entry of the sparse attention table is not one that vLLM can use",
    "DCA-819": "dual_chunk_attention_config cannot be used, by itself or with the KV cache's block size",
}

# A child of vLLM's own logger, so that its handlers and its level apply.
_logger = logging.getLogger("vllm.dca_guards")


class GuardError(ValueError):
    """A choice that cannot work with dual chunk attention; `code` is a key of `CODES`."""

    def __init__(self, message: str, code: str) -> None:
        # Both become `args`, which is what pickle makes the exception from in another process.
        super().__init__(message, code)
        self.code = code

    def __str__(self) -> str:
        return str(self.args[0])


def _text(code: str, what: str, why: str, todo: str) -> str:
    """Every message has the same parts in the same order, and ends in its code."""
    return f"{what}. {why}. {todo}. ({code})"


def _refusal(code: str, what: str, why: str, todo: str) -> GuardError:
    return GuardError(_text(code, what, why, todo), code)


class Chunks(NamedTuple):
    """The numbers of `dual_chunk_attention_config`, checked."""

    chunk_size: int
    local_size: int
    original_max: int  # 0: keys are not scaled by length

    @property
    def chunk_len(self) -> int:
        """How many tokens one chunk advances."""
        return self.chunk_size - self.local_size


def read_chunks(config: object) -> Chunks:
    """Check the numbers of a `dual_chunk_attention_config`.

    The attention backend has defaults for the two sizes and the rotary embedding has none, so a config
    without them fails while the model is built; a chunk of no length divides by zero at the first prompt.
    """
    if not isinstance(config, Mapping):
        raise _refusal(
            "DCA-819",
            f"dual_chunk_attention_config is not an object but {config!r}",
            "vLLM reads chunk_size and local_size from it",
            "Restore it from the model's original config.json, or remove the key to serve without it",
        )
    chunk: Any = config.get("chunk_size")
    local: Any = config.get("local_size")
    original: Any = config.get("original_max_position_embeddings", 0)
    if not (_is_whole(chunk) and _is_whole(local) and _is_whole(original) and chunk > local):
        raise _refusal(
            "DCA-819",
            f"dual_chunk_attention_config has chunk_size={chunk!r}, local_size={local!r} and "
            f"original_max_position_embeddings={original!r}",
            "Both sizes must be whole numbers with chunk_size > local_size >= 0, and the third a whole "
            "number or absent",
            "Restore the values from the model's original config.json",
        )
    return Chunks(chunk, local, original)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def choose_backend(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to set so that the one backend which can serve DCA is taken.

    Every other backend fails on the arguments that the model passes, and this one exists for V0 only.
    """
    backend, engine = environ.get(BACKEND_VAR, ""), environ.get(ENGINE_VAR, "")
    why = f"Only the backend {BACKEND} on the V0 engine computes dual chunk attention"
    if backend not in ("", BACKEND):
        raise _refusal(
            "DCA-811",
            f"The model's config has dual_chunk_attention_config, but {BACKEND_VAR}={backend} is set",
            why,
            f"Unset {BACKEND_VAR}, or set it to {BACKEND}",
        )
    if engine not in ("", "0"):
        raise _refusal(
            "DCA-811",
            f"The model's config has dual_chunk_attention_config, but {ENGINE_VAR}={engine} is set, by you "
            "or by an engine that this process started earlier",
            why,
            f"Unset {ENGINE_VAR} or set it to 0, and start this model in a process of its own",
        )
    wanted = {BACKEND_VAR: BACKEND, ENGINE_VAR: "0"}
    return {name: value for name, value in wanted.items() if environ.get(name, "") != value}


def backend_notice(chosen: Mapping[str, str]) -> str:
    """Say which variables were set on the user's behalf."""
    return _text(
        "DCA-811",
        "Using " + " ".join(f"{name}={value}" for name, value in chosen.items()),
        "The model's config has dual_chunk_attention_config, and nothing else can serve it",
        "There is nothing to do, except to start other models in processes of their own",
    )


def check_eager(enforce_eager: bool) -> None:
    """Refuse CUDA graphs: they would replay lengths that the backend computes anew in every step."""
    if not enforce_eager:
        raise _refusal(
            "DCA-812",
            "CUDA graphs are on, and the model uses dual chunk attention",
            "The lengths of its chunks are computed on the CPU in every step, and a captured graph would "
            "repeat old ones",
            "Pass --enforce-eager, or enforce_eager=True in Python",
        )


def check_kv_cache_dtype(dtype: str) -> None:
    """Refuse an FP8 KV cache, whose bytes the backend would hand to 16-bit kernels. FP8 weights are fine."""
    if dtype.startswith("fp8"):
        raise _refusal(
            "DCA-813",
            f"The KV cache was asked for as {dtype}, and the model uses dual chunk attention",
            "Its kernels read 16-bit keys and values only",
            "Remove --kv-cache-dtype; to save memory, --quantization fp8 (weights) works",
        )


def check_prefix_caching(enabled: bool | None, max_model_len: int, original_max: int) -> bool | None:
    """Return the setting to use; refuse prefix caching where cached keys depend on the request's length.

    Past the original length, keys are multiplied by a factor of the request's total length before they are
    cached. A block that another request reuses would carry the factor of the first one.
    """
    if not 0 < original_max < max_model_len:
        return enabled
    if enabled:
        raise _refusal(
            "DCA-814",
            f"Prefix caching is on with max_model_len={max_model_len}, past the model's original length of "
            f"{original_max}",
            "There, dual chunk attention scales keys by the length of the whole request before it caches "
            "them, so a request of another length would reuse keys with a wrong scale",
            f"Remove --enable-prefix-caching, or pass --max-model-len {original_max} or less",
        )
    return False


def length_notice(asked: int, rows: int) -> str:
    """Say that a length was capped at the number of rows of the rotary embedding's table."""
    return _text(
        "DCA-815",
        f"max_model_len={asked} was reduced to {rows}",
        f"With dual chunk attention the rotary embedding has a table of max_position_embeddings={rows} rows, "
        "whatever VLLM_ALLOW_LONG_MAX_MODEL_LEN and rope_scaling say; a position past them stops the GPU "
        "with a device-side assert",
        f"Pass --max-model-len {rows} or less to silence this line",
    )


def check_block_size(chunks: Chunks, block_size: int) -> None:
    """Refuse a block size that a chunk's border would cut: the backend takes whole blocks of the KV cache."""
    if chunks.chunk_len % block_size:
        raise _refusal(
            "DCA-819",
            f"chunk_size - local_size = {chunks.chunk_size} - {chunks.local_size} = {chunks.chunk_len} is "
            f"not a multiple of the KV cache's block size, {block_size}",
            "A chunk must begin and end at a block's border, or the first prompt fails",
            "Leave --block-size at its default; if it is, correct the two sizes in config.json",
        )


def check_sparse_table(config: Mapping[str, Any], layers: int, heads: int, model: str) -> str | None:
    """Refuse a sparse attention table that the model would trip over; return a warning if there is none.

    vLLM indexes the table by layer and by head while it builds the model, and reads the entries at the first
    prompt that is long enough. Without a table that is asked for, that prompt kills the engine.
    """
    table = config.get("sparse_attention_config")
    # The same default as the backend's.
    enabled = config.get("sparse_attention_enabled", table is not None)
    if not table:
        return _missing_table("sparse_attention_enabled" in config, enabled, model)
    rows = _table_rows(table, layers, heads)
    if enabled:
        for layer, row in enumerate(rows):
            for head, entry in row.items():
                _check_entry(entry, layer, head)
    return None


def _missing_table(flag_given: bool, enabled: bool, model: str) -> str | None:
    why = (
        f"vLLM looks for {TABLE_FILE} beside config.json in {model}, and for sparse_attention_config inside "
        "dual_chunk_attention_config, and found neither"
    )
    todo = f"Put the model's own {TABLE_FILE} there, or set sparse_attention_enabled to false"
    if enabled:
        raise _refusal(
            "DCA-816",
            "sparse_attention_enabled is true, and the model has no sparse attention table",
            f"{why}; the first prompt past the sparse threshold would stop the engine",
            todo,
        )
    if flag_given:
        return None  # switched off on purpose
    return _text(
        "DCA-816",
        "Dual chunk attention will run dense, which is slow for long prompts",
        why,
        f"{todo} to silence this line",
    )


def _table_rows(table: object, layers: int, heads: int) -> list[dict[int, Any]]:
    """Return the entries by head, for each layer of the model."""
    if not isinstance(table, list):
        raise _uncovered("is not a list with one object per layer", layers, heads)
    if len(table) < layers:
        raise _uncovered(f"has {len(table)} layers", layers, heads)
    rows: list[dict[int, Any]] = []
    for layer, entries in enumerate(table[:layers]):
        if not isinstance(entries, Mapping):
            raise _uncovered(f"has no object with the heads of layer {layer}", layers, heads)
        try:
            by_head = {int(head): entry for head, entry in entries.items()}
        except ValueError:
            raise _uncovered(f"names a head of layer {layer} that is not a number", layers, heads) from None
        row = {head: by_head[head] for head in range(heads) if head in by_head}
        if len(row) < heads:
            raise _uncovered(f"has {len(row)} of these heads in layer {layer}", layers, heads)
        rows.append(row)
    return rows


def _uncovered(found: str, layers: int, heads: int) -> GuardError:
    return _refusal(
        "DCA-817",
        f"The sparse attention table {found}, and the model has {layers} layers of {heads} query heads",
        "vLLM takes an entry for every layer and head, so this table is another model's or incomplete",
        f"Use the {TABLE_FILE} that was published with this model",
    )


def _check_entry(entry: object, layer: int, head: int) -> None:
    if isinstance(entry, Sequence) and len(entry) == 4 and entry[0] == PATTERN:
        sizes = entry[1:3]
        if all(isinstance(size, (int, float)) and size >= 1 for size in sizes):
            return
    raise _refusal(
        "DCA-818",
        f"The sparse attention table's entry for layer {layer}, head {head} is {entry!r}",
        f'An entry must be ["{PATTERN}", vertical size, slash size, score]; no other type has a kernel',
        f"Use the {TABLE_FILE} that was published with this model",
    )


def register() -> None:
    """Put the guards around vLLM's own methods; calling it again changes nothing."""
    from vllm.config import ModelConfig
    from vllm.engine.arg_utils import EngineArgs

    # Where the length is decided: before upstream's own check, whose advice to override it is wrong here.
    _wrap(ModelConfig, "get_and_verify_max_len", _verify_length)
    # The first place that knows the model's config; the choice between V0 and V1 comes right after it.
    _wrap(EngineArgs, "create_model_config", _create_model_config)
    # Every default is filled in and upstream has loaded the sparse table. A refusal inside the configs' own
    # validation would come out wrapped in pydantic's text.
    _wrap(EngineArgs, "create_engine_config", _create_engine_config)


_MARK = "_dca_guard"


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    original = getattr(owner, name)
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(guarded, _MARK, True)
    setattr(owner, name, guarded)


def _dca_config(model_config: Any) -> Any:
    """Return the model's `dual_chunk_attention_config`, or None if it does not ask for DCA."""
    return getattr(model_config.hf_config, "dual_chunk_attention_config", None)


def _verify_length(original: Callable[..., int], model_config: Any, max_model_len: int | None) -> int:
    if _dca_config(model_config) is None:
        return original(model_config, max_model_len)
    rows: int = model_config.hf_text_config.max_position_embeddings
    derived = original(model_config, None if max_model_len is None else min(max_model_len, rows))
    wished = derived if max_model_len is None else max_model_len
    if wished > rows:
        _logger.warning("%s", length_notice(wished, rows))
    # With nothing asked, upstream multiplies the length by rope_scaling's factor.
    return min(derived, rows)


def _create_model_config(original: Callable[..., Any], engine_args: Any) -> Any:
    model_config = original(engine_args)
    config = _dca_config(model_config)
    if config is None:
        return model_config
    chunks = read_chunks(config)
    chosen = choose_backend(os.environ)
    check_eager(engine_args.enforce_eager)
    # Here "not set" can still be told from "on".
    engine_args.enable_prefix_caching = check_prefix_caching(
        engine_args.enable_prefix_caching, model_config.max_model_len, chunks.original_max
    )
    if ENGINE_VAR in chosen:
        # While the variable was unset, upstream took V1's default seed.
        model_config.seed = engine_args.seed
    if chosen:
        os.environ.update(chosen)
        _logger.info("%s", backend_notice(chosen))
    return model_config


def _create_engine_config(original: Callable[..., Any], engine_args: Any, *args: Any, **kwargs: Any) -> Any:
    vllm_config = original(engine_args, *args, **kwargs)
    model_config, cache_config = vllm_config.model_config, vllm_config.cache_config
    config = _dca_config(model_config)
    if config is None:
        return vllm_config
    check_kv_cache_dtype(cache_config.cache_dtype)
    check_block_size(read_chunks(config), cache_config.block_size)
    text_config = model_config.hf_text_config
    notice = check_sparse_table(
        config, text_config.num_hidden_layers, text_config.num_attention_heads, model_config.model
    )
    if notice is not None:
        _logger.warning("%s", notice)
    return vllm_config
