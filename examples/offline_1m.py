"""Ask a question about a text of up to a million tokens, without a server.

    python examples/offline_1m.py /models/Qwen2.5-14B-Instruct-1M book.txt "Who is the narrator?" --gpus 4

Requires a wheel with dual chunk attention, and a folder whose config.json passes `dca config check`. Our wheels select
the backend automatically; with others set VLLM_ATTENTION_BACKEND=DUAL_CHUNK_FLASH_ATTN VLLM_USE_V1=0.
"""

import argparse
from pathlib import Path

from vllm import LLM, SamplingParams

BLOCK = 16


def blocks(length: int) -> int:
    """Blocks of KV cache for one prompt of a length: the engine ignores a prompt that leaves less than 1 % free."""
    needed = -(-length // BLOCK)
    total = needed
    while total - int(0.01 * total) < needed:
        total += 1
    return total


def main() -> None:
    """Read the text, ask the question, and print the answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder; for a name on the hub, vLLM does not always find the sparse table")
    parser.add_argument("text", type=Path, help="file with the text")
    parser.add_argument("question")
    parser.add_argument("--gpus", type=int, default=4, help="at most 4 for the 7B model, 8 for the 14B model")
    parser.add_argument("--length", type=int, default=1_010_000, help="prompt and answer together, in tokens")
    parser.add_argument("--quantization", choices=["fp8"], help="quantize the weights when loading them")
    parser.add_argument("--max-tokens", type=int, default=8192, help="maximum tokens of the answer")
    args = parser.parse_args()

    llm = LLM(
        model=args.model,
        tensor_parallel_size=args.gpus,
        max_model_len=args.length,
        quantization=args.quantization,
        enable_chunked_prefill=True,
        max_num_batched_tokens=131072,
        max_num_seqs=1,
        enforce_eager=True,
        enable_prefix_caching=False,
        # By default the engine gives all free memory to the KV cache, and the first long prompt has none for the
        # buffers of sparse attention. The blocks of a single prompt leave room for them.
        num_gpu_blocks_override=blocks(args.length),
    )
    prompt = f"{args.text.read_text(encoding='utf-8')}\n\n{args.question}"
    sampling = SamplingParams(temperature=0.7, top_p=0.8, repetition_penalty=1.05, max_tokens=args.max_tokens)
    (output,) = llm.chat([{"role": "user", "content": prompt}], sampling)
    answer = output.outputs[0]
    if not answer.token_ids and answer.finish_reason == "length":
        raise SystemExit(f"The engine ignored the prompt of {len(output.prompt_token_ids)} tokens.")
    print(answer.text)


if __name__ == "__main__":
    main()
