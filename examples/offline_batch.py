"""Answer many prompts at once, without a server: chat template applied, with the sampling that Qwen recommends.

CUDA_VISIBLE_DEVICES=0 python examples/offline_batch.py Qwen/Qwen2.5-7B-Instruct "First question" "Second one"
"""

import argparse

from vllm import LLM, SamplingParams

QUESTIONS = ["What is dual chunk attention?", "Why is YaRN static?", "Name three uses of a million tokens of context."]


def main() -> None:
    """Ask all questions in one batch."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("model", help="a folder, or a name on the hub")
    given.add_argument("questions", nargs="*", default=QUESTIONS)
    given.add_argument("--max-tokens", type=int, default=512)
    asked = given.parse_args()

    # The engine's own defaults repeat themselves.
    sampling = SamplingParams(
        temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05, max_tokens=asked.max_tokens
    )
    llm = LLM(model=asked.model, max_model_len=4096, gpu_memory_utilization=0.85)
    system = {"role": "system", "content": "You are a helpful assistant."}
    conversations = [[system, {"role": "user", "content": question}] for question in asked.questions]
    for question, output in zip(asked.questions, llm.chat(conversations, sampling), strict=True):
        print(f"> {question}\n{output.outputs[0].text}\n")


if __name__ == "__main__":
    main()
