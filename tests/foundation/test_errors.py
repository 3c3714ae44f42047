"""Codes, exit codes and the form of messages."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dca.catalogue import failures
from dca.foundation import data
from dca.foundation.errors import DcaError, ExitCode, from_os_error
from tests.support import ROOT


def raised() -> Iterator[tuple[str, ast.Call]]:
    """Every `DcaError(…)` of the package's source, with its place."""
    for path in sorted(data.PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        # Walking the trees of all files takes a second.
        for node in ast.walk(ast.parse(text)) if "DcaError(" in text else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "DcaError":
                yield f"{path.name}:{node.lineno}", node


@pytest.mark.parametrize("code", sorted(failures.load().codes))
def test_first_digit_is_the_exit_code(code: str) -> None:
    error = DcaError(code, "Something happened.")
    assert error.exit_code == int(code[4])
    assert ExitCode(error.exit_code) is not ExitCode.OK


def test_every_error_says_what_to_do_next() -> None:
    calls = list(raised())
    assert len(calls) > 50
    silent = [place for place, call in calls if not any(keyword.arg == "remedy" for keyword in call.keywords)]
    assert silent == []


@pytest.mark.parametrize("code", ["", "DCA-", "DCA-001", "DCA-30", "DCA-3000", "dca-301", "E301"])
def test_what_is_no_code_cannot_be_raised(code: str) -> None:
    with pytest.raises(ValueError, match="is not an error code"):
        DcaError(code, "Something happened.")


def test_an_error_is_raised_and_printed_without_any_data_file() -> None:
    probe = (
        "import sys\n"
        "from dca.foundation.errors import DcaError\n"
        "error = DcaError('DCA-301', 'It is not there.')\n"
        "assert (str(error), error.exit_code) == ('DCA-301: It is not there.', 3)\n"
        "print(sorted({'tomllib', 'tomli', 'pydantic', 'dca.foundation.data'} & set(sys.modules)))"
    )
    # Coverage, which measures the programs that tests start, imports one of them.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    env["PYTHONPATH"] = str(ROOT / "scripts")
    done = subprocess.run([sys.executable, "-c", probe], env=env, text=True, capture_output=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("parts", "lines"),
    [
        ({"why": "one\ntwo", "remedy": "look\nagain"}, ["  Why:  one", "        two", "  Next: look", "        again"]),
        ({}, []),
    ],
)
def test_a_message_says_what_why_and_next(parts: dict[str, str], lines: list[str]) -> None:
    error = DcaError("DCA-301", "It is not there.", **parts)  # type: ignore[arg-type]
    assert str(error).splitlines() == ["DCA-301: It is not there.", *lines]


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
