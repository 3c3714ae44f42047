"""Chooses an engine's settings: the documented ones, and the first that fit among those that the user leaves open."""

from __future__ import annotations

from collections.abc import Iterator

from dca.catalogue import releases
from dca.config.config_rules import can_share
from dca.serve import gpu_memory, server_rules, versions
from dca.serve import gpus as cards
from dca.serve.gpu_memory import BLOCK
from dca.serve.gpus import Gpus
from dca.serve.outcome import UTILIZATION, Outcome, Settings, ending, exact_blocks, first, outcome
from dca.serve.server_rules import Asked
from dca.serve.shape import Shape
from dca.serve.versions import Era

DOCUMENTED_BATCH = 131_072
"""max_num_batched_tokens of the models' cards."""
BATCHES = (131_072, 65_536, 32_768, 16_384, 8_192, 4_096, 2_048)
"""max_num_batched_tokens to try for dual chunk attention: larger is faster, smaller takes less memory."""
PLAIN_BATCHES = (8_192, 2_048)
CHUNKED_FROM = 32_768
"""max_model_len above which vLLM prefills in chunks by default."""
PLAIN_CHUNK = 2_048
"""vLLM's default max_num_batched_tokens for those chunks."""
FEWER_SEQUENCES = 32
"""max_num_seqs to try when the engine's own choice leaves too little: few servers have more requests at a time."""
HIGH_UTILIZATION = 0.95


