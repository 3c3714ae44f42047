"""JSON text: what is refused and where, and edits that touch no other line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dca.config import text
from dca.config.text import Json, OneLine
from dca.foundation.errors import DcaError
from tests.support import examples
from tests.support.model_configs import changed, config, styled


def parse(content: str | bytes) -> Json:
    return text.parse(content.encode() if isinstance(content, str) else content, "config.json")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=6), VALUES, max_size=6)
INDENTS = st.sampled_from([None, 0, 2, 4, "\t"])


@pytest.mark.slow
@given(OBJECTS, INDENTS)
@settings(max_examples=examples(200), deadline=None)
def test_what_is_parsed_is_what_python_reads(value: dict[str, object], indent: int | str | None) -> None:
    written = json.dumps(value, indent=indent)
    result = parse(written)
    assert result.plain() == json.loads(written)
    assert result.data == written.encode()


@pytest.mark.slow
@given(OBJECTS, st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), VALUES, INDENTS)
@settings(max_examples=examples(300), deadline=None)
def test_a_key_that_is_set_and_removed_leaves_the_others(
    value: dict[str, object], key: str, new: object, indent: int | str | None
) -> None:
    source = parse(json.dumps(value, indent=indent))
    edited = text.put(source, (key,), new)
    assert edited.plain() == {**value, key: json.loads(json.dumps(new))}
    assert text.put(edited, (key,), new) is edited
    assert text.remove(edited, (key,)).plain() == {name: one for name, one in value.items() if name != key}


def lines(source: Json) -> list[str]:
    return source.text.split("\n")


@pytest.mark.parametrize("indent", [1, 2, 4, "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_the_lines_that_must_change_change(indent: int | str, end: str) -> None:
    written = json.dumps(config(), indent=indent).replace("\n", end)
    source = parse(written)
    edited = text.put(source, ("rope_scaling",), {"factor": 4.0, "rope_type": "yarn"})
    new = [line for line in lines(edited) if line not in lines(source)]
    assert [line.strip() for line in new] == ['"rope_scaling": {', '"factor": 4.0,', '"rope_type": "yarn"', "},"]
    assert text.remove(edited, ("rope_scaling",)).text == written
    # The style is that of a program that writes the whole file.
    assert edited.text == json.dumps(dict(sorted(edited.plain().items())), indent=indent).replace("\n", end)


def test_a_value_is_replaced_in_its_place() -> None:
    source = parse('{\n  "a": 1,   \n  "b" :  null ,\n  "c": 3\n}')
    assert text.put(source, ("b",), 2).text == '{\n  "a": 1,   \n  "b" :  2 ,\n  "c": 3\n}'
    assert text.put(source, ("b", "x"), 2).text == '{\n  "a": 1,   \n  "b" :  {\n    "x": 2\n  } ,\n  "c": 3\n}'


@pytest.mark.parametrize(
    ("before", "key", "after"),
    [
        ('{"a": 1, "c": 3}', "b", '{"a": 1, "b": 2, "c": 3}'),
        ('{"a":1,"c":3}', "b", '{"a":1,"b":2,"c":3}'),
        ('{"c": 3}', "b", '{"b": 2, "c": 3}'),
        ('{"c":3}', "d", '{"c":3,"d":2}'),
        ("{}", "b", '{\n  "b": 2\n}'),
        ("{ }", "b", '{\n  "b": 2\n}'),
        ('{"a" : 1 , "c" : 3}', "b", '{"a" : 1 , "b" : 2 , "c" : 3}'),
        ('{"a" : 1 , "c" : 3 }', "d", '{"a" : 1 , "c" : 3 , "d" : 2 }'),
        ('{ "a": 1\n, "c": 3\n}', "b", '{ "a": 1\n, "b": 2\n, "c": 3\n}'),
        # Keys without an order: behind the last.
        ('{"z": 1, "a": 1}', "b", '{"z": 1, "a": 1, "b": 2}'),
    ],
)
def test_the_place_of_a_new_key(before: str, key: str, after: str) -> None:
    edited = text.put(parse(before), (key,), 2)
    assert edited.text == after
    if len(edited.root.members) > 2:
        assert text.remove(edited, (key,)).text == before


@pytest.mark.parametrize(
    ("spelling", "value", "kept"),
    [
        ("4.00", 4.0, True),
        ("4", 4.0, False),
        ("4.0", 4, False),
        ("1e7", 10000000.0, True),
        ("true", 1, False),
        ("1", True, False),
        ("-0.0", 0.0, True),
        ('"\\u0061"', "a", True),
    ],
)
def test_a_number_that_is_right_keeps_its_spelling(spelling: str, value: object, kept: bool) -> None:
    source = parse(f'{{"a": {spelling}}}')
    assert (text.put(source, ("a",), value) is source) == kept


def test_rows_of_a_table_stand_on_one_line_each() -> None:
    edited = text.put(parse('{\n  "a": 1\n}'), ("t",), [OneLine({"0": [1, 2]}), OneLine({"0": [3, 4]})])
    assert edited.text == '{\n  "a": 1,\n  "t": [\n    {"0": [1, 2]},\n    {"0": [3, 4]}\n  ]\n}'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "empty"),
        (" \n", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        ("[]", "begin with `{`"),
        ("null", "begin with `{`"),
        ('{"a": 1', "missing"),
        ('{"a": 1} x', "line 1, column 10"),
        ('{"a": 1,}', "comma before `}`"),
        ('{"a": [1,]}', "comma before `]`"),
        ('{"a" 1}', "colon"),
        ("{'a': 1}", "single quotes"),
        ('{\n // x\n "a": 1}', "line 2, column 2"),
        ('{"a": nan}', "nan is not a JSON number"),
        ('{"a": +Infinity}', "+Infinity is not a JSON number"),
        ('{"a": 01}', "`01` is not a JSON value"),
        ('{"a": 1e999}', "read as Infinity"),
        ('{"a": ' + "1" * 5000 + "}", "5,000 characters"),
        ('{\n"a": 1,\n"a": 2}', "line 3, column 1"),
        ('{"b": {"a": 1, "\\u0061": 2}}', "there twice"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        ('{"a": "\t"}', "escaped"),
        ('{"a": "\\x"}', "escaped"),
        ('{"a":' * 100_000, "nested"),
        ('{"a": ' + "[" * 100_000, "nested"),
        ('{"a": [' + "1," * 250_000 + "1]}", "more than 200,000 values"),
        (b" " * (17 << 20), "17,825,792 bytes"),
        ('{"a": \u00a01}', "value is missing"),
        ('{"a": \u0661}', "value is missing"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_place(content: str | bytes, told: str) -> None:
    with pytest.raises(DcaError) as refused:
        parse(content)
    assert refused.value.code == "DCA-206"
    assert told in refused.value.why
    assert refused.value.remedy


def test_escapes_and_lone_surrogates_are_kept_as_they_stand() -> None:
    written = '{"a": "\\ud800 \\u00e9 \u00e9 \\/", "b": 1}'
    assert text.put(parse(written), ("b",), 2).text == written.replace("1}", "2}")


def test_numbers_that_only_python_reads_stay_as_they_stand() -> None:
    written = '{"a": [0.0, Infinity, -Infinity, NaN], "b": 1}'
    source = parse(written)
    assert source.plain()["a"][:3] == [0.0, float("inf"), float("-inf")]
    assert text.put(source, ("b",), 2).text == written.replace("1}", "2}")


def test_the_line_of_a_key_is_told() -> None:
    source = parse('{\n "a": {\n  "b": 1\n }\n}')
    assert [source.line("a"), source.line("a", "b"), source.line("a", "c"), source.line("z")] == [2, 3, 2, 1]


@pytest.mark.proof
def test_edits_of_configs_in_every_style_change_only_what_they_should(
    chance: random.Random, scale: Callable[[int], int]
) -> None:
    for _ in range(scale(20_000)):
        data = styled(changed(chance), chance)
        source = parse(data)
        key, value = (
            chance.choice(["aa", "max_position_embeddings", "rope_scaling", "zz"]),
            chance.choice([1, {"x": 2.0}]),
        )
        edited = text.put(source, (key,), value)
        assert edited.plain() == {**source.plain(), key: value}
        assert edited.bom == source.bom
        assert edited.text.startswith(source.text[: source.root.start])
        assert edited.text.endswith(source.text[source.root.end :])
        if key not in source.root.members:
            assert text.remove(edited, (key,)).plain() == source.plain()
            if len(source.root.members) > 1:
                assert text.remove(edited, (key,)).data == data
