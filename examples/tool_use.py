"""Let a served model call a Python function, and answer with the function's result.

vllm serve MODEL --enable-auto-tool-choice --tool-call-parser hermes
python examples/tool_use.py http://127.0.0.1:8000

The model itself chooses to call the tool. Do not name it with `tool_choice`: with dual chunk attention, the V0 engines
of vLLM 0.10.1.1 and 0.10.2 answer that with free text as the tool's arguments.
"""

import argparse
import json
import os
import sys

from openai import BadRequestError, OpenAI


def get_weather(city: str) -> str:
    """The weather in a city; a real program would ask a weather service."""
    return json.dumps({"city": city, "celsius": 21, "sky": "clear"})


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city right now.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "The city's name."}},
                "required": ["city"],
            },
        },
    }
]


def main() -> None:
    """Ask a question, run the tool that the model calls, and print the answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("question", nargs="?", default="What is the weather in Lisbon right now? Use the tool.")
    parser.add_argument("--model", help="name that the model is served under (default: the first in the server's list)")
    args = parser.parse_args()

    client = OpenAI(base_url=f"{args.url}/v1", api_key=os.environ.get("VLLM_API_KEY", "none"))
    model = args.model or client.models.list().data[0].id
    messages = [{"role": "user", "content": args.question}]
    try:
        answer = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, max_tokens=256)
    except BadRequestError as refused:
        sys.exit(f"The server rejects the tools: {refused.message}")
    reply = answer.choices[0].message
    if not reply.tool_calls:
        print(f"The model did not call the tool, but answered: {reply.content}")
        return
    messages.append(reply.model_dump(include={"role", "content", "tool_calls"}))
    for call in reply.tool_calls:
        print(f"The model calls {call.function.name}({call.function.arguments})")
        result = get_weather(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    answer = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, max_tokens=256)
    print(answer.choices[0].message.content)


if __name__ == "__main__":
    main()
