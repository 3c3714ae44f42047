"""Share one model among several GPUs, of this machine or of several.

    CUDA_VISIBLE_DEVICES=0,1 python examples/multi_gpu.py /models/Qwen2.5-7B-Instruct
    ray start --head                       # on the first machine
    ray start --address FIRST:6379         # on each other
    python examples/multi_gpu.py /models/Qwen2.5-14B-Instruct --gpus 8 --ray

The query heads must be divisible by the number of GPUs, and the KV heads by it or it by them: the 7B model takes 1, 2
or 4, the 14B model 1, 2, 4 or 8. With Ray the model's folder must lie under the same path on every machine.
"""

import argparse
import os

from vllm import LLM, SamplingParams


def main() -> None:
    """Load the model on all GPUs, and ask once."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("model", help="a folder, or a name on the hub")
    given.add_argument("--gpus", type=int, help="[as many as CUDA_VISIBLE_DEVICES names]")
    given.add_argument("--ray", action="store_true", help="GPUs of all machines of a Ray cluster")
    asked = given.parse_args()

    visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",") if one.strip()]
    llm = LLM(
        model=asked.model,
        tensor_parallel_size=asked.gpus or len(visible),
        distributed_executor_backend="ray" if asked.ray else None,
        max_model_len=4096,
    )
    sampling = SamplingParams(temperature=0.7, top_p=0.8, repetition_penalty=1.05, max_tokens=256)
    (output,) = llm.chat([{"role": "user", "content": "How do GPUs share the heads of attention?"}], sampling)
    print(output.outputs[0].text)


if __name__ == "__main__":
    main()
