"""Make a served model answer in JSON that keeps to a schema, and read it back with pydantic.

    python examples/structured_output.py http://127.0.0.1:8000

`response_format` is OpenAI's field and vLLM takes it; --guided uses vLLM's own `guided_json` in its place.
"""

import argparse
import os
import sys

from openai import OpenAI
from pydantic import BaseModel, ValidationError


class Book(BaseModel):
    """What is asked for."""

    title: str
    year: int
    novel: bool


def main() -> None:
    """Ask for a book, and print its fields."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("url")
    given.add_argument("--model", help="the name that it is served under [the first that it lists]")
    given.add_argument("--guided", action="store_true", help="through vLLM's own field")
    asked = given.parse_args()

    client = OpenAI(base_url=f"{asked.url}/v1", api_key=os.environ.get("VLLM_API_KEY", "none"))
    schema = Book.model_json_schema()
    how = (
        {"extra_body": {"guided_json": schema}}
        if asked.guided
        else {"response_format": {"type": "json_schema", "json_schema": {"name": "book", "schema": schema}}}
    )
    answer = client.chat.completions.create(
        model=asked.model or client.models.list().data[0].id,
        messages=[{"role": "user", "content": "Tell a book that you know: title, year, and whether it is a novel."}],
        max_tokens=128,
        **how,
    )
    text = answer.choices[0].message.content or ""
    try:
        book = Book.model_validate_json(text)
    except ValidationError as error:
        sys.exit(f"The answer does not keep to the schema: {error.errors()[0]['msg']}\n{text}")
    print(f"{book.title}, {book.year}, {'a novel' if book.novel else 'no novel'}")


if __name__ == "__main__":
    main()
