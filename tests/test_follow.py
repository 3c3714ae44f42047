"""A branch that moved: it is reported, followed with --update alone, and --pinned goes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.catalogue import recipes, toolkits
from dca.catalogue.mirrors import places
from dca.catalogue.plan import Request
from dca.catalogue.recipes import GitSource, Loaded
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.pipeline import gather
from dca.sources import fetch, git, index
from dca.toolchain import apt, lockfile
from tests.sources.test_git_fetch import server
from tests.support.repositories import Repository

# Each test starts servers or programs.
pytestmark = pytest.mark.slow

__all__ = ["server"]
NAME = "vllm-0.10.2"
COPYING = Request(recipe=NAME, prebuilt=("all",))


class Told(Silent):
    """A reporter that keeps its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def moved(server: tuple[str, str], all_recipes: tuple[Loaded, ...], monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe whose source is on a git server, pinned to the commit before its branch's head; the pinned commit."""
    url, pinned = server
    loaded = next(one for one in all_recipes if one.recipe.name == NAME)
    source = GitSource(kind="git", urls=(url,), branch="main", commit=pinned)
    stand_in = loaded.model_copy(
        update={"recipe": loaded.recipe.model_copy(update={"source": source, "companions": {}})}
    )
    monkeypatch.setattr(recipes, "load_all", lambda: (stand_in,))
    monkeypatch.setattr(toolkits, "load_sources", lambda _="": ())
    monkeypatch.setattr(index, "probe", lambda: "")
    monkeypatch.setattr(apt, "probe", lambda _: "")
    return pinned


def head_of(tmp_path: Path) -> str:
    return git.branch_head(places(local=tmp_path / "work"), "main")


def test_a_branch_that_moved_is_followed_only_when_asked_and_remembered_until_told_otherwise(
    moved: str, tmp_path: Path
) -> None:
    cache, head = store.Store(tmp_path / "cache"), head_of(tmp_path)
    pins = []
    for update in ("", "follow", "", "pinned", ""):
        planned = gather.make_plan(COPYING, cache, update=update)
        plan, source = planned.plan, planned.recipe.source
        pins.append(plan.sources[0].pin.removeprefix("commit:"))
        followed = pins[-1] == head
        assert (f"git{head[:8]}" in plan.version) == followed
        assert any("--pinned" in warning for warning in plan.warnings) == followed
        assert isinstance(source, GitSource)
        assert source.commit == pins[-1]
    assert pins == [moved, head, head, moved, moved]


def test_two_plans_of_two_commits_are_two_wheels(moved: str, tmp_path: Path) -> None:
    cache = store.Store(tmp_path / "cache")
    pinned = gather.make_plan(COPYING, cache).plan
    followed = gather.make_plan(COPYING, cache, update="follow").plan
    assert pinned.key != followed.key
    assert pinned.version != followed.version


def test_a_branch_that_cannot_be_asked_stays_where_it_was(
    moved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, head = store.Store(tmp_path / "cache"), head_of(tmp_path)
    gather.make_plan(COPYING, cache, update="follow")
    monkeypatch.setattr(git, "branch_head", lambda *_, **__: "")
    again = gather.make_plan(COPYING, cache, update="follow").plan
    assert again.sources[0].pin == f"commit:{head}"


def test_a_branch_that_moved_is_reported_by_every_fetch_and_stands_in_the_lock(moved: str, tmp_path: Path) -> None:
    cache, head = store.Store(tmp_path / "cache"), head_of(tmp_path)
    planned = gather.make_plan(COPYING, cache)
    recipe = planned.recipe
    plan = planned.plan.model_copy(update={"sources": planned.plan.sources[:1], "modules": ()})
    for _ in range(2):
        told = Told()
        tree = fetch.fetch(plan, recipe, Run(cache.open(), told, tmp_path / "log"))
        assert [f"the branch main is at {head[:12]}" in note and "--update" in note for note in told.notes] == [True]
    (source,) = lockfile.lock(plan, recipe, tree, ()).sources
    assert (source.pin, source.branch, source.head) == (f"commit:{moved}", "main", head)


def test_the_branch_of_a_clone_is_followed_too(moved: str, tmp_path: Path) -> None:
    clone = Repository(tmp_path / "clone")
    clone.write("requirements/cuda.txt", b"torch\n")
    head = clone.commit()
    asked = COPYING.model_copy(update={"source": str(clone.path)})
    with pytest.raises(DcaError) as refused:
        gather.make_plan(asked, store.Store(tmp_path / "cache"))
    assert refused.value.code == "DCA-405"
    plan = gather.make_plan(asked, store.Store(tmp_path / "cache"), update="follow").plan
    assert plan.sources[0].pin == f"commit:{head}"


def test_what_can_be_reached_is_asked_anew_once_the_mirrors_are_others(
    moved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = store.Store(tmp_path / "cache")
    asked: list[str] = []

    def probe(url: str) -> str:
        asked.append(url)
        return ""

    monkeypatch.setattr(git, "probe", probe)
    monkeypatch.delenv("DCA_CONFIG", raising=False)
    for _ in range(2):
        gather.make_plan(COPYING, cache)
    assert len(asked) == 1
    (tmp_path / "config.toml").write_text('[mirrors]\n"https://127.0.0.1/" = ["https://mirror.example/"]\n')
    monkeypatch.setenv("DCA_CONFIG", str(tmp_path / "config.toml"))
    for _ in range(2):
        gather.make_plan(COPYING, cache)
    assert len(asked) == 2


def test_offline_nothing_is_asked_and_a_branch_stays_where_the_lock_has_it(
    moved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, head = store.Store(tmp_path / "cache"), head_of(tmp_path)
    gather.make_plan(COPYING, cache, update="follow")

    def asked(*_: object, **__: object) -> str:
        raise AssertionError("the network was asked")

    for module, name in ((git, "probe"), (git, "branch_head"), (index, "probe"), (apt, "probe")):
        monkeypatch.setattr(module, name, asked)
    plan = gather.make_plan(COPYING, store.Store(cache.root, offline=True)).plan
    assert plan.sources[0].pin == f"commit:{head}"


def test_a_followed_commit_goes_into_every_source_of_its_name_and_no_other(all_recipes: tuple[Loaded, ...]) -> None:
    fork = next(one for one in all_recipes if one.recipe.companions and isinstance(one.recipe.source, GitSource))
    name = next(iter(fork.recipe.companions))
    told = {f"{fork.recipe.name}/{name}": "a" * 40, "another/source": "b" * 40}
    after = {one.recipe.name: one.recipe for one in gather.follow(all_recipes, told)}
    assert after[fork.recipe.name].companions[name].source.commit == "a" * 40
    assert after[fork.recipe.name].source == fork.recipe.source
    assert [one.recipe for one in all_recipes if one is not fork] == [
        after[one.recipe.name] for one in all_recipes if one is not fork
    ]
