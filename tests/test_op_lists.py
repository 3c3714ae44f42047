"""The op lists of the recipes, found again: what imports look up, what whole engines call, and what comes along.

The engines run on a simulated GPU (tests/workers/record_ops.py): tensors lie on the CPU, and ops are answered without
being computed. They are real tensors and not torch's fake ones, because the metadata of dual chunk attention reads
values. The modules are the official wheel's, with every op hidden that the recipe's groups do not list.
"""

from __future__ import annotations

import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from dca.catalogue.recipes import Loaded, Recipe
from dca.compile import bindings, ops
from dca.compile.compiling import Build
from dca.foundation import data, documents, runner, store
from dca.foundation.events import Silent
from dca.pipeline.wheel import Made
from dca.sources import index
from tests.support import ROOT, RunDca, install

WORKER = ROOT / "tests/workers/record_ops.py"
pytestmark = pytest.mark.whole


@dataclass(frozen=True)
class Run:
    """One process: scenarios on a simulated GPU, with the profile's groups and further ones."""

    scenarios: tuple[str, ...]
    capability: str
    groups: tuple[str, ...] = ()
    hides: bool = True
    """Whether what is not listed is hidden; else it is there, and only whoever asks for it is told that it is not."""


IMPORTS = Run((), "8.0", hides=False)
RUNS = (
    IMPORTS,
    Run(("passes",), "9.0", hides=False),
    Run(("dual_chunk", "tensors", "all_reduce", "passes"), "9.0"),
    Run(("first_engine", "second_engine"), "8.0"),
    Run(("fp8_weights",), "8.9", ("fp8",)),
    Run(("experts", "small_heads"), "8.0", ("moe", "hdim64")),
    Run(("fp8_experts",), "9.0", ("fp8", "moe")),
)


# What releases lack: dual chunk attention for Qwen3, or for prompts below the sparse threshold, in the official wheel,
# which is not patched;
# and the fork is older than Qwen3, and its V1 is an experiment.
LACKS = {"vllm-0.9.2": ("qwen3_dual_chunk", "dense_dual_chunk"), "qwen-fork": ("qwen3", "second_engine")}


@dataclass
class Bench:
    """An environment with vLLM, the official wheel's modules, and the sources they were compiled from.

    Args:
        modules: those that are not the installed ones.
        known: ops that the modules register.
    """

    recipe: Recipe
    python: Path
    modules: dict[str, Path]
    driver: Path
    source: Path
    folder: Path
    known: set[str]
    told: dict[Run, dict[str, Any]] = field(default_factory=dict)

    @property
    def runs(self) -> tuple[Run, ...]:
        """Those whose groups the recipe has, and whose engines."""
        found = (run for run in RUNS if set(run.groups) <= set(self.recipe.groups))
        if "second_engine" not in LACKS.get(self.recipe.name, ()):
            return tuple(found)
        of_second = {"second_engine", "passes", "fp8_weights", "experts", "small_heads", "fp8_experts"}
        kept = {run: tuple(name for name in run.scenarios if name not in of_second) for run in found}
        return tuple(
            replace(run, scenarios=scenarios) for run, scenarios in kept.items() if scenarios or not run.scenarios
        )

    def listed(self, groups: tuple[str, ...]) -> set[str]:
        """Ops and answers of the profile and of further groups."""
        chosen = [self.recipe.groups[name] for name in (*self.recipe.lean.groups, *groups)]
        return {op for group in chosen for op in (*group.ops, *group.answers)}

    def run(
        self, run: Run, hidden: tuple[str, ...] = (), name: str = "", lacks: tuple[str, ...] = ()
    ) -> runner.Completed:
        """One process of the worker; `lacks` are further things to do without."""
        folder = self.folder / f"{name}{'-'.join(run.scenarios)}-{run.capability}"
        folder.mkdir()
        listed = sorted(self.listed(run.groups) - set(hidden)) if run.hides else None
        given = {
            "driver": str(self.driver),
            "capability": [int(part) for part in run.capability.split(".")],
            "modules": {name: str(path) for name, path in self.modules.items()},
            "listed": listed,
            "scenarios": run.scenarios,
            "folder": str(folder),
            "lacks": [*LACKS.get(self.recipe.name, ()), *lacks],
        }
        (folder / "given.json").write_text(json.dumps(given))
        return runner.run(
            [self.python, "-I", WORKER, folder / "given.json"],
            cwd=folder,
            env={"HOME": str(folder)},
            timeout=900.0,
            supervision=runner.Supervision(keep_lines=4000),
        )

    def record(self) -> None:
        """All processes, two at a time."""
        with ThreadPoolExecutor(max_workers=2) as pool:
            for run, done in zip(self.runs, pool.map(self.run, self.runs), strict=True):
                assert done.ok, f"{run}: " + done.text[-6000:]
                self.told[run] = result(done)

    def called(self, *groups: str) -> dict[str, str]:
        """What the runs with exactly these groups called, with where."""
        found: dict[str, str] = {}
        for run, told in self.told.items():
            if run.groups == groups:
                found |= told["called"]
        return found

    def along(self, needed: set[str]) -> tuple[set[str], dict[str, set[str]]]:
        """Ops that are compiled with the needed ones at no cost, and by source the needed ops that it defines.

        They are those whose function stands in the same source. A module whose registrations are not cut out of
        upstream's registers everything that it has.
        """
        free: set[str] = set()
        by_source: dict[str, set[str]] = {}
        for name, module in self.recipe.modules.items():
            sources = {path for group in self.recipe.groups.values() if group.module == name for path in group.sources}
            if module.bindings is None:
                own = {op for op in self.known if op.split("::")[0] == name}
                free |= own if own & needed else set()
                continue
            functions = functions_of(self.source / module.bindings, name, module.undefined)
            for source in sources:
                defined, working = defined_in(self.source / source, functions)
                by_source[source] = defined & needed
                free |= working if defined & needed else set()
        return free - needed, by_source


