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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    # The engine is in this process.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Ranks meet on this machine alone.
    "VLLM_HOST_IP": "127.0.0.1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}

import stand_ins

from dca.in_wheel_env.tiny import Attended, Tiny, make, whole_model

DUAL = {"chunk_size": 128, "local_size": 32}
PLAIN, SMALL = Tiny(), Tiny(dual=DUAL)
LENGTHS = (40, 97, 193, 300, 480)
# Past the first chunk, where both forms of the factor grow, and differ.
ORIGINAL = {"original_max_position_embeddings": 90}
WHOLE: dict[str, Any] = {"enable_prefix_caching": False, "enforce_eager": True, "max_num_batched_tokens": 2048}
PIECES = WHOLE | {"max_num_batched_tokens": 64}

CACHED: dict[str, Any] = {"enable_prefix_caching": True}
# Blocks for 768 tokens: any request fits alone, and the most that are drawn need five times as many.
FEW: dict[str, Any] = {"max_model_len": 544, "num_gpu_blocks_override": 24}
# As many tokens in smaller blocks, so that a request often needs one more while it answers.
NARROW: dict[str, Any] = FEW | {"block_size": 16, "num_gpu_blocks_override": 48}
# Tensor parallelism: each rank is a process of its own.
TWO: dict[str, Any] = {"tensor_parallel_size": 2}
# Tells the processes of ranks, which import this file, to take the stand-ins.
STAND_INS = "DCA_TEST_STAND_INS"
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
        ahead: whether the next step is scheduled before the last one has answered, as on CUDA by default. The CPU's
            platform turns it off.
    """

    tiny: Tiny
    options: dict[str, Any]
    twice: bool = False
    schedules: int = 0
    lengths: tuple[int, ...] = LENGTHS
    alone: bool = False
    tokens: int = 6
    ahead: bool = False


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
    "drawn schedules": Run(Tiny(dual=DUAL | ORIGINAL), PIECES | CACHED | NARROW, schedules=SCHEDULES),
    # Of one chunk, and dense; of four and of six.
    "sparse, whole prompts": Run(SPARSE, WHOLE | LONG, lengths=(200, 800, 1240), alone=True),
    "sparse, 500 tokens a step": Run(
        SPARSE, WHOLE | LONG | {"max_num_batched_tokens": 500}, lengths=(590, 1240), alone=True
    ),
    "a model without dual chunk attention": Run(PLAIN, PIECES),
    "two ranks": Run(SMALL, PIECES | CACHED | TWO, twice=True),
    "two ranks that share a key head": Run(Tiny(4, 1, 128, DUAL), PIECES | {"block_size": 16} | TWO),
    "two ranks, sparse": Run(SPARSE, WHOLE | LONG | TWO, lengths=(200, 800), alone=True),
    "scheduled ahead, prefix caching": Run(SMALL, PIECES | CACHED, twice=True, tokens=40, ahead=True),
    "scheduled ahead, fewer blocks than requests need": Run(
        SMALL, PIECES | FEW, lengths=(90, 150, 155, 158), tokens=80, ahead=True
    ),
    "bfloat16": Run(Tiny(dual=DUAL, dtype="bfloat16"), PIECES),
    "bfloat16 without dual chunk attention": Run(Tiny(dtype="bfloat16"), PIECES),
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
            # Of older ones nothing is left in so small a cache.
            shared = chance.choice(known[-8:])[: chance.randrange(len(prompt))]
            prompt[: len(shared)] = shared
        name = f"{number}-{one}"
        prompts[name] = prompt
        arriving.setdefault(chance.choice((0, 0, chance.randrange(20))), []).append(
            (name, prompt, chance.randint(1, 40))
        )
        # Those of the same schedule may share, too.
        known.append(prompt)
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


def implementations(worker: Any) -> list[str]:
    """What the layers of a worker attend with."""
    layers = worker.vllm_config.compilation_config.static_forward_context.values()
    return sorted({type(layer.impl).__name__ for layer in layers if hasattr(layer, "impl")})


@dataclass
class Compared:
    """Answers against the whole model.

    Attributes:
        model: its folder.
        run: that was made.
        differences: of log-probabilities.
        wrong_words: places where the whole model says another token.
        dense: by how much dense attention would differ.
        cached: tokens of each prompt that were in the cache.
    """

    model: Path
    run: Run
    differences: list[float] = field(default_factory=list)
    wrong_words: int = 0
    dense: float = 0.0
    cached: list[int] = field(default_factory=list)

    def add(self, answer: Answer) -> None:
        """Compare one more."""
        import torch

        tiny, tokens, prompt, piece = self.run.tiny, answer.prompt + answer.said, len(answer.prompt), 0
        if tiny.table and prompt > SIX["sparse_attention_threshold"]:
            piece = self.run.options["max_num_batched_tokens"]
        with torch.no_grad():
            wanted = whole_model(self.model, tiny, tokens, Attended(prompt, piece))
            if piece:
                # What dense attention would say: the lines do not cover everything.
                other = whole_model(self.model, tiny, tokens, Attended(prompt))
                self.dense = max(self.dense, float((wanted - other)[prompt - 1 :].abs().max()))
        places = enumerate(zip(answer.said, answer.likely, strict=True), prompt - 1)
        for place, (token, likely) in places:
            self.wrong_words += int(wanted[place].argmax()) != token
            self.differences += [abs(logprob - float(wanted[place, other])) for other, logprob in likely.items()]
        self.cached.append(answer.cached)


def schedule_ahead() -> None:
    """Let the CPU's platform schedule ahead, for the rest of the process."""
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.check_and_update_config.__func__

    def checked(cls: Any, vllm_config: Any) -> None:
        original(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(checked)


def run(name: str, folder: Path) -> dict[str, Any]:
    """One engine from its start to its end."""
    import torch
    from vllm import LLM, __version__
    from vllm.distributed import cleanup_dist_env_and_memory

    chosen = RUNS[name]
    model = folder / name.replace(" ", "-").replace(",", "")
    make(model, chosen.tiny, stand_ins.FAMILY)
    if chosen.tiny.table:
        os.environ[STAND_INS] = "1"
        stand_ins.register()
    if chosen.ahead:
        schedule_ahead()
    begin = time.monotonic()
    options = {"dtype": chosen.tiny.dtype, "max_model_len": 1024, "block_size": 32, "max_num_seqs": 8, "seed": 0}
    llm = LLM(str(model), skip_tokenizer_init=True, disable_log_stats=False, **options | chosen.options)
    started = time.monotonic() - begin
    if chosen.ahead and llm.llm_engine.engine_core.engine_core.batch_queue is None:
        raise RuntimeError("steps are not scheduled ahead")
    compared = Compared(model, chosen)
    known: list[list[int]] = []
    for number in range(chosen.schedules):
        for answer in drawn_schedule(llm.llm_engine, number, known):
            compared.add(answer)
        said = f"schedule {number}: {len(compared.cached)} requests, preempted {preemptions(llm)}"
        print(f"{said}, worst {max(compared.differences):.1e}", file=sys.stderr, flush=True)
    for answer in [] if chosen.schedules else asked(llm, name):
        compared.add(answer)
    found, preempted = llm.collective_rpc(implementations), preemptions(llm)
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    differences = compared.differences
    return {
        "run": name,
        "vllm": __version__,
        "torch": torch.__version__,
        "implementations": found,
        "requests": len(compared.cached),
        "preempted": preempted,
        "cached": compared.cached,
        "wrong_words": compared.wrong_words,
        "dense": compared.dense,
        "worst": max(differences),
        "close": sum(each < 2e-5 for each in differences) / len(differences),
        "middle": sorted(differences)[len(differences) // 2],
        "start_s": round(started, 1),
        "whole_s": round(time.monotonic() - begin, 1),
    }


if __name__ == "__mp_main__" and os.environ.get(STAND_INS):
    stand_ins.register()

if __name__ == "__main__":
    for chosen in sys.argv[2:]:
        try:
            result = run(chosen, Path(sys.argv[1]))
        except Exception as error:
            # The other runs are still worth their time.
            traceback.print_exc()
            result = {"run": chosen, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), flush=True)
