"""Mistakes in data files are reported with file, line and the nearest name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from dca.foundation import datafile
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError


class Engine(Value):
    maker: str
    power: int = 0
    ratios: tuple[tuple[str, float], ...] = ()
    texts: dict[str, str] = {}


class Wheel(Value):
    size: int
    colour: str = ""


class Spoke(Value):
    length: int


class Axle(Value):
    name: str
    spokes: tuple[Spoke, ...] = ()
    wheel: Wheel | None = None


class Bought(Value):
    kind: Literal["sdist"]
    price: int


class Rented(Value):
    kind: Literal["git"]
    days: int


class Car(Value):
    schema_: Literal["car/1"] = Field(alias="schema")
    name: str
    engine: Engine
    engines: dict[str, Engine] = {}
    axles: tuple[Axle, ...] = ()
    got: Annotated[Bought | Rented, Field(discriminator="kind")] | None = None

    @model_validator(mode="after")
    def _named(self) -> Car:
        if self.name == "nameless":
            raise ValueError("a car must have a name")
        return self


HEAD = 'schema = "car/1"\nname = "x"\n'
ENGINE = '\n[engine]\nmaker = "m"\n'  # lines 3 to 5


def refuse(tmp_path: Path, text: str) -> DcaError:
    path = tmp_path / "car.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DcaError) as refused:
        datafile.load(Car, path)
    return refused.value


def place(error: DcaError) -> str:
    """`NAME:LINE` of the key that a message names."""
    where, _, rest = error.what.partition(": ")
    assert ", line " in where, error.what
    return f"{rest.split('`')[1]}:{where.split(', line ')[1]}"


def test_a_right_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "car.toml").write_text(
        HEAD + '[engine]\nmaker = "m"\nratios = [["a", 1.5]]\n[[axles]]\nname = "front"\n[[axles.spokes]]\nlength = 3\n'
    )
    car = datafile.load(Car, tmp_path / "car.toml")
    assert car.engine.ratios == (("a", 1.5),)
    assert car.axles[0].spokes == (Spoke(length=3),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("colour = 1\n" + HEAD + ENGINE, "colour:1", id="at the top"),
        pytest.param(HEAD + ENGINE + "# power = 1\npowr = 1\n", "engine.powr:7", id="in a table, after a comment"),
        pytest.param(HEAD + 'engine = { maker = "m", powr = 1 }\n', "engine.powr:3", id="in an inline table"),
        pytest.param(HEAD + 'engine.maker = "m"\nengine.powr = 1\n', "engine.powr:4", id="with a dotted key"),
        pytest.param(
            HEAD + ENGINE + '[engines.left]\nmaker = "m"\n[engines.right]\nmaker = "m"\npowr = 1\n',
            "engines.right.powr:10",
            id="in the second of two nested tables",
        ),
        pytest.param(
            HEAD + ENGINE + '[engines."a.b/c d"]\nmaker = "m"\npowr = 1\n', "engines.a.b/c d.powr:8", id="quoted table"
        ),
        pytest.param(HEAD + ENGINE + '[engine.texts]\n"x" = "1"\n"y.z" = 2\n', "engine.texts.y.z:8", id="quoted key"),
        pytest.param(
            HEAD + ENGINE + '[[axles]]\nname = "a"\n[[axles]]\nname = "b"\ncolour = 1\n',
            "axles.1.colour:10",
            id="in the second of two repeated tables",
        ),
        pytest.param(
            HEAD + ENGINE + '[[axles]]\nname = "a"\n[[axles]]\nname = "b"\n[axles.wheel]\nsize = 1\ncolor = ""\n',
            "axles.1.wheel.color:12",
            id="in a table of a repeated table",
        ),
        pytest.param(
            HEAD + ENGINE + '[[axles]]\nname = "a"\n[[axles.spokes]]\nlength = 1\n'
            '[[axles]]\nname = "b"\n[[axles.spokes]]\nlength = 1\n[[axles.spokes]]\nlength = 1\nlenght = 1\n',
            "axles.1.spokes.1.lenght:16",
            id="in a repeated table of a repeated table",
        ),
        pytest.param(
            HEAD + '[engine]\nmaker = "m"\nratios = [\n    ["a", 1.0],\n    ["b", 2.0],\n]\npowr = 1\n',
            "engine.powr:9",
            id="after an array of arrays",
        ),
        pytest.param(
            HEAD + '[engine]\nmaker = "m"\n[engine.texts]\na = """\n[engines]\nx = 1\n"""\nb = 2\n',
            "engine.texts.b:10",
            id="after a text of several lines",
        ),
    ],
)
def test_a_mistake_is_reported_with_its_line(text: str, expected: str, tmp_path: Path) -> None:
    error = refuse(tmp_path, text)
    assert error.code == "DCA-202"
    assert str(tmp_path / "car.toml") in error.what
    assert place(error) == expected


def test_a_wrong_key_is_answered_with_the_nearest_right_one(tmp_path: Path) -> None:
    error = refuse(tmp_path, HEAD + ENGINE + "powr = 1\n")
    assert "unknown key" in error.what
    assert error.remedy == "did you mean `power`?"


def test_a_misspelt_key_is_named_even_where_the_right_one_must_be_there(tmp_path: Path) -> None:
    error = refuse(tmp_path, HEAD + '\n[engine]\nmakre = "m"\n')
    assert place(error) == "engine.makre:5"
    assert error.remedy == "did you mean `maker`?"


def test_the_nearest_name_is_one_that_is_right_in_that_table(tmp_path: Path) -> None:
    # `spoke` is nearest to `spokes`, which only an axle has; the top has `axles` and `engines`.
    assert refuse(tmp_path, "spoke = 1\n" + HEAD + ENGINE).remedy != "did you mean `spokes`?"


def test_a_wrong_key_that_is_near_to_nothing_gets_no_guess(tmp_path: Path) -> None:
    error = refuse(tmp_path, HEAD + ENGINE + "zzzzzz = 1\n")
    assert "did you mean" not in error.remedy
    assert error.remedy


@pytest.mark.parametrize("name", ["git", "sdist"])
def test_a_wrong_key_with_the_name_of_a_source_kind_is_reported(name: str, tmp_path: Path) -> None:
    error = refuse(tmp_path, f"{name} = 1\n" + HEAD + ENGINE)
    assert place(error) == f"{name}:1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param('name = 7\nschema = "car/1"\n' + ENGINE, "name:1", id="number for a text"),
        pytest.param(HEAD + ENGINE + 'power = "much"\n', "engine.power:6", id="text for a number"),
        pytest.param(HEAD + "engine = 3\n", "engine:3", id="number for a table"),
        pytest.param('name = "x"\nschema = "car/2"\n' + ENGINE, "schema:2", id="another schema"),
        pytest.param(HEAD + ENGINE + 'ratios = [["a", 1], ["b", "c"]]\n', "engine.ratios.1.1:6", id="in an array"),
        pytest.param(HEAD + ENGINE + '[got]\nkind = "git"\ndays = "x"\n', "got.days:8", id="in one of two kinds"),
        pytest.param(HEAD + ENGINE + '[got]\nkind = "stolen"\n', "got:6", id="no such kind"),
    ],
)
def test_a_wrong_value_is_reported_with_its_line_and_shown(text: str, expected: str, tmp_path: Path) -> None:
    error = refuse(tmp_path, text)
    assert error.code == "DCA-202"
    assert "wrong value" in error.what
    assert place(error) == expected
    assert error.why


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(HEAD + "\n\n[engine]\npower = 1\n", "engine.maker:5", id="of a table"),
        pytest.param(HEAD + ENGINE + '[[axles]]\nname = "a"\n[[axles]]\n', "axles.1.name:8", id="of a repeated table"),
        pytest.param(HEAD + ENGINE + '[got]\nkind = "sdist"\n', "got.price:6", id="of one of two kinds"),
    ],
)
def test_a_missing_key_is_reported_with_the_line_of_its_table(text: str, expected: str, tmp_path: Path) -> None:
    error = refuse(tmp_path, text)
    assert "is missing" in error.what
    assert place(error) == expected


def test_a_missing_table_is_named_without_a_line(tmp_path: Path) -> None:
    error = refuse(tmp_path, HEAD)
    assert error.what == f"{tmp_path / 'car.toml'}: the key `engine` is missing."


def test_a_very_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    error = refuse(tmp_path, HEAD + ENGINE + f'power = "{"x" * 5000}"\n')
    assert len(error.what) < 400


def test_what_is_wrong_with_the_whole_is_said_without_the_whole(tmp_path: Path) -> None:
    error = refuse(tmp_path, 'schema = "car/1"\nname = "nameless"\n' + ENGINE)
    assert "a car must have a name" in str(error)
    assert "``" not in str(error)
    assert "maker" not in str(error)


def test_what_is_not_toml_is_reported_with_the_line(tmp_path: Path) -> None:
    error = refuse(tmp_path, HEAD + "engine = [\n\n= 3\n")
    assert error.code == "DCA-202"
    assert "is not TOML" in error.what
    assert "line 5" in error.why


def test_what_is_not_utf8_is_said_to_be_so(tmp_path: Path) -> None:
    path = tmp_path / "car.toml"
    path.write_bytes('name = "Grüße"\n'.encode("latin-1"))
    with pytest.raises(DcaError) as refused:
        datafile.load(Car, path)
    assert refused.value.code == "DCA-202"
    assert "UTF-8" in refused.value.what


def test_a_file_that_is_not_there_has_another_code(tmp_path: Path) -> None:
    with pytest.raises(DcaError) as refused:
        datafile.load(Car, tmp_path / "car.toml")
    assert refused.value.code == "DCA-204"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (["a"], 1),
        (["t"], 2),
        (["t", "b"], 3),
        (["t", "b", 0, "x"], 3),
        (["t", "missing"], 2),
        (["t", "q.r"], 4),
        (["missing"], None),
    ],
)
def test_a_line_is_that_of_the_key_or_the_last_one_on_the_way(location: list[Any], expected: int | None) -> None:
    assert datafile.find_line('a = 1\n[t]\nb = 2\n"q.r" = 3\n', location) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("power = 1.5\n", "it must be a whole number."),
        ('ratios = [["a", "b"]]\n', "Input should be a valid number, unable to parse string as a number"),
        ("ratios = 3\n", "it must be a list."),
        ("texts = 3\n", "it must be a table."),
        ("texts = {a = 3}\n", "it must be a text, in quotes."),
    ],
)
def test_why_a_value_is_wrong_is_said_in_words_of_toml(text: str, why: str, tmp_path: Path) -> None:
    assert refuse(tmp_path, HEAD + ENGINE + text).why == why


def test_a_table_in_place_of_a_list_of_tables_is_answered_with_its_brackets(tmp_path: Path) -> None:
    assert refuse(tmp_path, HEAD + ENGINE + '[axles]\nname = "a"\n').remedy == "begin the table with [[axles]]."


def test_the_mark_that_editors_on_windows_write_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "car.toml"
    path.write_bytes(b"\xef\xbb\xbf" + (HEAD + ENGINE).replace("\n", "\r\n").encode())
    assert datafile.load(Car, path).name == "x"
    path.write_bytes(b"\xef\xbb\xbf" + (HEAD + ENGINE + "powr = 1\n").replace("\n", "\r\n").encode())
    with pytest.raises(DcaError, match=r"line 6: unknown key `engine\.powr`"):
        datafile.load(Car, path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + 5000 * "[" + 5000 * "]" + "\n", "nested"),
        ("a = " + 5000 * "9" + "\n", "Exceeds the limit"),
    ],
)
def test_what_toml_allows_and_python_does_not_is_one_message(text: str, said: str, tmp_path: Path) -> None:
    error = refuse(tmp_path, text)
    assert error.code == "DCA-202"
    assert said in f"{error.what} {error.why}"
    assert error.remedy


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero", "."):
        with pytest.raises(DcaError, match="is not a file") as refused:
            datafile.load(Car, tmp_path / name)
        assert refused.value.code == "DCA-204"


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "car.toml").open("wb") as file:
        file.truncate(datafile.MOST_BYTES + 1)
    with pytest.raises(DcaError, match="is larger than 16 MiB"):
        datafile.load(Car, tmp_path / "car.toml")


def test_the_line_of_a_mistake_is_found_in_a_large_file(tmp_path: Path) -> None:
    """In time: each of its keys was once followed to the file's end."""
    text = HEAD + ENGINE + 20_000 * '[[axles]]\nname = "a"\n'
    assert place(refuse(tmp_path, text + "[[axles]]\nlabel = 1\n")) == "axles.20000.label:40007"