def result(done: runner.Completed) -> dict[str, Any]:
    line = next(line for line in reversed(done.tail) if line.startswith("TOLD "))
    told: dict[str, Any] = json.loads(line.removeprefix("TOLD "))
    return told


def functions_of(file: Path, module: str, undefined: tuple[str, ...]) -> dict[str, str]:
    """The C++ function of every op that upstream registers."""
    _, blocks = bindings.parse(file.read_text(), undefined)
    return {
        f"{module}{block.suffix}::{statement.op}": match[1]
        for block in blocks
        for statement in block.statements
        if statement.op and (match := re.search(r"&\s*(\w+)\s*\)", statement.text))
    }


def defined_in(file: Path, functions: dict[str, str]) -> tuple[set[str], set[str]]:
    """The ops whose functions a source defines, and those of them that do something."""
    text = re.sub(r"//[^\n]*", "", file.read_text())
    found, working = set(), set()
    for op, function in functions.items():
        start = re.search(rf"^[A-Za-z_][\w:<>,&*\s]*\b{function}\s*\([^;{{}}]*\)\s*\{{", text, re.MULTILINE)
        if start is None:
            continue
        found.add(op)
        # An entry that can only raise in this build must not come along: vLLM takes an op that is there for one that
        # works.
        if "TORCH_CHECK_NOT_IMPLEMENTED" not in text[start.end() :].partition("\n}")[0]:
            working.add(op)
    return found, working


