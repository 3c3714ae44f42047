"""Machines of all kinds: what `dca plan` says on each (machines.toml), with every fact about them made up."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from pydantic import Field

from dca.catalogue import host_packages, machine, recipes, toolkits
from dca.catalogue.machine import Compiler, Gpu, Machine, Python
from dca.catalogue.plan import Reach, Reachability
from dca.catalogue.toolkits import FoundToolkit
from dca.cli import plan
from dca.foundation import datafile
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.pipeline import bundle, probing


class Distribution(Value):
    """What a distribution comes with."""

    glibc: str
    gcc: tuple[str, ...]
    python: str
    system: str = "Linux"
    processor: str = "x86_64"


class Row(Value):
    """A machine, and the verdict."""

    name: str
    distribution: str
    says: str
    source: str = Field(min_length=10)
    options: str = ""
    gpus: tuple[str, ...] = ()
    driver: str = ""
    reports_cuda: str = ""
    gcc: tuple[str, ...] | None = None
    python: str = ""
    headers: bool = True
    processor: str = ""
    toolkits: tuple[str, ...] = ()
    network: tuple[str, ...] = ("index", "apt")
    more: tuple[str, ...] = ()
    never: tuple[str, ...] = ()


class Table(Value):
    """machines.toml."""

    distributions: dict[str, Distribution]
    machines: tuple[Row, ...]


TABLE = datafile.load(Table, Path(__file__).with_name("machines.toml"))
CUDA = toolkits.load_versions()


def facts(row: Row) -> Machine:
    """The machine of a row."""
    system = TABLE.distributions[row.distribution]
    gpus = tuple(Gpu(name=name, arch=arch) for arch, _, name in (gpu.partition(" ") for gpu in row.gpus))
    versions = system.gcc if row.gcc is None else row.gcc
    return Machine(
        system=system.system,
        processor=row.processor or system.processor,
        cores=8,
        memory_gib=64.0,
        compilers=tuple(
            Compiler(path=f"/usr/bin/g++-{version}", major=int(version.split(".")[0]), version=version)
            for version in versions
        ),
        python=Python(version=row.python or system.python, path="/usr/bin/python3", headers=row.headers),
        gpus=gpus,
        driver=CUDA.drivers.driver(row.driver, row.reports_cuda) if row.driver else None,
        toolkits=tuple(
            FoundToolkit(path=f"/usr/local/cuda-{version}", version=version, origin=f"/usr/local/cuda-{version}")
            for version in row.toolkits
        ),
        glibc=system.glibc,
        installer=host_packages.of(dict(zip(("ID", "VERSION_ID"), row.distribution.lower().split(), strict=False))),
    )


def reach(row: Row) -> Reach:
    """What can be reached from the machine of a row."""

    def answer(kind: str) -> Reachability:
        return Reachability(ok=kind in row.network, why="" if kind in row.network else f"no {kind}")

    places = {"index": answer("index")}
    for kit in toolkits.load_sources():
        places |= {f"apt:{kit.name}": answer("apt"), f"redist:{kit.name}": answer("nvidia")}
    for loaded in known():
        for name in bundle.sources_of(loaded.recipe):
            places |= {url: answer("github") for url in loaded.recipe.origin(name).urls}
    return Reach(places=places)


known = cache(recipes.load_all)
"""The recipes, read once."""


@pytest.mark.parametrize("row", TABLE.machines, ids=lambda row: row.name)
def test_a_machine_gets_the_right_verdict(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipes, "load_all", known)
    monkeypatch.setattr(machine, "look", lambda **_: facts(row))
    monkeypatch.setattr(probing, "probe", lambda *_: reach(row))
    said, text = verdict(shlex.split(row.options), tmp_path, capsys)
    assert said == row.says
    # Sentences are wrapped to the width of the terminal.
    text = " ".join(text.split())
    assert [more for more in row.more if more not in text] == []
    assert [never for never in row.never if never in text] == []


@pytest.mark.slow
def test_for_another_driver_nothing_is_probed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = TABLE.machines[0]
    answers = iter([reach(row)])
    monkeypatch.setattr(recipes, "load_all", known)
    monkeypatch.setattr(machine, "look", lambda **_: facts(row))
    monkeypatch.setattr(probing, "probe", lambda *_: next(answers))
    said = [verdict(options, tmp_path, capsys)[0] for options in ([], ["--driver", "550.54"], ["--driver", "580"])]
    assert said == [row.says] * 3


def verdict(options: list[str], cache: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The first line of `dca plan`, without the patch revision and the name of a recipe; and all that it prints."""
    try:
        plan.command.main(["--cache-dir", str(cache), *options], standalone_mode=False)
    except DcaError as error:
        names = "|".join(re.escape(loaded.recipe.name) for loaded in known())
        reason = re.sub(f"^({names}): ", "", (error.why or error.what).splitlines()[0])
        return f"{error.code}: {reason}", f"{error.what} {error.why} {error.remedy}"
    text = capsys.readouterr().out
    return re.sub(r"\+dca\d+", "+dca", text.splitlines()[0]), text


def test_the_table_is_of_many_machines_each_with_its_own_name() -> None:
    names = [row.name for row in TABLE.machines]
    assert len(names) >= 40
    assert len(set(names)) == len(names)
    assert {row.distribution for row in TABLE.machines} == set(TABLE.distributions)
