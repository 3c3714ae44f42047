"""Compares what the wheel's whole engine answers with the oracle's forward pass of the same model.

The engine runs as it is installed, on an emulated GPU: platform, scheduler, worker, model runner, the builder of the
backend's metadata, the backend, the cache and the wheel's kernels. Words are compared by the oracle's probabilities
after the words that the engine has chosen before, so one different word does not make the rest differ.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from .. import tiny
from ..tiny import Tiny
from .case import Case, Wrong

# Of the engine's environment: the engine that has dual chunk attention, and its backend.
VARIABLES = {"VLLM_USE_V1": "0", "VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN"}
# By how much a log-probability may differ, in bfloat16: chosen. What is wrong by a chunk differs by more than one.
BOUND = 0.25
# By how much ordinary attention must differ for a case to prove something.
APART = 1.0
PAGE = 16
# Words whose log-probabilities are compared at each place.
MOST = 5

DUAL = {"chunk_size": 144, "local_size": 32, "original_max_position_embeddings": 0}
MODEL = Tiny(dim=128, dual=DUAL, dtype="bfloat16")
STRIDE = MODEL.chunking.stride
STOOD_IN = (
    "torch's own operators, which ran on the CPU over the same memory",
    "the GPU and its driver",
    "the measurement of free memory: the number of pages of the KV cache was given",
    "words: prompts and answers are numbers of tokens",
    "of two ranks, each with a GPU of its own: Gloo for NCCL, no all-reduce of vLLM's own, and torch.compile off",
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
        leaves_out: whether the model's sparse table leaves lines out. Prompts are then prefilled one at a time, so that
            it is known of which queries each step has chosen its lines.
        bound: by how much a log-probability may differ.
        seed: of weights and prompts; None for that of the run.
    """

    model: Tiny
    prompts: tuple[int, ...]
    words: int
    step: int = STRIDE
    at_once: int = 3
    pages: int = 128
    settings: Mapping[str, Any] = field(default_factory=dict)
    demands: tuple[str, ...] = ()
    leaves_out: bool = False
    bound: float = BOUND
    seed: int | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of the engine."""
        return {
            "dtype": self.model.dtype,
            "max_model_len": min(self.pages * PAGE, max(self.prompts) + self.words + PAGE),
            "block_size": PAGE,
            "num_gpu_blocks_override": self.pages,
            "swap_space": 0.01,
            "max_num_seqs": self.at_once,
            "max_num_batched_tokens": self.step,
            "enable_chunked_prefill": True,
            "enable_prefix_caching": False,
            "enforce_eager": True,
            "disable_custom_all_reduce": True,
            "seed": 0,
            **self.settings,
        }

    def attended(self, prompt: int, *, sparse: bool = True) -> tiny.Attended:
        """How the engine attends a request; or how it would, if every line were chosen."""
        piece = self.step if self.leaves_out and sparse and prompt > THRESHOLD else 0
        return tiny.Attended(prompt, piece, scaled_keys=True)


# A prompt of one to six chunks; its last piece ends within a chunk.
CHUNKS = Plan(MODEL, (70, 180, 290, 400, 510, 620), words=4, demands=("pieces", "mixed"))
# Below, at and above the original length; one passes it while it answers.
ORIGINAL = 200
FACTOR = Plan(
    replace(MODEL, dual={**DUAL, "original_max_position_embeddings": ORIGINAL}),
    (150, ORIGINAL - 3, ORIGINAL, 330),
    words=6,
    demands=("pieces", "mixed"),
)
# Every line is chosen, so that sparse attention computes what dense attention does.
THRESHOLD = 100
SPARSE = Plan(
    replace(
        MODEL,
        dual={**DUAL, "sparse_attention_enabled": True, "sparse_attention_threshold": THRESHOLD},
        table=((1000, 1000),) * MODEL.heads,
    ),
    (90, 2 * STRIDE, 4 * STRIDE),
    words=3,
    at_once=1,
    demands=("pieces",),
)
# Each head has other numbers, none below those of the lines that are always chosen: a head with fewer gets any of
# these. bfloat16 may choose another last line than the oracle, and one line may change a log-probability by more than
# 1. So the model is one in which that is rare, always the same.
LINES = replace(
    SPARSE,
    model=replace(SPARSE.model, table=((40, 100), (45, 104), (30, 110), (35, 101))),
    prompts=(90, 3 * STRIDE, 5 * STRIDE),
    leaves_out=True,
    bound=2 * BOUND,
    seed=2,
)
# Three requests whose answers do not fit beside each other.
PREEMPTION = Plan(MODEL, (188, 189, 190), words=8, pages=38, step=3 * STRIDE, demands=("preempted",))
SERVER = Plan(MODEL, (70, 290, 620), words=4)
# The tables of the second rank's heads have other numbers than those of the first's.
RANKS = replace(
    LINES,
    settings={"tensor_parallel_size": 2, "distributed_executor_backend": "external_launcher"},
)


# The words of an answer, and at each place the log-probabilities of the most probable ones.
Answer = tuple[list[int], list[dict[int, float]]]


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


Serve = Callable[[Plan, str, Sequence[list[int]]], tuple[list[Answer], Seen]]


def cases(family: Mapping[str, Any]) -> list[Case]:
    """Every case; each starts an engine.

    Args:
        family: of the model, see `tiny.make`.
    """
    from . import processes

    listed = (
        (
            "chunks",
            "the engine's words and their probabilities, for prompts of one to six chunks, prefilled in pieces, "
            "several requests at once",
            CHUNKS,
            served,
        ),
        (
            "length-factor",
            "the same with the length factor, below, at and above the original length, and across it",
            FACTOR,
            served,
        ),
        (
            "sparse",
            "the same with sparse attention and a table that has every line, where it must equal dense attention",
            SPARSE,
            served,
        ),
        (
            "sparse-lines",
            "the same with a table that leaves most lines out; each step chooses those of its last queries",
            LINES,
            served,
        ),
        ("preemption", "the same for requests that are preempted and computed again", PREEMPTION, served),
        ("server", "what `vllm serve` answers over HTTP to prompts of one to six chunks", SERVER, processes.over_http),
        ("two-ranks", "the words of two ranks, whose heads have other tables each", RANKS, processes.by_ranks),
    )
    return [Case(f"engine/{name}", proves, partial(_answers, plan, how, family)) for name, proves, plan, how in listed]


def _answers(plan: Plan, serve: Serve, family: Mapping[str, Any], seed: int) -> dict[str, Any]:
    seed = seed if plan.seed is None else plan.seed
    model, drawn = replace(plan.model, seed=seed), random.Random(seed)
    prompts = [[drawn.randrange(3, tiny.VOCABULARY) for _ in range(length)] for length in plan.prompts]
    worst, apart = 0.0, torch.inf
    with tempfile.TemporaryDirectory() as folder:
        tiny.make(Path(folder), model, family)
        answers, seen = serve(plan, folder, prompts)
        for demand in plan.demands:
            if not seen.counts[demand]:
                raise Wrong(f"the scheduler made no step of the kind `{demand}`: the case proves nothing about it")
        for prompt, answer in zip(prompts, answers):
            how = plan.attended(len(prompt))
            want = oracle_says(folder, model, prompt, answer, how)
            worst = max(worst, _compare(plan.bound, len(prompt), answer, want))
            for wrong, attended in _others(plan, model, len(prompt)):
                apart = min(apart, largest(answer[1], oracle_says(folder, wrong, prompt, answer, attended)))
    if apart < APART:
        raise Wrong(f"another attention differs by {apart:.2g} only: the case proves nothing about this one")
    return {
        "tokens of the prompts": list(plan.prompts),
        **({"steps": seen.steps} if seen.steps else {}),
        **{f"steps, {kind}": count for kind, count in seen.counts.items() if count},
        "log-probability: largest difference": worst,
        "log-probability: bound": plan.bound,
        "ordinary attention, or one with every line, differs by at least": apart,
    }


def _others(plan: Plan, model: Tiny, prompt: int) -> list[tuple[Tiny, tiny.Attended]]:
    """What an engine might do in place of the right thing, for a prompt of so many tokens that it would show."""
    others = []
    # Up to one chunk, and without a factor, dual chunk attention is ordinary attention.
    if prompt > model.chunking.size or prompt > model.original > 0:
        others.append((replace(model, dual=None), plan.attended(prompt, sparse=False)))
    if plan.attended(prompt).piece:
        others.append((model, plan.attended(prompt, sparse=False)))
    return others


def served(plan: Plan, folder: str, prompts: Sequence[list[int]]) -> tuple[list[Answer], Seen]:
    """The answer to each prompt of an engine in this process, and what its scheduler did."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    from vllm import EngineArgs, LLMEngine, SamplingParams

    engine = LLMEngine.from_engine_args(EngineArgs(model=folder, skip_tokenizer_init=True, **plan.arguments))
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


