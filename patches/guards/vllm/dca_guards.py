# SPDX-License-Identifier: Apache-2.0
"""Safe defaults and clear refusals for models with dual chunk attention (DCA).

vLLM leaves several choices to the user that it does not check: a wrong one ends in a bare assert, in an error at
the first long prompt, or in wrong answers. The checks here make the choices that have only one right answer and
refuse the others. Of a model whose config has no `dual_chunk_attention_config` only what the wheel lacks is checked.

The module belongs to no version of vLLM and imports neither it nor torch: a check takes plain values, and what is
read from vLLM's objects at the end has the same names in all versions with DCA. `dca_hooks`, which each version has
of its own, calls them while the engine is being configured, before any weight is loaded. `vllm.vllm_flash_attn` calls
`guard_attention` when it is imported.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

BACKEND_VAR = "VLLM_ATTENTION_BACKEND"
ENGINE_VAR = "VLLM_USE_V1"
PLUGINS_VAR = "VLLM_PLUGINS"
BACKEND = "DUAL_CHUNK_FLASH_ATTN"
# The name of the guards among vLLM's plugins.
PLUGIN = "dca_guards"
TABLE_FILE = "sparse_attention_config.json"
PATTERN = "vertical_and_slash"
# What flash-attention asks of the blocks of a paged KV cache.
KERNEL_BLOCK = 16
# The rows of queries that share one list of blocks and columns.
ROWS = 64
# The slash lines that the backend takes before all others: those of the nearest keys.
NEAREST = 100
# The keys that the backend gives a head in a chunk where it has chosen none.
FEW = 5
# Where the V0 engines that enforce structured output have the code for it.
GUIDED_MODULE = "vllm.model_executor.guided_decoding"
STEP_OP = "advance_step_flashattn"
NGRAM = "[ngram]"
# The sizes that flash-attention's kernels are made for are multiples of this; a head of another size takes the next.
HEAD_STEP = 32
# The only head dimension that upstream's sparse kernels are compiled for.
SPARSE_HEAD_DIMS = (128,)
# Speculators that have no attention of their own.
NO_ATTENTION = ("medusa", "mlp_speculator")

CODES: dict[str, str] = {
    "DCA-811": "the attention backend or the engine is not the one that dual chunk attention needs",
    "DCA-812": "CUDA graphs do not work with dual chunk attention",
    "DCA-813": "an FP8 KV cache does not work with dual chunk attention",
    "DCA-814": "keys that were scaled for another length would be reused",
    "DCA-815": "max_model_len is larger than the rotary embedding's table",
    "DCA-816": "there is no sparse attention table",
    "DCA-817": "the sparse attention table does not cover the model's layers and heads",
    "DCA-818": "an entry of the sparse attention table is not one that vLLM can use",
    "DCA-819": "dual_chunk_attention_config cannot be used, by itself or with the KV cache's block size",
    "DCA-820": "without chunked prefill, prompts past one chunk get wrong answers",
    "DCA-821": "the model or the wheel cannot decode several tokens per step",
    "DCA-822": "so many tokens per step overflow the sparse kernel's offsets",
    "DCA-823": "there are no attention kernels for the data type or the head dimension",
    "DCA-824": "the guards of dual chunk attention are not loaded",
    "DCA-825": "the engine ignores structured output and named tools",
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


def check_backend_without_dca(environ: Mapping[str, str]) -> None:
    """Refuse the backend of DCA for a model whose config does not ask for it: it would end in a bare assert."""
    if environ.get(BACKEND_VAR, "") == BACKEND:
        raise _refusal(
            "DCA-811",
            f"{BACKEND_VAR}={BACKEND} is set, by you or by an engine that this process started earlier, but the "
            "model's config has no dual_chunk_attention_config",
            "That backend takes the sizes of its chunks from there, and serves no other models",
            f"Unset {BACKEND_VAR} and start this model in a process of its own, or restore the key from the model's "
            "original config.json",
        )


def eager_notice() -> str:
    """Say that CUDA graphs were turned off: they would replay lengths that the backend computes in every step."""
    return _text(
        "DCA-812",
        "Using --enforce-eager, without CUDA graphs",
        "The model uses dual chunk attention, whose chunk lengths are computed on the CPU in every step, and a "
        "captured graph would repeat old ones",
        "Pass --enforce-eager, or enforce_eager=True in Python, to silence this line",
    )


def refuse_structure() -> NoReturn:
    """Refuse a request that asks for structured output, which the engine would ignore without an error."""
    raise _refusal(
        "DCA-825",
        "The request asks for structured output (response_format, guided_json and the like) or names a tool",
        "The model uses dual chunk attention, and the V0 engine of this vLLM, which alone has it, ignores that",
        "Validate answers in the client, let the model choose its tools, or serve with a wheel of vLLM 0.9.2",
    )


def plugins_notice(environ: Mapping[str, str]) -> str | None:
    """Return a warning if the user's list of vLLM's plugins leaves the guards out."""
    listed = environ.get(PLUGINS_VAR)
    # The same reading as vLLM's.
    if listed is None or PLUGIN in listed.split(","):
        return None
    return _text(
        "DCA-824",
        f"{PLUGINS_VAR}={listed} leaves out {PLUGIN}",
        "Wrong settings for models with dual chunk attention are then not refused, and neither the attention backend "
        "nor the engine is chosen for them",
        f"Add {PLUGIN} to {PLUGINS_VAR}, or unset it",
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


def check_transfer(connector: str | None, max_model_len: int, original_max: int) -> None:
    """Refuse a KV connector where cached keys depend on the request's length, as prefix caching is refused.

    What a connector stores or sends is taken up by whichever request begins with the same tokens.

    Args:
        connector: name of the one in `--kv-transfer-config`, if there is one.
        max_model_len: of the engine.
        original_max: up to this length keys are not scaled; 0 if they never are.
    """
    if connector and 0 < original_max < max_model_len:
        raise _refusal(
            "DCA-814",
            f"--kv-transfer-config names the connector {connector} with max_model_len={max_model_len}, past the "
            f"model's original length of {original_max}",
            "There, dual chunk attention scales keys by the length of the whole request before it caches them, so a "
            "request of another length would take over keys with a wrong scale",
            f"Remove --kv-transfer-config, or pass --max-model-len {original_max} or less",
        )


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
    """Refuse a block size that a chunk's border would cut, or that the kernels do not read.

    The backend takes whole blocks of the KV cache. vLLM offers blocks of 8 tokens too, and turns to another
    backend for them where the choice is its own.
    """
    if block_size % KERNEL_BLOCK:
        raise _refusal(
            "DCA-819",
            f"The KV cache's block size is {block_size}, and the model uses dual chunk attention",
            f"Its kernels read blocks of a multiple of {KERNEL_BLOCK} tokens, and the first token would be refused",
            "Leave --block-size at its default",
        )
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


def check_sparse_heads(config: Mapping[str, Any], head_dim: int, has: Sequence[int]) -> None:
    """Refuse a sparse attention table for heads that the sparse kernel is not compiled for.

    Args:
        config: `dual_chunk_attention_config`.
        head_dim: of the model.
        has: head dimensions of the sparse kernel.
    """
    table = config.get("sparse_attention_config")
    if not table or not config.get("sparse_attention_enabled", True) or head_dim in has:
        return
    raise _refusal(
        "DCA-823",
        f"The model has a sparse attention table and head dimension {head_dim}",
        f"The sparse kernels are compiled for head dimension {' and '.join(map(str, has))} only, and the first prompt "
        "past the sparse threshold would stop the engine",
        "Set sparse_attention_enabled to false in dual_chunk_attention_config of config.json, which is slower for long "
        "prompts",
    )


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


def check_lines(
    config: Mapping[str, Any], layers: int, heads: int, gpus: int, max_model_len: int, chunk_len: int
) -> None:
    """Refuse a head that may be left without a slash line in its own chunk, which the conversion of indices needs.

    A head with n < 100 lines gets any n of the 100 nearest. Where the queries end at most 100 - n tokens behind a
    chunk's border, they can all lie before it. The kernel then takes the filling of its buffer for a line, and fills
    its list of columns without an end. A chunk of n < 100 tokens limits the lines of every head to n: the backend keeps
    what it limits them to in the first chunk.

    A head that has chosen no key in a chunk is given five there, which must fit into the list of the GPU's widest head.

    Args:
        config: `dual_chunk_attention_config`, its table checked.
        layers: of the model.
        heads: query heads of the model.
        gpus: how many share them.
        max_model_len: of the engine.
        chunk_len: prompts up to this length have one chunk, and every line lies in it.
    """
    table = config.get("sparse_attention_config")
    if not table or not config.get("sparse_attention_enabled", True) or max_model_len <= chunk_len:
        return
    if chunk_len < NEAREST:
        raise _refusal(
            "DCA-819",
            f"A chunk has {chunk_len} tokens (chunk_size - local_size), and at least {NEAREST} are required for sparse "
            "attention past one chunk",
            "vLLM gives no head more lines than the first chunk has tokens, and with fewer it may choose none in the "
            "chunk that the prompt ends in; the kernel that converts indices then does not end and writes past its "
            "buffers",
            "Correct the two sizes in config.json, set sparse_attention_enabled to false there, or pass "
            f"--max-model-len {chunk_len} or less",
        )
    for layer, row in enumerate(_table_rows(table, layers, heads)):
        on_one = heads // gpus
        for first in range(0, heads, on_one):
            most = max(row[head][1] for head in range(first, min(first + on_one, heads)))
            if most < FEW:
                raise _refusal(
                    "DCA-818",
                    f"The sparse attention table gives the heads {first} to {first + on_one - 1} of layer {layer}, "
                    f"those of one GPU, at most {most} vertical lines, and one of them needs {FEW} for prompts past "
                    f"one chunk of {chunk_len} tokens",
                    f"vLLM gives a head that has chosen no key in a chunk {FEW} keys, has no room for them, and would "
                    "stop at the first such prompt",
                    f"Use the {TABLE_FILE} that was published with this model, give each head at least {FEW} vertical "
                    f"lines, or pass --max-model-len {chunk_len} or less",
                )
        for head, (_, _, slash, _) in row.items():
            if slash < NEAREST:
                raise _refusal(
                    "DCA-818",
                    f"The sparse attention table's entry for layer {layer}, head {head} has {slash} slash lines, and "
                    f"at least {NEAREST} are required for prompts past one chunk of {chunk_len} tokens",
                    "With fewer, vLLM may choose none in the chunk that the prompt ends in; the kernel that converts "
                    "indices then does not end and writes past its buffers",
                    f"Use the {TABLE_FILE} that was published with this model, give the head at least {NEAREST} slash "
                    f"lines, or pass --max-model-len {chunk_len} or less",
                )


def check_chunked_prefill(enabled: bool, max_model_len: int, chunk_len: int) -> None:
    """Refuse prefill in one piece for prompts past one chunk, which then all get wrong answers.

    The backend takes "no blocks of earlier keys" for the run that measures memory, where it computes ordinary
    attention, and vLLM passes those blocks for a prompt only if prefill is chunked.
    """
    if enabled or max_model_len <= chunk_len:
        return
    raise _refusal(
        "DCA-820",
        f"Chunked prefill is off with max_model_len={max_model_len}, past one chunk of {chunk_len} tokens",
        "Without it the attention backend computes every prompt as one chunk, and the answers to longer ones are "
        "wrong without an error; vLLM leaves it off by itself for LoRA, prompt adapters and speculative decoding",
        f"Pass --enable-chunked-prefill, or --max-model-len {chunk_len} or less",
    )


def check_steps(steps: int, uses_dca: bool, has_op: bool) -> None:
    """Refuse several decoding steps per scheduling step, where the backend or the wheel has none."""
    what = f"--num-scheduler-steps {steps} was asked for"
    todo = "Remove --num-scheduler-steps"
    if steps > 1 and uses_dca:
        raise _refusal(
            "DCA-821",
            f"{what}, and the model uses dual chunk attention",
            "The lengths of its chunks are computed once per scheduling step, and the second token would not see the "
            "first",
            todo,
        )
    if steps > 1 and not has_op:
        raise _refusal(
            "DCA-821",
            f"{what}, and this wheel was built without the op {STEP_OP}",
            "The second step of the first answer would stop the engine",
            f"{todo}, or install a wheel that was built with --profile full",
        )


def check_draft(model: str, model_type: str, target_uses_dca: bool, draft_uses_dca: bool, has_op: bool) -> None:
    """Refuse a draft model for speculative decoding, where its attention or the wheel cannot serve it."""
    if model == NGRAM or model_type in NO_ATTENTION:
        return
    what = f"Speculative decoding with the draft model {model} was asked for"
    todo = f"Remove --speculative-model, or use --speculative-model {NGRAM}, which has no draft model"
    if target_uses_dca and not draft_uses_dca:
        raise _refusal(
            "DCA-821",
            f"{what}, and only the model that it drafts for uses dual chunk attention",
            f"Both share one attention backend, and {BACKEND} serves no other models",
            todo,
        )
    # The backend of DCA models computes drafts step by step and calls no op for it.
    if not target_uses_dca and not has_op:
        raise _refusal(
            "DCA-821",
            f"{what}, and this wheel was built without the op {STEP_OP}",
            "The second drafted token would stop the engine",
            f"{todo}, or install a wheel that was built with --profile full",
        )


def check_sparse_lists(
    config: Mapping[str, Any], layers: int, heads: int, gpus: int, tokens: int, chunk_len: int
) -> None:
    """Refuse more tokens per step than the sparse kernel can find its lists for.

    It has a list of blocks and one of columns for each head and each 64 queries, all as wide as the widest of the
    layer, and counts the offset of a list in 32 bits. Past them it reads from elsewhere.

    Args:
        config: `dual_chunk_attention_config`, its table checked.
        layers: of the model.
        heads: query heads of the model.
        gpus: how many share them.
        tokens: the most that are computed in one step.
        chunk_len: what one call of the kernel stays within.
    """
    table = config.get("sparse_attention_config")
    if not table or not config.get("sparse_attention_enabled", True):
        return
    # The backend looks for 100 vertical lines more where the table says 30.
    entries = (entry for row in _table_rows(table, layers, heads) for entry in row.values())
    widest = int(max(max(vertical + 100 * (vertical == 30), slash) for _, vertical, slash, _ in entries))
    rows, on_one = -(-min(tokens, chunk_len) // ROWS), heads // gpus
    if on_one * rows * widest < 2**31:
        return
    fitting = (2**31 - 1) // (on_one * widest) * ROWS
    raise _refusal(
        "DCA-822",
        f"max_num_batched_tokens={tokens} is too many for sparse attention with {on_one} heads on a GPU and lists of "
        f"up to {widest} entries",
        "The sparse kernel counts its lists in 32 bits, and past them it reads memory that is not its own",
        f"Pass --max-num-batched-tokens {fitting} or less, or a larger --tensor-parallel-size",
    )


class Kernels(NamedTuple):
    """The attention kernels of the wheel, and those of upstream that were left out of it.

    Each of the latter has the options of a build that adds it to `command`, which builds this wheel.
    """

    head_dims: tuple[int, ...]
    dtypes: tuple[str, ...]
    missing_head_dims: Mapping[int, str]
    missing_dtypes: Mapping[str, str]
    command: str

    def lacking(self, dtype: str, head_dim: int) -> list[str]:
        """What the kernels for such heads lack, in words; nothing where upstream has none either.

        Args:
            dtype: as torch names it.
            head_dim: elements of a head.
        """
        size = self._size(head_dim)
        lacking = [f"head dimension {head_dim}"] if size in self.missing_head_dims else []
        return [*lacking, *([dtype] if size and dtype in self.missing_dtypes else [])]

    def build(self, dtype: str, head_dim: int) -> str:
        """The command that builds the wheel with such kernels."""
        size = self._size(head_dim)
        options = {self.missing_head_dims.get(size, ""), self.missing_dtypes.get(dtype, "")} - {""}
        # What builds everything needs no groups besides.
        everything = [option for option in options if not option.startswith("--with")]
        return " ".join([self.command, *(everything[:1] or sorted(options))])

    def _size(self, head_dim: int) -> int:
        """The size of the kernel that heads are computed with; 0 if upstream has none either."""
        known = sorted({*self.head_dims, *self.missing_head_dims})
        return next((size for size in known if head_dim <= size), 0)

    def __str__(self) -> str:
        return f"{' and '.join(self.dtypes)} with head dimension {' and '.join(map(str, self.head_dims))}"


def read_kernels(record: object) -> Kernels | None:
    """Read the wheel's `dca.json`; None if nothing was left out of the wheel.

    Raises:
        LookupError, TypeError, ValueError: for a record of another form.
    """
    if not isinstance(record, Mapping) or "left_out" not in record:
        return None  # a wheel from before there was anything to leave out
    serves, left = record["serves"], record["left_out"]
    kernels = Kernels(
        head_dims=tuple(map(int, serves["head_dims"])),
        dtypes=tuple(map(str, serves["dtypes"])),
        missing_head_dims={int(size): str(option) for size, option in left["head_dims"].items()},
        missing_dtypes={str(dtype): str(option) for dtype, option in left["dtypes"].items()},
        command=str(left["command"]),
    )
    return kernels if kernels.missing_head_dims or kernels.missing_dtypes else None


def check_kernels(kernels: Kernels, dtype: str, head_dim: int, backend: str) -> None:
    """Refuse a model that the wheel has no attention kernels for, which would stop the engine at the first prompt.

    Args:
        kernels: of the wheel.
        dtype: that the model is computed in, as torch names it.
        head_dim: of the model.
        backend: the value of VLLM_ATTENTION_BACKEND.
    """
    # Other backends have kernels of their own, and vLLM takes one of them for heads of a size between two kernels.
    if (backend and "FLASH_ATTN" not in backend) or head_dim % HEAD_STEP:
        return
    lacking = kernels.lacking(dtype, head_dim)
    if lacking:
        todo = f"Install a wheel that was built with: {kernels.build(dtype, head_dim)}"
        others = [other for other in kernels.dtypes if not kernels.lacking(other, head_dim)]
        if others:
            todo = f"Pass --dtype {others[0]}. Or install a wheel that was built with: {kernels.build(dtype, head_dim)}"
        raise _refusal(
            "DCA-823",
            f"The model is to be computed in {dtype} with head dimension {head_dim}, and this wheel has no attention "
            f"kernels for {' in '.join(lacking)}",
            f"It has them for {kernels} only, and the first prompt would stop the engine",
            todo,
        )


def check_call(kernels: Kernels, name: str, dtype: str, head_dim: int) -> None:
    """Refuse a call of an attention function that the wheel has no kernels for.

    Args:
        kernels: of the wheel.
        name: of the function.
        dtype: of the queries, as torch names it.
        head_dim: of the queries.
    """
    lacking = kernels.lacking(dtype, head_dim)
    if lacking:
        raise _refusal(
            "DCA-823",
            f"{name} was called in {dtype} with head dimension {head_dim}, and this wheel has no kernels for "
            f"{' in '.join(lacking)}",
            f"It has them for {kernels} only",
            f"Install a wheel that was built with: {kernels.build(dtype, head_dim)}",
        )


# What every version's hooks share. The names that are read here are the same in all of them.


_MARK = "_dca_guard"


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Put a hook around a function of a class or a module; doing it again changes nothing."""
    original = getattr(owner, name)
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(guarded, _MARK, True)
    setattr(owner, name, guarded)


