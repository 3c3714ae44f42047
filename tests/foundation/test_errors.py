"""Codes, exit codes and the form of messages."""

from __future__ import annotations

import ast
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dca.foundation import data
from dca.foundation.errors import CODES, DcaError, ExitCode, from_os_error
from tests.support import ROOT

CODE = re.compile(r"DCA-\d{3}")


def uses() -> dict[str, set[str]]:
    """Codes of the package's source by the files that use them; the list itself is no use."""
    found: dict[str, set[str]] = {}
    for path in sorted(data.PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path == data.PACKAGE / "foundation/errors.py":
            text = text[text.index("class DcaError") :]
        for code in CODE.findall(text):
            found.setdefault(code, set()).add(path.name)
    return found


def raised() -> Iterator[tuple[str, ast.Call]]:
    """Every `DcaError(…)` of the package's source, with its place."""
    for path in sorted(data.PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "DcaError":
                yield f"{path.name}:{node.lineno}", node


def test_every_code_in_the_source_is_listed() -> None:
    assert {code: files for code, files in uses().items() if code not in CODES} == {}


def test_every_listed_code_is_used_in_the_source() -> None:
    assert sorted(set(CODES) - set(uses())) == []


def test_the_documents_name_only_listed_codes() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    # Codes from DCA-800 on belong to the guards inside of the wheel.
    named = {(page.name, code) for page in pages for code in CODE.findall(page.read_text(encoding="utf-8"))}
    assert sorted((page, code) for page, code in named if code not in CODES and code < "DCA-800") == []


@pytest.mark.parametrize("code", sorted(CODES))
def test_first_digit_is_the_exit_code(code: str) -> None:
    error = DcaError(code, "Something happened.")
    assert error.exit_code == int(code[4])
    assert ExitCode(error.exit_code) is not ExitCode.OK


@pytest.mark.parametrize("code", sorted(CODES))
def test_what_a_code_stands_for_is_one_short_clause(code: str) -> None:
    assert CODES[code] == CODES[code].strip()
    assert not CODES[code].endswith(".")
    assert len(CODES[code].splitlines()) == 1


def test_no_two_codes_stand_for_the_same() -> None:
    assert len(set(CODES.values())) == len(CODES)


def test_every_error_says_what_to_do_next() -> None:
    calls = list(raised())
    assert len(calls) > 50
    silent = [place for place, call in calls if not any(keyword.arg == "remedy" for keyword in call.keywords)]
    assert silent == []


def test_an_unknown_code_cannot_be_raised() -> None:
    with pytest.raises(ValueError, match="DCA-999"):
        DcaError("DCA-999", "Something happened.")


def test_a_message_says_what_why_and_next() -> None:
    error = DcaError("DCA-301", "It is not there.", why="one\ntwo", remedy="look\nagain")
    assert str(error).splitlines() == [
        "DCA-301: It is not there.",
        "  Why:  one",
        "        two",
        "  Next: look",
        "        again",
    ]


def test_a_message_without_reason_and_remedy_is_one_line() -> None:
    assert str(DcaError("DCA-301", "It is not there.")) == "DCA-301: It is not there."


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_a_code_of_its_own(number: int, tmp_path: Path) -> None:
    error = from_os_error(OSError(number, os.strerror(number), str(tmp_path / "file")))
    assert error.code == "DCA-101"
    assert str(tmp_path / "file") in error.what
    assert "--cache-dir" in error.remedy


def test_another_operating_system_error_names_path_and_reason(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone") as refused:
        (tmp_path / "gone").read_bytes()
    error = from_os_error(refused.value)
    assert error.code == "DCA-102"
    assert str(tmp_path / "gone") in error.what
    assert os.strerror(errno.ENOENT) in error.what


def test_an_operating_system_error_without_a_path_is_still_a_sentence() -> None:
    assert str(from_os_error(OSError(errno.EIO, "Input/output error"))).startswith("DCA-102: Input/output error.")
    assert "nothing known" in str(from_os_error(OSError("nothing known")))
