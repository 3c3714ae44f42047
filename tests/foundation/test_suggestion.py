from __future__ import annotations

from typing import Any

import pytest

from dca.foundation.suggestion import did_you_mean


@pytest.mark.parametrize(
    ("name", "options", "question"),
    [
        ("whel", {}, "did you mean wheel?"),
        ("whel", {"form": "`dca {}`"}, "did you mean `dca wheel`?"),
        ("zzzz", {}, "choose one."),
        ("QWEN-8", {}, "choose one."),
        ("QWEN-8", {"any_case": True}, "did you mean Qwen-8B?"),
    ],
)
def test_the_nearest_known_name_is_suggested(name: str, options: dict[str, Any], question: str) -> None:
    assert did_you_mean(name, ["fetch", "wheel", "Qwen-8B"], "choose one.", **options) == question
