"""Ask about a text of up to a million tokens, without a server.

    python examples/offline_1m.py /models/Qwen2.5-14B-Instruct-1M book.txt "Who is the narrator?" --gpus 4

A wheel with dual chunk attention is needed, and a folder whose config.json passes `dca config check`. Our wheels choose
the backend by themselves; with others say VLLM_ATTENTION_BACKEND=DUAL_CHUNK_FLASH_ATTN VLLM_USE_V1=0.
"""

import argparse
from pathlib import Path

from vllm import LLM, SamplingParams

BLOCK = 16


def blocks(length: int) -> int:
    """KV cache for one prompt of so many tokens: the engine ignores one that leaves less than 1 % of it free."""
    needed = -(-length // BLOCK)
    total = needed
    while total - int(0.01 * total) < needed:
        total += 1
    return total


def main() -> None:
    """Read the text, ask, and tell the answer."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("model", help="a folder: of a name on the hub the sparse table is not always found")
    given.add_argument("text", type=Path)
    given.add_argument("question")
    given.add_argument("--gpus", type=int, default=4, help="at most 4 for the 7B model, 8 for the 14B")
    given.add_argument("--length", type=int, default=1_010_000, help="prompt and answer together, in tokens")
    given.add_argument("--quantization", choices=["fp8"])
    given.add_argument("--max-tokens", type=int, default=8192)
    asked = given.parse_args()

    llm = LLM(
        model=asked.model,
        tensor_parallel_size=asked.gpus,
        max_model_len=asked.length,
        quantization=asked.quantization,
        enable_chunked_prefill=True,
        max_num_batched_tokens=131072,
        max_num_seqs=1,
        enforce_eager=True,
        enable_prefix_caching=False,
        # The engine gives every spare byte to the KV cache, and the buffers of sparse attention then find none on the
        # first long prompt. The blocks of one prompt leave them room.
        num_gpu_blocks_override=blocks(asked.length),
    )
    prompt = f"{asked.text.read_text(encoding='utf-8')}\n\n{asked.question}"
    sampling = SamplingParams(temperature=0.7, top_p=0.8, repetition_penalty=1.05, max_tokens=asked.max_tokens)
    (output,) = llm.chat([{"role": "user", "content": prompt}], sampling)
    answer = output.outputs[0]
    if not answer.token_ids and answer.finish_reason == "length":
        raise SystemExit(f"The engine did not take the prompt of {len(output.prompt_token_ids)} tokens.")
    print(answer.text)


if __name__ == "__main__":
    main()