@pytest.fixture(scope="module")
def bench(
    made: Made,
    run_python: Path,
    all_recipes: tuple[Loaded, ...],
    cache: store.Store,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bench:
    """The recipe of the one wheel, in the environment that it is installed in."""
    name = json.loads((Path(made.run) / "plan.json").read_text())["recipe"]
    recipe = next(one.recipe for one in all_recipes if one.recipe.name == name)
    source = Path(json.loads((Path(made.run) / "source.json").read_text())["folders"]["source"])
    found = set_up(recipe, run_python, source, cache, tmp_path_factory.mktemp("ops"))
    found.record()
    return found


def set_up(recipe: Recipe, python: Path, source: Path, cache: store.Store, folder: Path) -> Bench:
    official = recipe.official_wheel
    assert official is not None
    paths = {f"vllm.{name}": f"vllm/{name}.abi3.so" for name in ("_C", "_moe_C")}
    brought = index.members(official, {path: official.members[path].sha256 for path in paths.values()}, cache, Silent())
    modules = {name: brought[path] for name, path in paths.items()}
    driver = ops.driver_stand_in(modules["vllm._C"], folder, "g++")
    return Bench(recipe, python, modules, driver, source, folder, set(official.schemas))


def check(bench: Bench) -> None:
    """The profile's ops are those that were needed, and what comes with them; each source is there for one of them."""
    needed = bench.called()
    for run, told in bench.told.items():
        assert told["failed"] == {}
        # Without it vLLM says nothing and reduces with NCCL alone.
        assert told["custom_all_reduce"]
        # Only where nothing is listed: who looks at an op after asking for it would else make needed what is listed.
        needed = needed if run.hides else {**told["insisted"], **needed}
    along, by_source = bench.along(set(needed))
    derived, listed = {*needed, *along}, bench.listed(())
    where = {op: needed.get(op, "comes with its source") for op in derived - listed}
    assert derived == listed, f"needed and not listed: {where}; listed and not needed: {sorted(listed - derived)}"
    for name in bench.recipe.lean.groups:
        for source in bench.recipe.groups[name].sources:
            assert by_source.get(source, {"of another tree"}), f"no op that is needed stands in {source}"


def check_group(bench: Bench, name: str) -> None:
    """A further group's ops are those that only its models call, and what comes with them."""
    group = bench.recipe.groups[name]
    mine = {op for run in bench.runs if name in run.groups for op in bench.told[run]["called"]}
    extra = {op for op in mine - set(bench.called()) if op.split("::")[0] == group.module}
    along, by_source = bench.along(extra)
    assert extra | along == {*group.ops, *group.answers}, (sorted(extra), sorted(along))
    assert all(by_source[source] for source in group.sources), by_source


def test_the_list_of_the_profile_is_the_one_derived(bench: Bench) -> None:
    check(bench)


@pytest.mark.parametrize("name", ["fp8", "moe"])
def test_the_list_of_a_further_group_is_the_one_derived(bench: Bench, name: str) -> None:
    check_group(bench, name)


def test_both_simulated_gpus_import_everything_with_unlisted_ops_hidden(bench: Bench) -> None:
    seen = {run.capability for run, told in bench.told.items() if told["failed"] == {} and run.hides and not run.groups}
    assert seen == {"8.0", "9.0"}


def test_an_op_that_is_missing_is_noticed(bench: Bench, chance: random.Random) -> None:
    """The first is looked up by no import: only a request with a repetition penalty meets it."""
    late = "_C::apply_repetition_penalties_"
    done = bench.run(Run(("dual_chunk",), "9.0"), (late,), "late-")
    assert not done.ok
    assert "no attribute 'apply_repetition_penalties_'" in done.text
    early = chance.choice(sorted(set(bench.told[IMPORTS]["insisted"]) - {"_C_custom_ar::meta_size"}))
    done = bench.run(Run((), "8.0"), (early,), "early-")
    assert f"no attribute '{early.split('::')[1]}'" in done.text, early


def test_schemas_are_the_official_wheels(made: Made, bench: Bench, build_python: Path) -> None:
    """Compared from two processes, because two libraries cannot register the same ops in one."""
    build = documents.read(Build, Path(made.run) / "build.json")
    official = set(ops.schemas(bench.modules["vllm._C"], build_python, "g++"))
    (own,) = [module for module in build.modules if module.name == "_C"]
    assert own.origin == "compiled"
    assert len(own.schemas) >= len(bench.listed(())) - 4
    assert set(own.schemas) - official == set()


@pytest.mark.parametrize("name", ["vllm-0.10.1.1", "vllm-0.9.2"])
def test_the_lists_of_earlier_releases_are_those_derived(
    name: str, all_recipes: tuple[Loaded, ...], dca: RunDca, cache: store.Store, tmp_path: Path
) -> None:
    """In an environment of the recipe's lock and the official wheel."""
    recipe = next(one.recipe for one in all_recipes if one.recipe.name == name)
    fetched = dca("fetch", "--recipe", name, "--json")
    assert fetched.returncode == 0, fetched.stderr
    python = installed(recipe, cache, tmp_path / "venv")
    bench = set_up(recipe, python, Path(json.loads(fetched.stdout)["folders"]["source"]), cache, tmp_path)
    bench.record()
    check(bench)
    for group in {"fp8", "moe"} & set(recipe.groups):
        check_group(bench, group)


def installed(recipe: Recipe, cache: store.Store, folder: Path) -> Path:
    assert recipe.official_wheel is not None
    official = index.download(recipe.official_wheel, cache)
    wheel = folder.parent / recipe.official_wheel.file
    wheel.symlink_to(official)
    python = install(wheel, data.run_lock(recipe.name, "lean"), folder, cache)
    (package,) = folder.glob("lib/python3*/site-packages/vllm")
    kept = {module.path for module in recipe.modules.values()} | {"vllm/_moe_C.abi3.so"}
    # Modules that lean does not build are no more there than ops that it does not list.
    for module in package.rglob("*.so"):
        if module.relative_to(package.parent).as_posix() not in kept:
            module.unlink()
    return python
