"""Worker in an engine's environment: a tiny random model, answered by the engine and by transformers.

Argument: a folder for the model. The last line is JSON: the engine's `words`, those `expected`, and the largest
`difference` of a log-probability.
"""

from __future__ import annotations

import json
import sys

import torch

PROMPT = [5, 17, 99, 23, 61, 7, 44, 80, 3, 12, 250, 31]
WORDS = 6


def made(folder: str) -> torch.nn.Module:
    """Write a model in float32 with attention far from uniform, and return it."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.08,
    )
    model = Qwen2ForCausalLM(config).float().eval()
    model.save_pretrained(folder)
    return model


def main() -> None:
    """Ask both."""
    folder = sys.argv[1]
    model = made(folder)
    from vllm import LLM, SamplingParams

    engine = LLM(
        folder,
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=128,
        enforce_eager=True,
        max_num_seqs=2,
        seed=0,
    )
    params = SamplingParams(temperature=0.0, max_tokens=WORDS, logprobs=5, ignore_eos=True, detokenize=False)
    (answer,) = engine.generate([{"prompt_token_ids": PROMPT}], params, use_tqdm=False)
    (output,) = answer.outputs
    words = list(output.token_ids)
    with torch.no_grad():
        scores = model(torch.tensor([[*PROMPT, *words[:-1]]])).logits[0, len(PROMPT) - 1 :].log_softmax(-1)
    difference = max(
        abs(one.logprob - float(scores[place, word]))
        for place, found in enumerate(output.logprobs)
        for word, one in found.items()
    )
    print(json.dumps({"words": words, "expected": scores.argmax(-1).tolist(), "difference": difference}), flush=True)


if __name__ == "__main__":
    main()
