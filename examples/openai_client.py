"""Talk to a running server through the `openai` client, with the sampling that Qwen recommends.

    python examples/openai_client.py http://127.0.0.1:8000 "What is dual chunk attention?"

Chat models answer through /v1/chat/completions, where their template is applied; through /v1/completions they ramble,
the quantized ones most. `repetition_penalty` and `top_k` are not OpenAI's and go through `extra_body`; --plain leaves
them out for servers that refuse what they do not know.
"""

import argparse
import os

from openai import OpenAI


def main() -> None:
    """Ask once, and print the answer as it comes."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("url")
    given.add_argument("question", nargs="?", default="Tell me something about large language models.")
    given.add_argument("--model", help="the name that it is served under [the first that it lists]")
    given.add_argument("--max-tokens", type=int, default=512)
    given.add_argument("--plain", action="store_true", help="only OpenAI's own fields")
    asked = given.parse_args()

    # The key that the server was started with (`vllm serve --api-key`); any text will do where it has none.
    client = OpenAI(base_url=f"{asked.url}/v1", api_key=os.environ.get("VLLM_API_KEY", "none"))
    stream = client.chat.completions.create(
        model=asked.model or client.models.list().data[0].id,
        messages=[
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": asked.question},
        ],
        temperature=0.7,
        top_p=0.8,
        max_tokens=asked.max_tokens,
        stream=True,
        extra_body=None if asked.plain else {"repetition_penalty": 1.05, "top_k": 20},
    )
    finish = None
    for event in stream:
        for choice in event.choices:
            print(choice.delta.content or "", end="", flush=True)
            finish = choice.finish_reason or finish
    print(f"\n[{finish}]")


if __name__ == "__main__":
    main()
