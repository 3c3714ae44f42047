"""Serve quantized weights from Python: FP8, AWQ or GPTQ.

    python examples/quantized.py Qwen/Qwen2.5-7B-Instruct --quantization fp8
    python examples/quantized.py Qwen/Qwen2.5-7B-Instruct-AWQ --dtype half --gpus 2

AWQ and GPTQ are in wheels of the profile `full` (or `dca wheel --prebuilt all`), FP8 weights in `dca wheel --with fp8`.
A T4 (7.5) has no bfloat16: --dtype half. A V100 (7.0) has no AWQ. "The input size is not aligned with the quantized
weight shape" means too many --gpus: `dca serve plan` tells how many a model allows. An FP8 KV cache saves half of the
cache of ordinary models, and does not go together with dual chunk attention.
"""

import argparse

from vllm import LLM, SamplingParams


def main() -> None:
    """Load the weights, and ask once."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("model", help="a folder, or a name on the hub")
    given.add_argument(
        "--quantization", choices=["fp8", "awq", "awq_marlin", "gptq", "gptq_marlin"], help="[what config.json says]"
    )
    given.add_argument("--dtype", default="auto", choices=["auto", "half", "bfloat16"])
    given.add_argument("--kv-cache-dtype", default="auto", choices=["auto", "fp8_e5m2"])
    given.add_argument("--gpus", type=int, default=1)
    given.add_argument("--length", type=int, default=8192, help="less of it where the GPU's memory is too small")
    asked = given.parse_args()

    llm = LLM(
        model=asked.model,
        quantization=asked.quantization,
        dtype=asked.dtype,
        kv_cache_dtype=asked.kv_cache_dtype,
        tensor_parallel_size=asked.gpus,
        max_model_len=asked.length,
        gpu_memory_utilization=0.9,
        enforce_eager=True,
    )
    sampling = SamplingParams(temperature=0.7, top_p=0.8, repetition_penalty=1.05, max_tokens=256)
    (output,) = llm.chat([{"role": "user", "content": "Which numbers are lost when weights are quantized?"}], sampling)
    print(output.outputs[0].text)


if __name__ == "__main__":
    main()
