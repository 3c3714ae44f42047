"""Make a served model answer in JSON that follows a schema, and validate the answer with pydantic.

    python examples/structured_output.py http://127.0.0.1:8000

`response_format` is OpenAI's field, which vLLM supports; --guided uses vLLM's own field instead. With dual chunk
attention, the V0 engines of 0.10.1.1 and 0.10.2 ignore all of them without an error (0.9.2 and the fork do not), and
newer engines ignore a field that they have dropped: always validate the answer, as here.
"""

import argparse
import os
import re
import sys

from openai import OpenAI, OpenAIError
from pydantic import BaseModel, ValidationError


class Book(BaseModel):
    """The schema of the answer."""

    title: str
    year: int
    novel: bool


def own_field(client: OpenAI, url: str) -> str:
    """The name of vLLM's own field: `structured_outputs` from 0.11 on, `guided_json` before."""
    try:
        version = str(client.get(f"{url}/version", cast_to=object))
    except OpenAIError:
        version = ""
    numbers = re.search(r"(\d+)\.(\d+)", version)
    newer = numbers is not None and (int(numbers[1]), int(numbers[2])) >= (0, 11)
    return "structured_outputs" if newer else "guided_json"


def main() -> None:
    """Ask for a book, and print its fields."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--model", help="name that the model is served under (default: the first in the server's list)")
    parser.add_argument("--guided", action="store_true", help="use vLLM's own field")
    args = parser.parse_args()

    client = OpenAI(base_url=f"{args.url}/v1", api_key=os.environ.get("VLLM_API_KEY", "none"))
    schema = Book.model_json_schema()
    field = {"response_format": {"type": "json_schema", "json_schema": {"name": "book", "schema": schema}}}
    if args.guided:
        name = own_field(client, args.url)
        field = {"extra_body": {name: schema if name == "guided_json" else {"json": schema}}}
    answer = client.chat.completions.create(
        model=args.model or client.models.list().data[0].id,
        messages=[{"role": "user", "content": "Name a book that you know: title, year, and whether it is a novel."}],
        max_tokens=1024,
        **field,
    )
    text = answer.choices[0].message.content or ""
    try:
        book = Book.model_validate_json(text)
    except ValidationError as error:
        if answer.choices[0].finish_reason == "length" and text.lstrip().startswith("{"):
            sys.exit(f"The answer was cut at its limit, within the JSON:\n{text}")
        sys.exit(f"The answer violates the schema: {error.errors()[0]['msg']}\n{text}")
    print(f"{book.title}, {book.year}, {'a novel' if book.novel else 'not a novel'}")


if __name__ == "__main__":
    main()
