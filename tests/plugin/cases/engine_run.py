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

from tiny import Tiny, make, whole_model

DUAL = {"chunk_size": 128, "local_size": 32}
PLAIN, SMALL = Tiny(), Tiny(dual=DUAL)
LENGTHS = (40, 97, 193, 300, 480)
# Past the first chunk, where both forms of the factor grow, and differ.
ORIGINAL = {"original_max_position_embeddings": 90}
WHOLE: dict[str, Any] = {"enable_prefix_caching": False, "enforce_eager": True, "max_num_batched_tokens": 2048}
PIECES = WHOLE | {"max_num_batched_tokens": 64}

# A model, the engine's options, and whether the prompts are sent twice.
RUNS: dict[str, tuple[Tiny, dict[str, Any], bool]] = {
    "whole prompts": (SMALL, WHOLE, False),
    "64 tokens a step": (SMALL, PIECES, False),
    "prefix caching": (SMALL, WHOLE | {"enable_prefix_caching": True}, True),
    "prefix caching, 64 tokens a step": (SMALL, PIECES | {"enable_prefix_caching": True}, True),
    "heads of 128, four to a key head": (Tiny(4, 1, 128, DUAL), PIECES | {"block_size": 16}, False),
    "torch.compile": (SMALL, PIECES | {"enforce_eager": False}, False),
    "factor of the token": (Tiny(dual=DUAL | ORIGINAL), PIECES | {"enable_prefix_caching": True}, True),
    "factor of the prompt": (Tiny(dual=DUAL | ORIGINAL | {"length_factor": "prompt"}), PIECES, False),
    # The requests need 37 blocks together.
    "fewer blocks than requests need": (SMALL, PIECES | {"max_model_len": 512, "num_gpu_blocks_override": 24}, False),
    "a model without dual chunk attention": (PLAIN, PIECES, False),
}


def implementations(config: Any) -> list[str]:
    """What the layers of an engine attend with."""
    layers = config.compilation_config.static_forward_context.values()
    return sorted({type(layer.impl).__name__ for layer in layers if hasattr(layer, "impl")})


def run(name: str, folder: Path) -> dict[str, Any]:
    """One engine from its start to its end."""
    import torch
    from vllm import LLM, SamplingParams, __version__
    from vllm.distributed import cleanup_dist_env_and_memory

    tiny, options, twice = RUNS[name]
    model = folder / name.replace(" ", "-").replace(",", "")
    make(model, tiny)
    begin = time.monotonic()
    options = {"dtype": "float32", "max_model_len": 1024, "block_size": 32, "max_num_seqs": 8, "seed": 0} | options
    llm = LLM(str(model), skip_tokenizer_init=True, **options)
    started = time.monotonic() - begin
    chance = random.Random(name)
    prompts = [[chance.randrange(3, 1000) for _ in range(length)] for length in LENGTHS]
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    how = SamplingParams(temperature=0, max_tokens=6, logprobs=5, ignore_eos=True, detokenize=False)
    if twice:
        llm.generate(asked, SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False))
    answers = llm.generate(asked, how)
    found = implementations(llm.llm_engine.vllm_config)
    differences, wrong = [], 0
    for prompt, answer in zip(prompts, answers, strict=True):
        said = list(answer.outputs[0].token_ids)
        with torch.no_grad():
            wanted = whole_model(model, tiny, prompt + said, len(prompt))
        for place, (token, likely) in enumerate(zip(said, answer.outputs[0].logprobs, strict=True), len(prompt) - 1):
            wrong += int(wanted[place].argmax()) != token
            differences += [abs(each.logprob - float(wanted[place, other])) for other, each in likely.items()]
    cached = [answer.num_cached_tokens for answer in answers]
    del llm, answers
    gc.collect()
    cleanup_dist_env_and_memory()
    return {
        "run": name,
        "vllm": __version__,
        "torch": torch.__version__,
        "implementations": found,
        "cached": cached,
        "wrong_words": wrong,
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
