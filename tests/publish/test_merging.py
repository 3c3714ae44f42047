"""What other indexes have, published to one: everything once, with its evidence, and nothing that was changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dca import publish
from dca.foundation import documents, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.publish import layout
from dca.publish.check import check
from dca.publish.folder import Folder
from dca.publish.merging import merge
from dca.publish.records import read_records
from dca.publish.values import Published, Record
from tests.publish.conftest import Dca
from tests.publish.test_publish import files, smoke_of
from tests.support.made_wheels import make, put


def merged(target: Path, *sources: Path) -> Published:
    return merge(sources, Folder(target), store.Store(target.parent / "other-cache"), Silent())


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two indexes: a wheel with reports, and another wheel beside the first one's bytes."""
    first, second = make(tmp_path, "1.0+dca1.cu124"), make(tmp_path, "2.0+cu121", cuda="12.1")
    (tmp_path / "smoke.json").write_bytes(documents.dumps(smoke_of(first)))
    (tmp_path / "notes.txt").write_text("tried by hand")
    put(tmp_path / "a", first, evidence=[tmp_path / "smoke.json", tmp_path / "notes.txt"])
    put(tmp_path / "b", first, second)
    return tmp_path / "a", tmp_path / "b"


def records(index: Path) -> dict[str, Record]:
    return {record.version: record for record in read_records(Folder(index)).records()}


def test_two_indexes_become_one_with_every_wheel_once_and_its_evidence(two: tuple[Path, Path], tmp_path: Path) -> None:
    before = [files(one) for one in two]
    done = merged(tmp_path / "all", *two)
    assert [record.version for record in done.added] == ["1.0+dca1.cu124", "2.0+cu121"]
    assert check(tmp_path / "all").fine
    found, was = records(tmp_path / "all"), records(two[0])
    assert list(found) == ["1.0+dca1.cu124", "2.0+cu121"]
    proofs = found["1.0+dca1.cu124"].evidence
    assert {proof.kind: (proof.path, proof.sha256) for proof in proofs} == {
        proof.kind: (proof.path, proof.sha256) for proof in was["1.0+dca1.cu124"].evidence
    }
    assert {"inspection", "notes", "smoke"} == {proof.kind for proof in proofs}
    assert [files(one) for one in two] == before
    whole = files(tmp_path / "all")
    again = merged(tmp_path / "all", *two)
    assert (again.added, again.changed) == ((), ())
    assert files(tmp_path / "all") == whole


def test_what_is_yanked_or_removed_there_is_left_out(two: tuple[Path, Path], tmp_path: Path) -> None:
    publish.yank(["2.0+cu121"], "wrong", Folder(two[1]))
    publish.remove(["1.0+dca1.cu124"], Folder(two[0]))
    merged(tmp_path / "all", *two)
    assert list(records(tmp_path / "all")) == ["1.0+dca1.cu124"]


def wheel_of(index: Path) -> Path:
    return next(index.joinpath(layout.FILES).glob("*.whl"))


def report_of(index: Path) -> Path:
    return next(index.joinpath(layout.EVIDENCE).glob("*/smoke-*.json"))


@pytest.mark.parametrize("named", [wheel_of, report_of])
@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(path.read_bytes() + b"x")])
def test_a_file_that_is_not_what_its_record_names_ends_the_merge(
    named: Callable[[Path], Path], change: Callable[[Path], object], two: tuple[Path, Path], tmp_path: Path
) -> None:
    change(named(two[0]))
    with pytest.raises(DcaError, match=r"is not there, or is not the file") as error:
        merged(tmp_path / "all", two[0])
    assert error.value.code == "DCA-908"
    assert not (tmp_path / "all").exists()


def test_other_bytes_under_a_name_are_refused_and_those_before_stay(two: tuple[Path, Path], tmp_path: Path) -> None:
    put(tmp_path / "c", make(tmp_path / "other", "2.0+cu121", cuda="12.1", content="x = 2\n"))
    with pytest.raises(DcaError) as error:
        merged(tmp_path / "all", two[1], tmp_path / "c")
    assert error.value.code == "DCA-902"
    assert check(tmp_path / "all").fine
    assert len(records(tmp_path / "all")) == 2


def test_a_folder_that_is_no_index_is_named(dca_index: Dca, tmp_path: Path) -> None:
    tmp_path.joinpath("empty").mkdir()
    done = dca_index("merge", tmp_path / "empty", "--index", tmp_path / "all", "--cache-dir", tmp_path / "cache")
    assert done.returncode != 0
    assert "DCA-904" in done.stderr
    assert not (tmp_path / "all").exists()


def test_the_command_says_what_it_added(two: tuple[Path, Path], dca_index: Dca, tmp_path: Path) -> None:
    done = dca_index("merge", *two, "--index", tmp_path / "all", "--cache-dir", tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("  added  ") == 2
