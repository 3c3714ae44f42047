"""Distribute one model over several GPUs, on one machine or several.

    CUDA_VISIBLE_DEVICES=0,1 python examples/multi_gpu.py /models/Qwen2.5-7B-Instruct
    ray start --head                       # on the first machine
    ray start --address FIRST:6379         # on each other
    python examples/multi_gpu.py /models/Qwen2.5-14B-Instruct --gpus 8 --ray

The number of query heads must be divisible by the number of GPUs; the number of KV heads must be divisible by it, or
divide it. The 7B model supports 1, 2 or 4 GPUs, the 14B model 1, 2, 4 or 8. With Ray, the model's folder must have the
same path on every machine.
"""

import argparse
import os

from vllm import LLM, SamplingParams


def main() -> None:
    """Load the model on all GPUs, and ask one question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, or a name on the hub")
    parser.add_argument("--gpus", type=int, help="number of GPUs (default: those in CUDA_VISIBLE_DEVICES)")
    parser.add_argument("--ray", action="store_true", help="use the GPUs of all machines in a Ray cluster")
    args = parser.parse_args()

    visible = [number for number in os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",") if number.strip()]
    llm = LLM(
        model=args.model,
        tensor_parallel_size=args.gpus or len(visible),
        distributed_executor_backend="ray" if args.ray else None,
        max_model_len=4096,
    )
    sampling = SamplingParams(temperature=0.7, top_p=0.8, repetition_penalty=1.05, max_tokens=256)
    (output,) = llm.chat([{"role": "user", "content": "How do GPUs share the heads of attention?"}], sampling)
    print(output.outputs[0].text)


if __name__ == "__main__":
    main()
