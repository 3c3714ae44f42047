"""Runs vLLM's own V1 engine on the CPU with the plugin, and says by how much it differs from the whole model.

Arguments: a folder to work in, and the names of the runs; a line of JSON for each on standard output.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    # One process for all engines: they start sooner, and it is shown that one leaves nothing behind for the next.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}

import stand_ins
from tiny import Tiny, make, whole_model

DUAL = {"chunk_size": 128, "local_size": 32}
PLAIN, SMALL = Tiny(), Tiny(dual=DUAL)
LENGTHS = (40, 97, 193, 300, 480)
# Past the first chunk, where both forms of the factor grow, and differ.
ORIGINAL = {"original_max_position_embeddings": 90}
WHOLE: dict[str, Any] = {"enable_prefix_caching": False, "enforce_eager": True, "max_num_batched_tokens": 2048}
PIECES = WHOLE | {"max_num_batched_tokens": 64}

CACHED: dict[str, Any] = {"enable_prefix_caching": True}
# Blocks for 768 tokens: any request fits alone, and the most that are drawn need five times as many.
FEW: dict[str, Any] = {"max_model_len": 512, "num_gpu_blocks_override": 24}
SCHEDULES = int(os.environ.get("DCA_SCHEDULES", "50"))


@dataclass(frozen=True)
class Run:
    """An engine, and what it is asked.

    Attributes:
        tiny: its model.
        options: its options.
        twice: whether the prompts are sent twice.
        schedules: how many schedules of requests are drawn, instead of sending one prompt of each length at once.
        lengths: of the prompts.
        alone: whether prompts are sent one after the other, so that it is known what a step has of each.
        tokens: that are generated for each.
    """

    tiny: Tiny
    options: dict[str, Any]
    twice: bool = False
    schedules: int = 0
    lengths: tuple[int, ...] = LENGTHS
    alone: bool = False
    tokens: int = 6


# Chunks of 208 tokens, as many as three rows of 64 queries and a quarter; the heads of a key head have other numbers.
SIX = {"chunk_size": 288, "local_size": 80, "original_max_position_embeddings": 400, "sparse_attention_threshold": 600}
TABLE = ((30, 104), (35, 110), (60, 120), (40, 101))
SPARSE = Tiny(4, 2, 128, SIX, table=TABLE, positions=2048)
LONG: dict[str, Any] = {"max_model_len": 2048, "block_size": 16}

RUNS: dict[str, Run] = {
    "whole prompts": Run(SMALL, WHOLE),
    "64 tokens a step": Run(SMALL, PIECES),
    "prefix caching": Run(SMALL, WHOLE | CACHED, twice=True),
    "prefix caching, 64 tokens a step": Run(SMALL, PIECES | CACHED, twice=True),
    "heads of 128, four to a key head": Run(Tiny(4, 1, 128, DUAL), PIECES | {"block_size": 16}),
    "torch.compile": Run(SMALL, PIECES | {"enforce_eager": False}),
    "factor of the token": Run(Tiny(dual=DUAL | ORIGINAL), PIECES | CACHED, twice=True),
    "factor of the prompt": Run(Tiny(dual=DUAL | ORIGINAL | {"length_factor": "prompt"}), PIECES),
    # They begin with 19 blocks, and need 30.
    "fewer blocks than requests need": Run(SMALL, PIECES | FEW, lengths=(90, 150, 155, 158), tokens=80),
    "drawn schedules": Run(Tiny(dual=DUAL | ORIGINAL), PIECES | CACHED | FEW, schedules=SCHEDULES),
    # Of one chunk, and dense; of four and of six.
    "sparse, whole prompts": Run(SPARSE, WHOLE | LONG, lengths=(200, 800, 1240), alone=True),
    "sparse, 500 tokens a step": Run(
        SPARSE, WHOLE | LONG | {"max_num_batched_tokens": 500}, lengths=(590, 1240), alone=True
    ),
    "a model without dual chunk attention": Run(PLAIN, PIECES),
}


@dataclass(frozen=True)
class Answer:
    """A prompt, and what the engine said: tokens, and the log-probabilities of the likeliest at each place."""

    prompt: list[int]
    said: list[int]
    likely: list[dict[int, float]]
    cached: int


def answered(prompt: list[int], output: Any) -> Answer:
    """What an output of vLLM says to a prompt."""
    (one,) = output.outputs
    likely = [{token: each.logprob for token, each in place.items()} for place in one.logprobs]
    return Answer(prompt, list(one.token_ids), likely, int(output.num_cached_tokens or 0))


def asked(llm: Any, name: str) -> list[Answer]:
    """One prompt of each length."""
    from vllm import SamplingParams

    chosen, chance = RUNS[name], random.Random(name)
    prompts = [[chance.randrange(3, 1000) for _ in range(length)] for length in chosen.lengths]
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    for tokens in (1, chosen.tokens) if chosen.twice else (chosen.tokens,):
        how = SamplingParams(temperature=0, max_tokens=tokens, logprobs=5, ignore_eos=True, detokenize=False)
        together = [[one] for one in given] if chosen.alone else [given]
        outputs = [output for some in together for output in llm.generate(some, how)]
    return [answered(*pair) for pair in zip(prompts, outputs, strict=True)]


def drawn_schedule(engine: Any, number: int, known: list[list[int]]) -> list[Answer]:
    """Up to eight requests that arrive at drawn steps; some begin as an earlier one did.

    Args:
        engine: vLLM's.
        number: of the schedule.
        known: prompts of earlier schedules; grows.
    """
    from vllm import SamplingParams

    chance = random.Random(f"schedule {number}")
    arriving: dict[int, list[tuple[str, list[int], int]]] = {}
    prompts: dict[str, list[int]] = {}
    for one in range(chance.randint(1, 8)):
        length = max(1, 96 * chance.randrange(6) + chance.choice((-1, 0, 1, chance.randrange(96))))
        prompt = [chance.randrange(3, 1000) for _ in range(min(length, 490))]
        if known and chance.random() < 0.4:
            shared = chance.choice(known)[: chance.randrange(len(prompt))]
            prompt[: len(shared)] = shared
        name = f"{number}-{one}"
        prompts[name] = prompt
        arriving.setdefault(chance.choice((0, 0, chance.randrange(20))), []).append(
            (name, prompt, chance.randint(1, 12))
        )
    known.extend(prompts.values())
    answers: list[Answer] = []
    step = 0
    while arriving or engine.has_unfinished_requests():
        for name, prompt, tokens in arriving.pop(step, []):
            how = SamplingParams(temperature=0, max_tokens=tokens, logprobs=5, ignore_eos=True, detokenize=False)
            engine.add_request(name, {"prompt_token_ids": prompt}, how)
        answers += [answered(prompts[o.request_id], o) for o in engine.step() if o.finished]
        step += 1
    assert len(answers) == len(prompts)
    return answers


def preemptions(llm: Any) -> int:
    """How often the engine took a running request's blocks away."""
    found = [m for m in llm.get_metrics() if m.name == "vllm:num_preemptions"]
    return sum(int(metric.value) for metric in found)


