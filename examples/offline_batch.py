"""Answer many prompts in one batch, without a server, with the chat template and the sampling that Qwen recommends.

CUDA_VISIBLE_DEVICES=0 python examples/offline_batch.py Qwen/Qwen2.5-7B-Instruct "First question" "Second one"
"""

import argparse

from vllm import LLM, SamplingParams

QUESTIONS = ["What is dual chunk attention?", "Why is YaRN static?", "Name three uses of a million tokens of context."]


def main() -> None:
    """Ask all questions in one batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, or a name on the hub")
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    parser.add_argument("--max-tokens", type=int, default=512, help="maximum tokens of each answer")
    args = parser.parse_args()

    # With the engine's default sampling, answers repeat themselves.
    sampling = SamplingParams(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05, max_tokens=args.max_tokens)
    llm = LLM(model=args.model, max_model_len=4096, gpu_memory_utilization=0.85)
    system = {"role": "system", "content": "You are a helpful assistant."}
    conversations = [[system, {"role": "user", "content": question}] for question in args.questions]
    for question, output in zip(args.questions, llm.chat(conversations, sampling), strict=True):
        print(f"> {question}\n{output.outputs[0].text}\n")


if __name__ == "__main__":
    main()