def ranks(shape: Shape, gpus: Gpus, asked: Asked) -> int:
    """The most GPUs that can share the model's heads, and if possible its other weights.

    Args:
        shape: the model.
        gpus: the server's GPUs.
        asked: the settings that the user fixes.
    """
    most = max(1, gpus.count // asked.pp)
    sharing = [tp for tp in range(1, most + 1) if can_share(shape.heads, shape.kv_heads, tp)]
    return max([tp for tp in sharing if server_rules.divides(shape, tp, asked)], default=max(sharing))


def documented(shape: Shape, gpus: Gpus, asked: Asked, length: int, tp: int) -> Settings:
    """The settings of the model's documentation, with the engine's defaults for the rest.

    Args:
        shape: the model.
        gpus: the server's GPUs.
        asked: the settings that the user fixes.
        length: prompt and answer together, in tokens.
        tp: GPUs that share the heads.
    """
    era = versions.of(asked.version)
    dual, v1 = shape.dual_chunk, asked.v1 and not shape.dual_chunk
    batched, sequences = (
        era.defaults(gpus) if v1 else (length if length <= CHUNKED_FROM else PLAIN_CHUNK, era.sequences)
    )
    sequences = asked.sequences or (1 if dual else sequences)
    ranks = min(tp * asked.pp, gpus.each)
    return Settings(
        tp=tp,
        pp=asked.pp,
        dcp=asked.dcp,
        length=length,
        batched=asked.batched or (DOCUMENTED_BATCH if dual else batched),
        sequences=sequences,
        utilization=asked.utilization or (UTILIZATION if dual else era.utilization),
        blocks=asked.blocks,
        cache_gib=asked.cache_gib,
        eager=dual or asked.eager,
        block_size=asked.block_size,
        watermark=0.0 if v1 else gpu_memory.WATERMARK,
        cache_width=1 if asked.kv_cache_dtype.startswith("fp8") or own_cache(shape, asked) else gpu_memory.HALF,
        grouped=v1 and _apart(shape, asked.version),
        whole_first=not releases.reached(asked.version, versions.load().quantized_while_loading),
        reused=v1 and asked.reused,
        # Dual chunk attention is served for one request, with a counted number of blocks.
        logit_bytes=gpu_memory.LOGIT if dual else _logit_bytes(shape, era),
        outside_gib=0.0 if dual else max(0.0, era.outside(ranks, gpus.machines) + asked.correction_gib),
        graphs_gib=era.graph_gib(sequences),
        graphs_counted=era.graphs_counted and v1,
        context_gib=cards.load().context_gib,
        absorbed=era.absorbed,
    )


def _logit_bytes(shape: Shape, era: Era) -> float:
    """Bytes for each logit of a model's profile run."""
    mixed = any(group.experts or group.kind == "state" for group in shape.parts)
    if era.dense_logit_bytes is None or mixed or shape.encoder:
        return era.logit_bytes
    return era.dense_logit_bytes


def own_cache(shape: Shape, asked: Asked) -> bool:
    """Whether the engine takes FP8 for the KV cache because the checkpoint has it."""
    reached = releases.reached(asked.version, versions.load().own_cache_dtype)
    return asked.kv_cache_dtype == "auto" and shape.quantized.fp8_cache and reached and not shape.dual_chunk


def _apart(shape: Shape, version: str) -> bool:
    """Whether a version caches layers with windows or chunks apart from those that keep every token."""
    known = versions.load()
    chunks = any(group.kind == "chunk" for group in shape.groups)
    return releases.reached(version, known.chunks_apart if chunks else known.windows_apart)


def choose(shape: Shape, gpus: Gpus, asked: Asked, length: int, tp: int) -> Outcome:
    """The first settings that fit, of those that the user leaves open; the ones that take least memory if none fits.

    Args:
        shape: the model.
        gpus: the server's GPUs.
        asked: the settings that the user fixes.
        length: prompt and answer together, in tokens.
        tp: GPUs that share the heads.
    """
    tried = list(_candidates(shape, gpus, asked, length, tp))
    return outcome(shape, gpus, next((settings for settings in tried if not ending(shape, gpus, settings)), tried[-1]))


def _candidates(shape: Shape, gpus: Gpus, asked: Asked, length: int, tp: int) -> Iterator[Settings]:
    """Settings to try, the fastest first."""
    base = documented(shape, gpus, asked, length, tp)
    if shape.dual_chunk:
        limit = gpu_memory.list_limit(shape, base.layout)
        tried = [asked.batched] if asked.batched else [batch for batch in BATCHES if limit is None or batch <= limit]
        # If the user sets the utilization, it determines the cache's size, and the plan sets no number of blocks.
        blocks = asked.blocks or (None if asked.utilization else exact_blocks(length, asked.block_size))
        for batched in tried:
            yield base.model_copy(update={"batched": min(batched, max(length, BLOCK)), "blocks": blocks})
        return
    era = versions.of(asked.version)
    fixed = asked.utilization or asked.cache_gib or asked.blocks
    shares = [base.utilization] if fixed else [base.utilization, HIGH_UTILIZATION]
    batches = (
        [base.batched] if asked.batched else [base.batched, *(batch for batch in PLAIN_BATCHES if batch < base.batched)]
    )
    fewer = [base.sequences, FEWER_SEQUENCES] if asked.sequences is None and base.sequences > FEWER_SEQUENCES else []
    for batched, sequences in [(size, count) for count in fewer or [base.sequences] for size in batches]:
        for share in shares:
            for eager in (False,) if asked.graphs else (False, True):
                yield base.model_copy(
                    update={
                        "batched": batched,
                        "sequences": sequences,
                        "utilization": share,
                        "eager": eager,
                        "graphs_gib": era.graph_gib(sequences),
                    }
                )


def longest_of(shape: Shape, gpus: Gpus, asked: Asked, most: int, tp: int) -> tuple[int, int]:
    """The largest length that fits, in whole blocks.

    Args:
        shape: the model.
        gpus: the server's GPUs.
        asked: the settings that the user fixes.
        most: tokens that the model allows.
        tp: GPUs that share the heads.

    Returns:
        The length in tokens and its max_num_batched_tokens; 0 and 0 when none fits.
    """
    block = asked.block_size

    def fits(length: int) -> bool:
        return any(not ending(shape, gpus, settings) for settings in _candidates(shape, gpus, asked, length, tp))

    if not fits(block):
        return 0, 0
    beyond = first(lambda count: count * block > most or not fits(count * block), 2, most // block + 1)
    whole = (beyond - 1) * block
    # A prompt may end inside the last block, so the model's own length is tried as well.
    length = most if most - whole < block and fits(most) else whole
    return length, choose(shape, gpus, asked, length, tp).settings.batched
