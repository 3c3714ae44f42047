"""What the command line makes of the words it is given."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from dca.catalogue.plan import Request
from dca.cli import options
from dca.foundation.errors import DcaError


def test_one_value_may_name_several_companions(tmp_path: Path) -> None:
    first, second = tmp_path / "a clone", tmp_path / "b=c,d"
    first.mkdir()
    second.mkdir()
    paths = {"flash-attention": str(first), "flash-attention/csrc/cutlass": str(second)}
    words = [f"{name}={path}" for name, path in paths.items()]
    assert options.companions(tuple(words)) == paths
    assert options.companions((" ".join(words),)) == paths
    assert options.companions((",".join(words),)) == paths


@pytest.mark.parametrize("text", ["flash-attention", "=x", "flash-attention=", ""])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(DcaError) as refused:
        options.companions((text,))
    assert refused.value.code == "DCA-201"


def test_a_companion_is_given_once(tmp_path: Path) -> None:
    with pytest.raises(DcaError, match="given twice"):
        options.companions((f"a={tmp_path} a={tmp_path}",))


@pytest.mark.parametrize("version", ["550", "550.54", "550.54.15", "1000.1"])
def test_a_driver_is_given_by_its_version(version: str) -> None:
    asked = request_of(["--driver", version])
    assert asked.driver == version
    assert options.spelled(asked) == ["--driver", version]


@pytest.mark.parametrize(
    "text", ["", "12.4", "R550", "550.", "550.54.15.1", "550 ", "550-server", "-550", "\N{ARABIC-INDIC DIGIT FIVE}50"]
)
def test_what_is_no_version_of_a_driver_is_refused(text: str) -> None:
    with pytest.raises(DcaError, match="is not a driver version") as refused:
        request_of(["--driver", text])
    assert refused.value.code == "DCA-201"


def request_of(words: list[str]) -> Request:
    """The request that options make."""
    asked: list[Request] = []
    command = click.command()(options.request(lambda request, update: asked.append(request)))
    command.main(words, standalone_mode=False)
    return asked[0]
