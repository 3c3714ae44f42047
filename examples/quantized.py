"""Serve quantized weights from Python: FP8, AWQ or GPTQ.

    python examples/quantized.py Qwen/Qwen2.5-7B-Instruct --quantization fp8
    python examples/quantized.py Qwen/Qwen2.5-7B-Instruct-AWQ --dtype half --gpus 2

AWQ and GPTQ require a wheel of the profile `full` (or `dca wheel --prebuilt all`), FP8 weights `dca wheel --with fp8`.
A T4 (7.5) does not support bfloat16: use --dtype half. A V100 (7.0) does not support AWQ. "The input size is not
aligned with the quantized weight shape" means too many --gpus: `dca serve plan` shows how many a model supports. An
FP8 KV cache halves the cache of ordinary models; dual chunk attention does not support it.
"""

import argparse

from vllm import LLM, SamplingParams


def main() -> None:
    """Load the weights, and ask one question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, or a name on the hub")
    parser.add_argument(
        "--quantization",
        choices=["fp8", "awq", "awq_marlin", "gptq", "gptq_marlin"],
        help="quantization of the weights (default: config.json's)",
    )
    parser.add_argument("--dtype", default="auto", choices=["auto", "half", "bfloat16"])
    parser.add_argument("--kv-cache-dtype", default="auto", choices=["auto", "fp8_e5m2"])
    parser.add_argument("--gpus", type=int, default=1, help="number of GPUs")
    parser.add_argument("--length", type=int, default=8192, help="prompt and answer together; reduce it to save memory")
    args = parser.parse_args()

    llm = LLM(
        model=args.model,
        quantization=args.quantization,
        dtype=args.dtype,
        kv_cache_dtype=args.kv_cache_dtype,
        tensor_parallel_size=args.gpus,
        max_model_len=args.length,
        gpu_memory_utilization=0.9,
        enforce_eager=True,
    )
    sampling = SamplingParams(temperature=0.7, top_p=0.8, repetition_penalty=1.05, max_tokens=256)
    (output,) = llm.chat([{"role": "user", "content": "Which numbers are lost when weights are quantized?"}], sampling)
    print(output.outputs[0].text)


if __name__ == "__main__":
    main()
