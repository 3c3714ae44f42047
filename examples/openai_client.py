"""Chat with a running server through the `openai` client, with the sampling that Qwen recommends.

    python examples/openai_client.py http://127.0.0.1:8000 "What is dual chunk attention?"

Use /v1/chat/completions for chat models: it applies their template. With /v1/completions they ramble, quantized ones
most. `repetition_penalty` and `top_k` are not OpenAI's fields and go through `extra_body`; --plain omits them, for
servers that reject unknown fields.
"""

import argparse
import os

from openai import OpenAI


def main() -> None:
    """Ask one question, and print the answer as it arrives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("question", nargs="?", default="Tell me something about large language models.")
    parser.add_argument("--model", help="name that the model is served under (default: the first in the server's list)")
    parser.add_argument("--max-tokens", type=int, default=512, help="maximum tokens of the answer")
    parser.add_argument("--plain", action="store_true", help="send only OpenAI's own fields")
    args = parser.parse_args()

    # The key that the server was started with (`vllm serve --api-key`); without one, any text works.
    client = OpenAI(base_url=f"{args.url}/v1", api_key=os.environ.get("VLLM_API_KEY", "none"))
    stream = client.chat.completions.create(
        model=args.model or client.models.list().data[0].id,
        messages=[
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": args.question},
        ],
        temperature=0.7,
        top_p=0.8,
        max_tokens=args.max_tokens,
        stream=True,
        extra_body=None if args.plain else {"repetition_penalty": 1.05, "top_k": 20},
    )
    finish = None
    for event in stream:
        for choice in event.choices:
            print(choice.delta.content or "", end="", flush=True)
            finish = choice.finish_reason or finish
    print(f"\n[{finish}]")


if __name__ == "__main__":
    main()