@functools.lru_cache(maxsize=1)
def wheel_kernels() -> Kernels | None:
    """Return the attention kernels that the wheel's own record says it has; None if nothing is known to be missing."""
    package = Path(__file__).resolve().parent
    for installed in importlib.metadata.distributions(name=package.name, path=[str(package.parent)]):
        record = installed.read_text("dca.json")
        try:
            return read_kernels(json.loads(record)) if record else None
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            _logger.warning("dca.json of this wheel cannot be read, so its kernels are not checked: %s", error)
    return None


def guard_structure(params: Any) -> None:
    """Let requests for structured output refuse themselves, if the engine of a model with DCA ignores them.

    Args:
        params: the class of their parameters; a server answers its ValueError with HTTP 400.
    """
    if importlib.util.find_spec(GUIDED_MODULE) is not None:
        return

    def refused(_original: Callable[..., None], _params: Any) -> None:
        refuse_structure()

    wrap(params, "__post_init__", refused)


def guard_attention(package: str) -> None:
    """Let the public functions of an imported flash-attention package refuse what the wheel has no kernels for.

    It also warns if the other guards are not loaded.
    """
    # The one place that is reached without the plugin.
    notice = plugins_notice(os.environ)
    if notice is not None:
        _logger.warning("%s", notice)
    kernels = wheel_kernels()
    if kernels is not None:
        guard_functions(sys.modules[package], kernels)


