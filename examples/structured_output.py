"""Make a served model answer in JSON that follows a schema, and validate the answer with pydantic.

    python examples/structured_output.py http://127.0.0.1:8000

`response_format` is OpenAI's field, which vLLM supports; --guided uses vLLM's own field `guided_json` instead.
"""

import argparse
import os
import sys

from openai import OpenAI
from pydantic import BaseModel, ValidationError


class Book(BaseModel):
    """The schema of the answer."""

    title: str
    year: int
    novel: bool


def main() -> None:
    """Ask for a book, and print its fields."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--model", help="name that the model is served under (default: the first in the server's list)")
    parser.add_argument("--guided", action="store_true", help="use vLLM's own field")
    args = parser.parse_args()

    client = OpenAI(base_url=f"{args.url}/v1", api_key=os.environ.get("VLLM_API_KEY", "none"))
    schema = Book.model_json_schema()
    field = (
        {"extra_body": {"guided_json": schema}}
        if args.guided
        else {"response_format": {"type": "json_schema", "json_schema": {"name": "book", "schema": schema}}}
    )
    answer = client.chat.completions.create(
        model=args.model or client.models.list().data[0].id,
        messages=[{"role": "user", "content": "Name a book that you know: title, year, and whether it is a novel."}],
        max_tokens=128,
        **field,
    )
    text = answer.choices[0].message.content or ""
    try:
        book = Book.model_validate_json(text)
    except ValidationError as error:
        sys.exit(f"The answer violates the schema: {error.errors()[0]['msg']}\n{text}")
    print(f"{book.title}, {book.year}, {'a novel' if book.novel else 'not a novel'}")


if __name__ == "__main__":
    main()
