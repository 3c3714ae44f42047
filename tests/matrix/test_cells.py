"""The file of a matrix: the cells that it stands for, and one clear error for each mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dca.cli import wheel
from dca.foundation.errors import DcaError
from dca.matrix import cells
from tests.support import ROOT

HEAD = 'schema = "dca.matrix/1"\n'
TWO = HEAD + '[[include]]\nrecipe = ["one", "two"]\ncuda = ["12.4", "12.8"]\n'


def read(folder: Path, text: str) -> list[tuple[str, ...]]:
    (folder / "m.toml").write_text(text)
    return [cell.words for cell in cells.read(folder / "m.toml")]


def test_every_combination_of_a_table_is_a_cell_in_the_order_of_the_options(tmp_path: Path) -> None:
    assert read(tmp_path, TWO) == [
        ("--recipe", "one", "--cuda", "12.4"),
        ("--recipe", "one", "--cuda", "12.8"),
        ("--recipe", "two", "--cuda", "12.4"),
        ("--recipe", "two", "--cuda", "12.8"),
    ]


def test_a_single_value_needs_no_list_and_an_empty_one_leaves_the_option_out(tmp_path: Path) -> None:
    text = HEAD + '[[include]]\nrecipe = "one"\nwith = ["", "moe,fp8"]\nstrict-cuda = [true, false]\n'
    assert read(tmp_path, text) == [
        ("--recipe", "one", "--strict-cuda"),
        ("--recipe", "one"),
        ("--recipe", "one", "--with", "moe,fp8", "--strict-cuda"),
        ("--recipe", "one", "--with", "moe,fp8"),
    ]


def test_a_table_without_keys_is_the_one_cell_without_options(tmp_path: Path) -> None:
    assert read(tmp_path, HEAD + "[[include]]\n") == [()]


def test_exclusions_need_all_their_keys_and_take_any_of_their_values(tmp_path: Path) -> None:
    one = '[[exclude]]\nrecipe = "one"\ncuda = ["12.4", "12.8"]\n'
    assert read(tmp_path, TWO + one) == [("--recipe", "two", "--cuda", "12.4"), ("--recipe", "two", "--cuda", "12.8")]
    left = read(tmp_path, TWO + '[[include]]\nrecipe = "one"\n[[exclude]]\nrecipe = "one"\ncuda = ""\n')
    assert ("--recipe", "one") not in left
    assert len(left) == 4


def test_a_cells_id_depends_on_its_options_alone(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(TWO)
    first = {cell.id for cell in cells.read(tmp_path / "m.toml")}
    (tmp_path / "other.toml").write_text(
        HEAD + '# moved\n[[include]]\ncuda = ["12.8", "12.4"]\nrecipe = ["two", "one"]\n'
    )
    assert {cell.id for cell in cells.read(tmp_path / "other.toml")} == first
    assert len(first) == 4


@pytest.mark.parametrize(
    ("text", "code", "what"),
    [
        ("[[include]]\n", "DCA-202", "the key `schema` is missing"),
        ('schema = "dca.matrix/2"\n[[include]]\n', "DCA-202", "line 1: wrong value for `schema`"),
        (HEAD, "DCA-202", "the key `include` is missing"),
        (HEAD + "include = []\n", "DCA-202", "wrong value for `include`"),
        (HEAD + '[[include]]\nrecpe = "one"\n', "DCA-202", "line 3: unknown key `include.0.recpe`"),
        (HEAD + '[[include]]\njobs = "2"\n', "DCA-202", "line 3: unknown key `include.0.jobs`"),
        (HEAD + "[[include]]\ncuda = 12.4\n", "DCA-202", "line 3: wrong value for `include.0.cuda`"),
        (HEAD + "[[include]]\ncuda = [12.4]\n", "DCA-202", "line 3: wrong value for `include.0.cuda.0`"),
        (HEAD + "[[include]]\ncuda = []\n", "DCA-202", "line 3: wrong value for `include.0.cuda`"),
        (HEAD + "[[include]]\nrecipe = true\n", "DCA-202", "line 3: wrong value for `include.0.recipe.0`"),
        (HEAD + '[[include]]\nvariants = "yes"\n', "DCA-202", "line 3: wrong value for `include.0.variants.0`"),
        (HEAD + "[[include]]\nvariants = 1\n", "DCA-202", "line 3: wrong value for `include.0.variants`"),
        (HEAD + f'[[include]]\nmodel = "{5000 * "a"}"\n', "DCA-202", "line 3: wrong value for `include.0.model`"),
        (HEAD + '[include]\nrecipe = "one"\n', "DCA-202", "line 2: wrong value for `include`"),
        (TWO + f"[[include]]\narch = {[str(n) for n in range(9_997)]}\n", "DCA-223", "stand for 10,001 cells"),
        (HEAD + '[[include]]\nmodel = "a\\nb"\n', "DCA-202", "line 3: wrong value for `include.0.model`"),
        (TWO + '[[exclude]]\narch = ["8.0", "\\u2028"]\n', "DCA-202", "line 6: wrong value for `exclude.0.arch`"),
        (HEAD + "[[include]\n", "DCA-202", "is not TOML"),
        (
            TWO + '[[include]]\ncuda = "12.8"\nrecipe = "two"\n',
            "DCA-223",
            "line 5: the cell `--recipe two --cuda 12.8`",
        ),
        (HEAD + '[[include]]\ncuda = ["12.4", "12.4"]\n', "DCA-223", "line 2: the cell `--cuda 12.4` is there twice"),
        (TWO + '[[exclude]]\nrecipe = "three"\n', "DCA-223", "line 5: the table leaves no cell out"),
        (TWO + "[[exclude]]\n", "DCA-223", "line 5: the table leaves no cell out"),
        (TWO + '[[exclude]]\nrecipe = ["one", "two"]\n', "DCA-223", "no cell is left"),
    ],
)
def test_each_mistake_has_one_error_with_its_place(text: str, code: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(DcaError) as wrong:
        read(tmp_path, text)
    assert wrong.value.code == code
    assert what in wrong.value.what
    assert wrong.value.remedy


@pytest.mark.parametrize(
    ("text", "why", "remedy"),
    [
        ("[[include]]\narch = 8.0\n", 'texts in quotes, such as "8.0", or true and false.', "correct the value."),
        ("[[include]]\narch = [8.0]\n", "it must be a text, in quotes.", "correct the value."),
        ("[[include]]\nvariants = ['no']\n", "it must be true or false.", "correct the value."),
        ("[[include]]\narch = []\n", "the list is empty; remove the key, or give it a value.", "correct the value."),
        ("include = []\n", "it has too few values.", "correct the value."),
        ('[include]\nrecipe = "one"\n', "it must be a list.", "begin the table with [[include]]."),
    ],
)
def test_the_usual_mistakes_are_explained_in_the_words_of_the_file(
    text: str, why: str, remedy: str, tmp_path: Path
) -> None:
    with pytest.raises(DcaError) as wrong:
        read(tmp_path, HEAD + text)
    assert wrong.value.why.endswith(why)
    assert wrong.value.remedy == remedy


def test_a_matrix_that_is_too_large_is_rejected_before_its_cells_are_made(tmp_path: Path) -> None:
    many = [str(number) for number in range(1000)]
    keys = "".join(f"{name} = {many}\n" for name in ("arch", "cuda", "driver", "python", "with", "model"))
    with pytest.raises(DcaError, match="stand for 1,000,000,000,000,000,004 cells, of at most 10,000") as wrong:
        read(tmp_path, TWO + "[[include]]\n" + keys)
    assert "m.toml, line 5, stands for 1,000,000,000,000,000,000." in wrong.value.why
    # As many as are allowed.
    assert len(read(tmp_path, HEAD + f"[[include]]\narch = {many}\ncuda = {many[:10]}\n")) == cells.MOST_CELLS


def test_cells_of_one_id_are_not_called_the_same(tmp_path: Path) -> None:
    """Found by trying: ids are 32 bits of a hash."""
    with pytest.raises(DcaError, match="the cells `--recipe 2202` and `--recipe 56409` have the same id") as wrong:
        read(tmp_path, HEAD + '[[include]]\nrecipe = ["2202", "56409"]\n')
    assert wrong.value.code == "DCA-223"


def test_the_documented_matrix_is_one(tmp_path: Path) -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs/matrix.md").read_text(), re.MULTILINE | re.DOTALL)
    (text,) = blocks
    # Two recipes, two CUDA versions, three lists of archs and two Pythons; without those of one table, with a plugin.
    assert len(read(tmp_path, text)) == 24 - 6 + 1


def test_the_documented_keys_are_those_of_the_file() -> None:
    listed = (
        (ROOT / "docs/matrix.md").read_text().partition("without the dashes in front:")[2].partition(". Each has")[0]
    )
    fields = {field.alias or name for name, field in cells.Axes.model_fields.items()}
    assert set(re.findall(r"`([a-z-]+)`", listed)) == fields


def test_every_key_is_an_option_of_a_build() -> None:
    options = {option.removeprefix("--") for parameter in wheel.command.params for option in parameter.opts}
    assert {field.alias or name for name, field in cells.Axes.model_fields.items()} < options


def test_the_key_that_was_probably_meant_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(DcaError) as wrong:
        read(tmp_path, HEAD + "[[include]]\nstrict_cuda = true\n")
    assert wrong.value.remedy == "did you mean `strict-cuda`?"


def test_a_file_that_does_not_exist_is_said_to(tmp_path: Path) -> None:
    with pytest.raises(DcaError) as wrong:
        cells.read(tmp_path / "none.toml")
    assert wrong.value.code == "DCA-204"