def oracle_says(folder: str, model: Tiny, prompt: list[int], answer: Answer, how: tiny.Attended) -> torch.Tensor:
    """The oracle's log-probabilities `[words, vocabulary]` where an answer has its words."""
    return tiny.whole_model(Path(folder), model, prompt + answer[0][:-1], how)[len(prompt) - 1 :]


def largest(scores: Sequence[dict[int, float]], want: torch.Tensor) -> float:
    """The largest difference of the log-probabilities of an answer from others."""
    return max(
        abs(score - float(want[place, word])) for place, words in enumerate(scores) for word, score in words.items()
    )


def _compare(bound: float, length: int, answer: Answer, want: torch.Tensor) -> float:
    """The largest difference of an answer's log-probabilities from the oracle's.

    Raises:
        Wrong: it is beyond the bound, or a word is not the most probable one.
    """
    words, scores = answer
    for place, word in enumerate(words):
        best = int(want[place].argmax())
        # Two words may be nearly as probable as each other.
        if float(want[place, best] - want[place, word]) > bound:
            raise Wrong(
                f"prompt of {length} tokens, word {place}: {word} with log-probability {float(want[place, word]):.3f}, "
                f"expected {best} with {float(want[place, best]):.3f}"
            )
    off = largest(scores, want)
    if not off <= bound:
        raise Wrong(f"prompt of {length} tokens: a log-probability differs by {off:.3g}, allowed is {bound:g}")
    return off
