"""What is tried before anything large is downloaded: toolkit, host compiler, Python's headers."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from dca.catalogue import toolkits
from dca.catalogue.header_fixes import HeaderFix
from dca.catalogue.plan import Plan, PlannedToolkit, Request
from dca.foundation import store, together
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.pipeline import gather, wheel
from dca.pipeline.planned import Planned
from dca.sources import fetch
from dca.toolchain import environments, headers, provide


@pytest.mark.parametrize("here", [True, False])
def test_a_toolkit_that_does_not_work_is_refused_before_sources_and_environment_are_there(
    here: bool, planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is here before they are begun, one that must be downloaded while they are."""
    begun, ended = threading.Barrier(3, timeout=20), []

    def refuse(*_: object) -> None:
        if not here:
            begun.wait()
        raise DcaError("DCA-601", "the toolkit could not compile a small kernel.")

    def download(*_: object) -> None:
        try:
            begun.wait()
            while True:
                together.check()
                time.sleep(0.01)
        finally:
            ended.append(1)

    monkeypatch.setattr(provide, "bring", lambda *_: tmp_path)
    monkeypatch.setattr(provide, "is_unpacked", lambda *_: here)
    monkeypatch.setattr(provide, "admit", refuse)
    monkeypatch.setattr(fetch, "fetch", download)
    monkeypatch.setattr(environments, "build_environment", download)
    cache = store.Store(tmp_path / "cache")
    seen = gather.world(Request(recipe=planned.recipe), cache)
    (loaded,) = [loaded for loaded in seen.recipes if loaded.recipe.name == planned.recipe]
    plan = planned.model_copy(update={"toolkit": PlannedToolkit(name=toolkits.load_sources()[0].name, version="1")})
    with pytest.raises(DcaError) as refused:
        wheel.prepare(Planned(plan, loaded.recipe, seen.toolkits, seen.reach), Run(cache, Silent(), tmp_path / "log"))
    assert refused.value.code == "DCA-601"
    assert len(ended) == (0 if here else 2)


def test_headers_of_python_that_do_not_compile_are_refused(planned: Plan, tmp_path: Path) -> None:
    cache, log = store.Store(tmp_path / "cache"), tmp_path / "log"
    provide.admit_python(planned, cache, log)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {tmp_path}\n")
    python.chmod(0o755)
    with pytest.raises(DcaError, match="does not compile the headers of Python") as refused:
        provide.admit_python(planned.model_copy(update={"python_path": str(python)}), cache, log)
    assert refused.value.code == "DCA-306"
    assert "Python.h" in refused.value.why


def test_a_toolkit_of_the_machine_is_stood_in_for_only_with_the_fixes_of_the_plan(
    planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def overlay(folder: Path, version: str, fixes: tuple[HeaderFix, ...], cache: store.Store) -> Path:
        commands.append([fix.name for fix in fixes])
        return tmp_path / "links"

    monkeypatch.setattr(headers, "overlay", overlay)
    monkeypatch.setattr(provide, "admit", lambda *_: None)
    monkeypatch.setattr(provide, "admit_python", lambda *_: None)
    own = PlannedToolkit(name="found", version="12.4.131", path=str(tmp_path))
    cache = store.Store(tmp_path / "cache")
    for fixes, folder in (({}, tmp_path), ({"sinpi": "0" * 64}, tmp_path / "links")):
        plan = planned.model_copy(update={"toolkit": own.model_copy(update={"fixes": fixes})})
        assert provide.toolkit(plan, (), Run(cache, Silent(), tmp_path / "log")) == folder
    assert commands == [["sinpi"]]
