"""What --need demands, and how it is written."""

from __future__ import annotations

import pytest

from dca.foundation.errors import DcaError
from dca.smoke.values import Level
from dca.trust import needs
from dca.trust.verify import Finding, Status, Verification


def verification(status: Status, level: Level) -> Verification:
    finding = Finding(check="smoke", status=status, says="so")
    return Verification(wheel="a.whl", sha256="0" * 64, level=level, findings=(finding,))


@pytest.mark.parametrize(
    ("need", "status", "level", "met"),
    [
        ("smoke", "proven", "cpu", True),
        ("smoke:cpu", "proven", "cpu", True),
        ("smoke:static", "proven", "cpu", True),
        ("smoke:kernels", "proven", "cpu", False),
        # A GPU runs the same cases, but does not report races.
        ("smoke:kernels", "proven", "gpu", False),
        ("smoke:cpu", "claimed", "gpu", False),
        ("smoke", "claimed", "gpu", False),
        ("smoke", "wrong", "gpu", False),
        ("signature", "proven", "gpu", False),
        ("index", "proven", "gpu", True),
    ],
)
def test_only_what_is_proven_meets_a_need(need: str, status: Status, level: Level, met: bool) -> None:
    unmet = needs.of_wheel(needs.parse([need]), verification(status, level))
    assert bool(unmet) is not met
    assert all(f"--need {need} is not met" in one for one in unmet)


def test_needs_are_lists() -> None:
    assert [str(need) for need in needs.parse(["signature, smoke:gpu", "index,signature"])] == [
        "signature",
        "smoke:gpu",
        "index",
    ]


@pytest.mark.parametrize("text", ["smoke:", "smoke:all", "signature:gpu", "proof", ":", "smoke:cpu:gpu"])
def test_what_is_no_check_is_rejected(text: str) -> None:
    with pytest.raises(DcaError) as error:
        needs.parse([text])
    assert error.value.code == "DCA-201"