def implementations(config: Any) -> list[str]:
    """What the layers of an engine attend with."""
    layers = config.compilation_config.static_forward_context.values()
    return sorted({type(layer.impl).__name__ for layer in layers if hasattr(layer, "impl")})


def run(name: str, folder: Path) -> dict[str, Any]:
    """One engine from its start to its end."""
    import torch
    from vllm import LLM, __version__
    from vllm.distributed import cleanup_dist_env_and_memory

    chosen = RUNS[name]
    model = folder / name.replace(" ", "-").replace(",", "")
    make(model, chosen.tiny)
    if chosen.tiny.table:
        stand_ins.register()
    begin = time.monotonic()
    options = {"dtype": "float32", "max_model_len": 1024, "block_size": 32, "max_num_seqs": 8, "seed": 0}
    llm = LLM(str(model), skip_tokenizer_init=True, disable_log_stats=False, **options | chosen.options)
    started = time.monotonic() - begin
    if chosen.schedules:
        known: list[list[int]] = []
        answers = [a for number in range(chosen.schedules) for a in drawn_schedule(llm.llm_engine, number, known)]
    else:
        answers = asked(llm, name)
    found, preempted = implementations(llm.llm_engine.vllm_config), preemptions(llm)
    differences, wrong, dense = [], 0, 0.0
    for answer in answers:
        tokens, prompt, piece = answer.prompt + answer.said, len(answer.prompt), 0
        if chosen.tiny.table and prompt > SIX["sparse_attention_threshold"]:
            piece = chosen.options["max_num_batched_tokens"]
        with torch.no_grad():
            wanted = whole_model(model, chosen.tiny, tokens, prompt, piece)
            if piece:
                # What dense attention would say: the lines do not cover everything.
                other = whole_model(model, chosen.tiny, tokens, prompt)
                dense = max(dense, float((wanted - other)[prompt - 1 :].abs().max()))
        places = enumerate(zip(answer.said, answer.likely, strict=True), len(answer.prompt) - 1)
        for place, (token, likely) in places:
            wrong += int(wanted[place].argmax()) != token
            differences += [abs(logprob - float(wanted[place, other])) for other, logprob in likely.items()]
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    return {
        "run": name,
        "vllm": __version__,
        "torch": torch.__version__,
        "implementations": found,
        "requests": len(answers),
        "preempted": preempted,
        "cached": [answer.cached for answer in answers],
        "wrong_words": wrong,
        "dense": dense,
        "worst": max(differences),
        "close": sum(each < 2e-5 for each in differences) / len(differences),
        "start_s": round(started, 1),
        "whole_s": round(time.monotonic() - begin, 1),
    }


if __name__ == "__main__":
    for chosen in sys.argv[2:] or RUNS:
        try:
            result = run(chosen, Path(sys.argv[1]))
        except Exception as error:
            # The other runs are still worth their time.
            traceback.print_exc()
            result = {"run": chosen, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), flush=True)
