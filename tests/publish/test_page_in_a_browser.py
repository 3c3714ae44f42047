"""The front page in headless Chromium, narrow and wide, light and dark: nothing is cut, and all of it can be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dca import publish
from dca.publish.folder import Folder
from tests.support.browser import measured, needs_chromium
from tests.support.made_wheels import Details, make, put

pytestmark = [needs_chromium, pytest.mark.whole]
ADDRESS = "https://wheels.example/a/long/path/that/does/not/end/where/a/phone/does/evil-1.0-py3-none-any.whl"
# What has no place to break: names, addresses and reasons that others write.
LONG = Details(
    requires=(f"evil @ {ADDRESS}",), changed={f"a_package_whose_name_{'goes_on_and_' * 8}on/__init__.py": b""}
)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("count", [1, 3, 60])
def test_the_page_is_never_wider_than_the_window(count: int, dark: bool, tmp_path: Path) -> None:
    index, projects = tmp_path / "index", ("vllm", "flash_attn", "a_project_with_a_very_long_name_that_a_phone_breaks")
    wheels = [
        make(
            tmp_path / "dist",
            f"0.{number}.0+dca{number}.cu12{number % 4}.lean.sm80.sm90",
            project=projects[number % len(projects)],
            cuda=f"12.{number % 4}",
            details=LONG,
        )
        for number in range(count)
    ]
    put(index, *wheels, url=f"https://wheels.example/{'long/' * 20}")
    publish.yank([wheels[-1].name], f"see {ADDRESS}", Folder(index))
    shutil.copy(index / "index.html", tmp_path / "page.html")
    for width, seen in measured(tmp_path, dark=dark).items():
        assert seen["scroll"] <= int(width), width
        assert seen["worst"]["ratio"] >= 4.5, seen["worst"]
