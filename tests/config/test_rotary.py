"""YaRN's formulas: numbers that were worked out by hand."""

from __future__ import annotations

import math

import pytest

from dca.config import rotary
from dca.config.rotary import Yarn

EXAMPLE = Yarn(factor=4.0, original=32768)


def test_the_documented_example_keeps_24_frequencies_and_divides_the_last_24() -> None:
    """Borders for base 1e6, 128 elements and 32768 tokens: 32 turns at 23.596, one turn at 39.651."""
    plain, found = rotary.plain(128, 1e6), rotary.scaled(128, 1e6, EXAMPLE)
    assert found[:24] == plain[:24]
    assert found[40:] == [one / 4 for one in plain[40:]]
    for i in range(24, 40):
        ramp = (i - 23) / (40 - 23)
        assert found[i] == pytest.approx(plain[i] * (1 - ramp * 3 / 4), rel=1e-14)


def test_frequencies_turn_as_often_as_they_should() -> None:
    plain = rotary.plain(128, 1e6)
    turns = [one * 32768 / (2 * math.pi) for one in plain]
    assert turns[23] > 32 > turns[24]
    assert turns[39] > 1 > turns[40]
    assert plain[0] == 1
    assert plain[32] == pytest.approx(1e-3, rel=1e-14)


@pytest.mark.parametrize(
    ("factor", "wanted"), [(1, 1.0), (0.5, 1.0), (4, 1.1386294361119891), (32, 1.3465735902799727)]
)
def test_attention_factor(factor: float, wanted: float) -> None:
    assert rotary.attention_factor(factor) == pytest.approx(wanted, rel=1e-15)


def test_a_factor_of_one_changes_nothing() -> None:
    plain, found = rotary.plain(64, 1e7), rotary.scaled(64, 1e7, Yarn(factor=1, original=262144))
    assert found == pytest.approx(plain, rel=1e-15)


def test_equal_borders_do_not_divide_by_zero() -> None:
    assert all(
        math.isfinite(one) for one in rotary.scaled(8, 1e6, Yarn(factor=4, original=8, beta_fast=1, beta_slow=1))
    )


@pytest.mark.parametrize("changed", [{"factor": 0}, {"original": 0}, {"beta_fast": 0}, {"beta_slow": -1}])
def test_what_has_no_frequencies_is_refused(changed: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        rotary.scaled(128, 1e6, EXAMPLE.model_copy(update=changed))
