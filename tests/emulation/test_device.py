"""The environment of programs behind the emulated device."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.emulation.device import Device, Settings
from dca.emulation.recording import Wish
from dca.foundation.store import Store


def test_programs_are_given_paths_that_hold_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(ptx=Path("dist/x.ptx.zip"), findings=Path("found.jsonl"), record=Wish(Path("launches")))
    env = Device(tmp_path / "device", "libcudart.so.12").variables(settings, Store(tmp_path / "cache"), {})
    names = ("PTX", "FINDINGS", "RECORD")
    assert [env[f"DCA_EMULATION_{name}"] for name in names] == [
        str(tmp_path / one) for one in ("dist/x.ptx.zip", "found.jsonl", "launches")
    ]
