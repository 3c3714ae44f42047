"""Compares what the wheel's whole engine answers with the oracle's forward pass of the same model.

The engine runs as it is installed, on an emulated GPU: platform, scheduler, worker, model runner, the builder of the
backend's metadata, the backend, the cache and the wheel's kernels. Words are compared by the oracle's probabilities
after the words that the engine has chosen before, so one different word does not make the rest differ.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from .. import oracle
from . import whole_model
from .case import Case, Wrong
from .layer import Model
from .whole_model import Tiny

# Of the engine's environment: the engine that has dual chunk attention, and its backend.
VARIABLES = {"VLLM_USE_V1": "0", "VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN"}
# By how much a log-probability may differ, in bfloat16: chosen. What is wrong by a chunk differs by more than one.
BOUND = 0.25
# By how much ordinary attention must differ for a case to prove something.
APART = 1.0
PAGE = 16
# Words whose log-probabilities are compared at each place.
MOST = 5

MODEL = Tiny(
    Model(heads=4, kv_heads=2, dim=128, base=1e4, chunking=oracle.Chunking(144, 32), original=0, dtype=torch.bfloat16)
)
STRIDE = MODEL.attention.chunking.stride
STOOD_IN = (
    "torch's own operators, which ran on the CPU over the same memory",
    "the GPU and its driver",
    "the measurement of free memory: the number of pages of the KV cache was given",
    "words: prompts and answers are numbers of tokens",
)


@dataclass(frozen=True)
class Plan:
    """An engine and its requests.

    Attributes:
        model: what it serves.
        prompts: their lengths in tokens.
        words: that are generated for each.
        step: the most tokens in one step.
        at_once: the most requests in one step.
        pages: of the KV cache.
        settings: arguments of the engine that replace those of the other cases.
        demands: what the scheduler must have done: "pieces", "mixed", "preempted".
    """

    model: Tiny
    prompts: tuple[int, ...]
    words: int
    step: int = STRIDE
    at_once: int = 3
    pages: int = 128
    settings: Mapping[str, Any] = field(default_factory=dict)
    demands: tuple[str, ...] = ()


# A prompt of one to six chunks; its last piece ends within a chunk.
CHUNKS = Plan(MODEL, (70, 180, 290, 400, 510, 620), words=4, demands=("pieces", "mixed"))
# Below, at and above the original length; one passes it while it answers.
ORIGINAL = 200
FACTOR = Plan(
    replace(MODEL, attention=replace(MODEL.attention, original=ORIGINAL)),
    (150, ORIGINAL - 3, ORIGINAL, 330),
    words=6,
    demands=("pieces", "mixed"),
)
# Every line is chosen, so that sparse attention computes what dense attention does.
SPARSE = Plan(
    replace(MODEL, sizes=((1000, 1000),) * MODEL.attention.heads, threshold=100),
    (90, 2 * STRIDE, 4 * STRIDE),
    words=3,
    at_once=1,
    demands=("pieces",),
)
# Three requests whose answers do not fit beside each other.
PREEMPTION = Plan(MODEL, (188, 189, 190), words=8, pages=38, step=3 * STRIDE, demands=("preempted",))


@dataclass
class Seen:
    """What the scheduler did.

    Attributes:
        steps: number of steps.
        counts: how many steps did each thing that can be demanded.
    """

    steps: int = 0
    counts: dict[str, int] = field(default_factory=lambda: {"pieces": 0, "mixed": 0, "preempted": 0})

    def step(self, scheduler: Any, lengths: dict[str, int]) -> Any:
        """Schedule a step, and count what it does."""
        metadata, outputs, *rest = scheduler()
        self.steps += 1
        prefills = [group for group in metadata if group.is_prompt]
        self.counts["pieces"] += any(group.token_chunk_size < lengths[group.request_id] for group in prefills)
        self.counts["mixed"] += 0 < len(prefills) < len(metadata)
        self.counts["preempted"] += outputs.preempted
        return (metadata, outputs, *rest)


def cases(family: Mapping[str, Any]) -> list[Case]:
    """Every case; each starts an engine.

    Args:
        family: of the model, see `Tiny`.
    """
    return [
        Case(
            "engine/chunks",
            "the engine's words and their probabilities, for prompts of one to six chunks, prefilled in pieces, "
            "several requests at once",
            partial(_answers, CHUNKS, family),
        ),
        Case(
            "engine/length-factor",
            "the same with the length factor, below, at and above the original length, and across it",
            partial(_answers, FACTOR, family),
        ),
        Case(
            "engine/sparse",
            "the same with sparse attention and a table that has every line, where it must equal dense attention",
            partial(_answers, SPARSE, family),
        ),
        Case(
            "engine/preemption",
            "the same for requests that are preempted and computed again",
            partial(_answers, PREEMPTION, family),
        ),
    ]


def _answers(plan: Plan, family: Mapping[str, Any], seed: int) -> dict[str, Any]:
    plan = replace(plan, model=replace(plan.model, family=family))
    drawn = random.Random(seed)
    prompts = [[drawn.randrange(3, plan.model.vocabulary) for _ in range(length)] for length in plan.prompts]
    with tempfile.TemporaryDirectory() as folder:
        weights = plan.model.write(Path(folder), seed)
        answers, seen = served(plan, folder, prompts)
    for demand in plan.demands:
        if not seen.counts[demand]:
            raise Wrong(f"the scheduler made no step of the kind `{demand}`: the case proves nothing about it")
    worst, apart = 0.0, torch.inf
    other = whole_model.ordinary(plan.model)
    for prompt, (words, scores) in zip(prompts, answers):
        tokens, first = prompt + words, len(prompt) - 1
        want = whole_model.forward(plan.model, weights, tokens[:-1], len(prompt))[first:]
        plain = whole_model.forward(other, weights, tokens[:-1], len(prompt))[first:]
        off = _compare(len(prompt), words, scores, want)
        worst = max(worst, off)
        # Up to one chunk, and without a factor, dual chunk attention is ordinary attention.
        if len(prompt) > plan.model.attention.chunking.size or len(prompt) > plan.model.attention.original > 0:
            apart = min(apart, largest(scores, plain))
    if apart < APART:
        raise Wrong(f"ordinary attention differs by {apart:.2g} only: the case proves nothing about chunks")
    return {
        "tokens of the prompts": list(plan.prompts),
        "steps": seen.steps,
        **{f"steps, {kind}": count for kind, count in seen.counts.items() if count},
        "log-probability: largest difference": worst,
        "log-probability: bound": BOUND,
        "ordinary attention differs by at least": apart,
    }


Answer = tuple[list[int], list[dict[int, float]]]


def served(plan: Plan, folder: str, prompts: Sequence[list[int]]) -> tuple[list[Answer], Seen]:
    """The words of each request, with the log-probabilities of the most probable ones, and what the scheduler did."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    from vllm import EngineArgs, LLMEngine, SamplingParams

    arguments = {
        "model": folder,
        "skip_tokenizer_init": True,
        "dtype": str(plan.model.attention.dtype).rpartition(".")[2],
        "max_model_len": min(plan.pages * PAGE, max(plan.prompts) + plan.words + PAGE),
        "block_size": PAGE,
        "num_gpu_blocks_override": plan.pages,
        "swap_space": 0.01,
        "max_num_seqs": plan.at_once,
        "max_num_batched_tokens": plan.step,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "disable_custom_all_reduce": True,
        "seed": 0,
    }
    engine = LLMEngine.from_engine_args(EngineArgs(**{**arguments, **plan.settings}))
    params = SamplingParams(temperature=0.0, max_tokens=plan.words, logprobs=MOST, ignore_eos=True, detokenize=False)
    lengths = {str(number): len(prompt) for number, prompt in enumerate(prompts)}
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), {"prompt_token_ids": prompt}, params)
    seen, answers = Seen(), {}
    (scheduler,) = engine.scheduler
    with mock.patch.object(scheduler, "schedule", partial(seen.step, scheduler.schedule, lengths)):
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    answers[output.request_id] = output.outputs[0]
    found = []
    for number in range(len(prompts)):
        answer = answers[str(number)]
        scores = [{word: one.logprob for word, one in place.items()} for place in answer.logprobs]
        found.append((list(answer.token_ids), scores))
    return found, seen


def largest(scores: Sequence[dict[int, float]], want: torch.Tensor) -> float:
    """The largest difference of the log-probabilities of an answer from others."""
    return max(
        abs(score - float(want[place, word])) for place, words in enumerate(scores) for word, score in words.items()
    )


def _compare(length: int, words: Sequence[int], scores: Sequence[dict[int, float]], want: torch.Tensor) -> float:
    """The largest difference of an answer's log-probabilities from the oracle's.

    Raises:
        Wrong: it is beyond the bound, or a word is not the most probable one.
    """
    for place, word in enumerate(words):
        best = int(want[place].argmax())
        # Two words may be nearly as probable as each other.
        if float(want[place, best] - want[place, word]) > BOUND:
            raise Wrong(
                f"prompt of {length} tokens, word {place}: {word} with log-probability {float(want[place, word]):.3f}, "
                f"expected {best} with {float(want[place, best]):.3f}"
            )
    off = largest(scores, want)
    if not off <= BOUND:
        raise Wrong(f"prompt of {length} tokens: a log-probability differs by {off:.3g}, allowed is {BOUND:g}")
    return off
