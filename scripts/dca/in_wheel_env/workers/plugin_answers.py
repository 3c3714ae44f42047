"""Worker in an engine's environment: serves a tiny model with dual chunk attention, and compares its answers.

Arguments: a folder for the model, and what its config says of its architecture, in JSON. The plugin, the engine and
`dca.in_wheel_env` are on the path. Prompts of one to six chunks, 64 tokens a step, are sent twice, so that prefixes
come from the cache. One line of JSON, after `ANSWERS `.
"""

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import torch
import vllm

from dca.in_wheel_env import tiny

LENGTHS = (40, 97, 193, 300, 480)
MODEL = tiny.Tiny(dual={"chunk_size": 128, "local_size": 32, "original_max_position_embeddings": 90})
OPTIONS = {
    "dtype": "float32",
    "max_model_len": 1024,
    "block_size": 32,
    "max_num_batched_tokens": 64,
    "enable_prefix_caching": True,
    "enforce_eager": True,
    "skip_tokenizer_init": True,
    "seed": 0,
}


def implementations(worker: Any) -> "list[str]":
    """What the layers of a worker attend with."""
    layers = worker.vllm_config.compilation_config.static_forward_context.values()
    return sorted({type(layer.impl).__module__ for layer in layers if hasattr(layer, "impl")})


def main(folder: Path, family: "dict[str, Any]") -> None:
    """Serve, ask and compare."""
    tiny.make(folder, MODEL, family)
    engine: Any = vllm.LLM(str(folder), **OPTIONS)
    chance = random.Random(0)
    prompts = [[chance.randrange(3, tiny.VOCABULARY - 24) for _ in range(length)] for length in LENGTHS]
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    for tokens in (1, 6):
        how = vllm.SamplingParams(temperature=0, max_tokens=tokens, logprobs=5, ignore_eos=True, detokenize=False)
        outputs = engine.generate(given, how, use_tqdm=False)
    wrong, worst, cached = 0, 0.0, 0
    for prompt, output in zip(prompts, outputs):
        said = list(output.outputs[0].token_ids)
        cached += int(output.num_cached_tokens or 0)
        with torch.no_grad():
            wanted = tiny.whole_model(folder, MODEL, prompt + said, tiny.Attended(len(prompt)))
        for place, (token, likely) in enumerate(zip(said, output.outputs[0].logprobs), len(prompt) - 1):
            wrong += int(wanted[place].argmax()) != token
            worst = max(worst, *(abs(each.logprob - float(wanted[place, at])) for at, each in likely.items()))
    result = {
        "version": vllm.__version__,
        "torch": torch.__version__,
        "implementations": engine.collective_rpc(implementations)[0],
        "prompts": len(prompts),
        "cached": cached,
        "wrong_words": wrong,
        "worst": worst,
    }
    print("\nANSWERS", json.dumps(result), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