def guard_functions(package: Any, kernels: Kernels) -> None:
    """Put the check around each public function of a package that takes queries first, also where it is defined."""

    def checked(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        q = args[0] if args else kwargs["q"]
        check_call(kernels, original.__name__, _name_of(q.dtype), q.shape[-1])
        return original(*args, **kwargs)

    for name, function in list(vars(package).items()):
        if inspect.isfunction(function) and not name.startswith("_") and next(_parameters(function), "") == "q":
            home = sys.modules[function.__module__]
            wrap(home, name, checked)
            setattr(package, name, getattr(home, name))


def _parameters(function: Callable[..., Any]) -> Iterator[str]:
    return iter(inspect.signature(function).parameters)


def _name_of(dtype: object) -> str:
    """Return torch's name of a data type."""
    return str(dtype).rpartition(".")[2]


def dca_config(hf_config: Any) -> Any:
    """Return the model's `dual_chunk_attention_config`, or None if it does not ask for DCA."""
    return getattr(hf_config, "dual_chunk_attention_config", None)


def capped_length(derive: Callable[[int | None], int], asked: int | None, rows: int) -> int:
    """Return the length that upstream derives from the one that was asked for, never past the rotary table.

    Asked for no more than there are rows, upstream does not come to its own advice to override the limit.
    """
    derived = derive(None if asked is None else min(asked, rows))
    wished = derived if asked is None else asked
    if wished > rows:
        _logger.warning("%s", length_notice(wished, rows))
    # With nothing asked, upstream multiplies the length by rope_scaling's factor.
    return min(derived, rows)


def check_model(model_config: Any, engine_args: Any) -> dict[str, str]:
    """Check what is known as soon as the model's config is read, and choose the backend.

    Returns:
        The environment variables that were set.
    """
    config = dca_config(model_config.hf_config)
    if config is None:
        check_backend_without_dca(os.environ)
        return {}
    chunks = read_chunks(config)
    chosen = choose_backend(os.environ)
    if not engine_args.enforce_eager:
        # Both are read from here on: by the engine's arguments, and by everything that is made from the config.
        engine_args.enforce_eager = model_config.enforce_eager = True
        _logger.info("%s", eager_notice())
    # Here "not set" can still be told from "on", in the versions that know the difference.
    engine_args.enable_prefix_caching = check_prefix_caching(
        engine_args.enable_prefix_caching, model_config.max_model_len, chunks.original_max
    )
    if chosen:
        os.environ.update(chosen)
        _logger.info("%s", backend_notice(chosen))
    return chosen


def check_engine(vllm_config: Any, sparse_head_dims: Sequence[int] | None = SPARSE_HEAD_DIMS) -> None:
    """Check the whole config: every default is filled in and vLLM has loaded the sparse attention table.

    Args:
        vllm_config: vLLM's whole config.
        sparse_head_dims: head dimensions of the sparse kernels of this version; None if they have those of the dense
            ones.
    """
    model_config, kernels = vllm_config.model_config, wheel_kernels()
    if kernels is not None and _on_gpu(vllm_config):
        dtype, backend = _name_of(model_config.dtype), os.environ.get(BACKEND_VAR, "")
        check_kernels(kernels, dtype, model_config.get_head_size(), backend)
    config = dca_config(model_config.hf_config)
    if config is None:
        return
    cache_config, scheduler_config = vllm_config.cache_config, vllm_config.scheduler_config
    text_config = model_config.hf_text_config
    chunks, heads = read_chunks(config), text_config.num_attention_heads
    check_kv_cache_dtype(cache_config.cache_dtype)
    check_block_size(chunks, cache_config.block_size)
    check_chunked_prefill(scheduler_config.chunked_prefill_enabled, model_config.max_model_len, chunks.chunk_len)
    transfer = vllm_config.kv_transfer_config
    check_transfer(transfer and transfer.kv_connector, model_config.max_model_len, chunks.original_max)
    notice = check_sparse_table(config, text_config.num_hidden_layers, heads, model_config.model)
    gpus, tokens = vllm_config.parallel_config.tensor_parallel_size, scheduler_config.max_num_batched_tokens
    check_lines(config, text_config.num_hidden_layers, heads, gpus, model_config.max_model_len, chunks.chunk_len)
    if sparse_head_dims is not None and _on_gpu(vllm_config):
        check_sparse_heads(config, model_config.get_head_size(), sparse_head_dims)
    check_sparse_lists(config, text_config.num_hidden_layers, heads, gpus, tokens, chunks.chunk_len)
    if notice is not None:
        _logger.warning("%s", notice)


def _on_gpu(vllm_config: Any) -> bool:
    """Whether attention is computed by the wheel's own kernels; engines for CPUs have others."""
    return bool(vllm_config.device_config.device_type == "cuda")
