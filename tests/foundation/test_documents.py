"""Documents: canonical bytes, and what is refused when they are read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dca.foundation import documents
from dca.foundation.documents import Document, Value
from dca.foundation.errors import DcaError
from tests.support import examples


class Part(Value):
    name: str
    sizes: dict[str, int] = {}


class Paper(Document):
    SCHEMA: ClassVar[str] = "dca.paper/1"

    title: str
    parts: tuple[Part, ...] = ()
    note: str | None = None


class Folder(Document):
    SCHEMA: ClassVar[str] = "dca.folder/1"

    paper: Paper


PAPER = Paper(title="Grüße 世界", parts=(Part(name="a", sizes={"z": 1, "b": 2}), Part(name="b")))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcdé", max_size=3), inner, max_size=4),
    max_leaves=8,
)


def backwards(value: Any) -> Any:
    """The same JSON value with the keys of every object in the other order."""
    if isinstance(value, dict):
        return {key: backwards(value[key]) for key in reversed(list(value))}
    if isinstance(value, list):
        return [backwards(item) for item in value]
    return value


@settings(max_examples=examples(100), deadline=None)
@given(json_values)
def test_canonical_bytes_do_not_depend_on_the_order_of_keys(value: Any) -> None:
    assert documents.canonical(value) == documents.canonical(backwards(value))
    assert documents.digest(value) == documents.digest(backwards(value))


@settings(max_examples=examples(100), deadline=None)
@given(json_values)
def test_canonical_bytes_are_json_of_the_same_value(value: Any) -> None:
    assert json.loads(documents.canonical(value)) == value


@settings(max_examples=examples(100), deadline=None)
@given(json_values, json_values)
def test_different_values_have_different_digests(left: Any, right: Any) -> None:
    same = documents.canonical(left) == documents.canonical(right)
    assert (documents.digest(left) == documents.digest(right)) == same


def test_canonical_bytes_end_with_one_newline_and_keep_letters() -> None:
    assert documents.canonical({"b": "ü", "a": 1}) == '{\n  "a": 1,\n  "b": "ü"\n}\n'.encode()


def test_documents_that_are_equal_have_equal_bytes() -> None:
    other = Paper(title=PAPER.title, parts=(Part(name="a", sizes={"b": 2, "z": 1}), Part(name="b")))
    assert documents.dumps(other) == documents.dumps(PAPER)


def test_a_document_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    documents.write(PAPER, tmp_path / "run" / "paper.json")
    assert documents.read(Paper, tmp_path / "run" / "paper.json") == PAPER


def test_a_document_names_its_schema(tmp_path: Path) -> None:
    documents.write(Folder(paper=PAPER), tmp_path / "folder.json")
    document = json.loads((tmp_path / "folder.json").read_bytes())
    assert (document["schema"], document["paper"]["schema"]) == ("dca.folder/1", "dca.paper/1")
    assert documents.read(Folder, tmp_path / "folder.json").paper == PAPER


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"schema": "dca.paper/2", "title": "x"}', id="a newer version"),
        pytest.param(b'{"schema": "dca.folder/1", "title": "x"}', id="another schema"),
        pytest.param(b'{"title": "x"}', id="no schema"),
        pytest.param(b'{"schema": "dca.paper/1", "title": "x", "colour": 1}', id="an unknown key"),
        pytest.param(b'{"schema": "dca.paper/1", "title": "x", "parts": [{"name": "a", "x": 1}]}', id="deep inside"),
        pytest.param(b'{"schema": "dca.paper/1"}', id="a missing key"),
        pytest.param(b'{"schema": "dca.paper/1", "title": 7}', id="a wrong type"),
        pytest.param(b'{"schema": "dca.paper/1", "title": "x"', id="cut short"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00\xff\xfe junk", id="junk"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"null", id="null"),
    ],
)
def test_what_is_no_such_document_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "paper.json"
    path.write_bytes(content)
    with pytest.raises(DcaError) as refused:
        documents.read(Paper, path)
    assert refused.value.code == "DCA-104"
    assert str(path) in refused.value.what
    assert path.read_bytes() == content


def test_a_wrong_schema_is_named_with_the_expected_one(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'{"schema": "dca.paper/2", "title": "x"}')
    with pytest.raises(DcaError) as refused:
        documents.read(Paper, tmp_path / "x.json")
    assert "dca.paper/2" in refused.value.why
    assert "dca.paper/1" in refused.value.why


def test_a_document_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PAPER.title = "other"
    with pytest.raises(ValidationError, match="frozen"):
        PAPER.parts[0].name = "other"


def test_a_value_knows_every_one_of_its_keys() -> None:
    with pytest.raises(ValidationError, match="colour"):
        Part.model_validate({"name": "a", "colour": 1})


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "ü\ud800\U0001f600", r"\ud800"])
def test_half_a_character_is_written_as_an_escape(text: str) -> None:
    written = documents.canonical({text: [text]})
    assert json.loads(written.decode()) == {text: [text]}
    assert ("ü" in text) is ("ü".encode() in written)
