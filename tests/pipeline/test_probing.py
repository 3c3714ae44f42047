"""A place that was out of reach is asked again when it would make a better plan: by the command line, with servers."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from dca.catalogue import toolkits
from dca.catalogue.plan import Reachability
from dca.pipeline import probing
from dca.sources import index
from tests.support import RunDca
from tests.support.machines import Machine
from tests.support.web import Place

# Servers are started, and every command looks at this machine.
pytestmark = pytest.mark.slow

BETTER = next(kit for kit in toolkits.load_sources() if kit.name == "nvidia-12.8")
assert BETTER.redist
INDEX = f"/simple/{index.PROBED}/"
MANIFEST = f"/redist/{BETTER.redist.manifest}"


class Plans:
    """Plans for CUDA 12.8 on a machine with CUDA 12.4, an index, and a mirror of NVIDIA's archives without it."""

    def __init__(self, dca: RunDca, place: Place, folder: Path) -> None:
        self._dca, self.place, self.cache = dca, place, folder / "cache"
        home = Machine(folder / "machine").toolkit(folder / "cuda", "12.4.131")
        self.env = {
            "CUDA_HOME": str(home),
            "UV_DEFAULT_INDEX": f"{place.url}/simple/",
            "DCA_REDIST_URL": f"{place.url}/redist",
            # Nothing else is in reach, and that is known at once.
            "HTTPS_PROXY": f"http://127.0.0.1:{place.server.server_address[1]}",
            "NO_PROXY": "127.0.0.1",
        }
        place.pages[INDEX] = ("text/html", b"")

    def serve(self) -> None:
        self.place.pages[MANIFEST] = ("application/json", b"{}")

    def plan(self, *words: str) -> dict[str, Any]:
        """A plan, and what it asked for as `asked`."""
        self.place.asked.clear()
        line = ("plan", "--recipe", "vllm-0.10.2", "--cuda", "12.8", "--json", "--cache-dir", str(self.cache), *words)
        done = self._dca(*line, env=self.env)
        assert done.returncode == 0, done.stderr
        plan: dict[str, Any] = json.loads(done.stdout)
        return plan | {"asked": list(self.place.asked)}

    @property
    def lock(self) -> Path:
        (file,) = self.cache.glob("lock/*.json")
        return file


@pytest.fixture
def plans(dca: RunDca, place: Place, tmp_path: Path) -> Plans:
    return Plans(dca, place, tmp_path)


def out_of_reach(plan: dict[str, Any]) -> list[str]:
    return [place["place"] for place in plan["out_of_reach"]]


def test_a_place_that_comes_into_reach_makes_the_plan_better_without_update(plans: Plans) -> None:
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    first = plans.plan()
    assert first["toolkit"]["name"] == "found"
    assert f"redist:{BETTER.name}" in out_of_reach(first)
    (place,) = [place for place in first["out_of_reach"] if place["place"] == f"redist:{BETTER.name}"]
    asked = datetime.strptime(place["since"], probing.TIME).replace(tzinfo=timezone.utc)
    assert before <= asked <= datetime.now(timezone.utc)
    assert "404" in place["why"]
    # As long as nothing changes, so does no byte of the plan, although everything that failed was asked again.
    same = plans.plan()
    assert MANIFEST in same["asked"]
    assert same | {"asked": []} == first | {"asked": []}
    plans.serve()
    second = plans.plan()
    assert second["toolkit"]["name"] == BETTER.name
    assert f"redist:{BETTER.name}" not in out_of_reach(second)
    # What was in reach is believed.
    assert INDEX in first["asked"]
    assert INDEX not in second["asked"]
    assert MANIFEST not in plans.plan()["asked"]


@pytest.mark.whole
def test_a_plan_that_would_be_the_same_asks_nothing_again(plans: Plans) -> None:
    copies = ("--prebuilt", "all")
    plans.plan(*copies)
    second = plans.plan(*copies)
    assert second["asked"] == []
    assert second["out_of_reach"] == []


@pytest.mark.whole
def test_a_place_that_answers_slowly_is_not_asked_for_every_plan(plans: Plans) -> None:
    def slowly(to: BaseHTTPRequestHandler) -> None:
        time.sleep(1.2)
        to.send_error(404)

    plans.place.odd[MANIFEST] = slowly
    plans.plan()
    assert MANIFEST not in plans.plan()["asked"]
    long_ago = (datetime.now(timezone.utc) - timedelta(minutes=5)).strftime(probing.TIME)
    content = json.loads(plans.lock.read_text())
    content["places"][f"redist:{BETTER.name}"]["asked"] = long_ago
    plans.lock.write_text(json.dumps(content))
    assert MANIFEST in plans.plan()["asked"]


@pytest.mark.whole
def test_a_lock_of_an_earlier_version_is_read_and_its_failures_are_asked_again(plans: Plans) -> None:
    plans.plan()
    content = json.loads(plans.lock.read_text())
    content["places"] = {name: {"ok": one["ok"], "why": one["why"]} for name, one in content["places"].items()}
    plans.lock.write_text(json.dumps(content))
    assert MANIFEST in plans.plan()["asked"]


def test_a_place_that_does_not_answer_in_time_is_asked_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "SLOW_SECONDS", 0.1)
    answers = {"busy": ["late", ""], "dead": ["late", "late"], "closed": ["refused"]}
    asked: list[str] = []

    def probe(name: str) -> str:
        asked.append(name)
        why = answers[name].pop(0)
        time.sleep(0.2 if why == "late" else 0)
        return why

    reached = probing._ask({name: partial(probe, name) for name in answers})
    assert {name: place.why for name, place in reached.items()} == {"busy": "", "dead": "late", "closed": "refused"}
    assert {name: asked.count(name) for name in answers} == {"busy": 2, "dead": 2, "closed": 1}


@pytest.mark.parametrize(
    ("ago", "seconds", "outdated"),
    [
        (0.0, 5.0, False),
        (60.0, 5.0, False),
        (101.0, 5.0, True),
        (2.0, 0.9, True),
        (30.0, 1.0, True),
        (-3600.0, 5.0, True),
    ],
)
def test_how_long_a_failure_is_believed(ago: float, seconds: float, outdated: bool) -> None:
    asked = (datetime.now(timezone.utc) - timedelta(seconds=ago)).strftime(probing.TIME)
    failed = Reachability(ok=False, why="refused", asked=asked, seconds=seconds)
    assert probing._is_outdated(failed) is outdated
    assert not probing._is_outdated(failed.model_copy(update={"ok": True}))


def test_what_a_machine_sets_and_make_ignores_is_in_the_plan(plans: Plans) -> None:
    plans.env |= {"CFLAGS": "-O0", "UV_EXTRA_INDEX_URL": "https://me:geheim@b.example/simple"}
    ignored = {one["name"]: one["instead"] for one in plans.plan()["ignored"]}
    assert {name: ignored[name] for name in ("CFLAGS", "UV_EXTRA_INDEX_URL")} == {
        "CFLAGS": "",
        "UV_EXTRA_INDEX_URL": "UV_DEFAULT_INDEX",
    }
    assert "CUDA_HOME" not in str(ignored)
    text = plans._dca("plan", "--cache-dir", plans.cache, env=plans.env).stdout
    assert "Set by you and ignored" in text
    assert "geheim" not in text


@pytest.mark.parametrize("command", ["plan", "wheel", "fetch"])
def test_a_temporary_folder_that_does_not_exist_is_one_error_at_once(
    command: str, plans: Plans, tmp_path: Path
) -> None:
    began = time.monotonic()
    done = plans._dca(command, "--cache-dir", plans.cache, env=plans.env | {"TMPDIR": str(tmp_path / "gone")})
    assert done.returncode == 2
    assert done.stderr.startswith(f"DCA-215: TMPDIR={tmp_path / 'gone'} ")
    assert plans.place.asked == []
    assert not plans.cache.exists()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", ["cache, old", "it's"])
def test_a_cache_folder_that_compilers_cannot_name_is_rejected(name: str, plans: Plans, tmp_path: Path) -> None:
    done = plans._dca("plan", "--cache-dir", tmp_path / name, env=plans.env)
    assert done.returncode == 2
    assert done.stderr.startswith(f"DCA-218: nothing can be compiled in the cache folder {tmp_path / name}")


def test_a_cache_folder_with_a_space_or_an_umlaut_is_accepted(plans: Plans, tmp_path: Path) -> None:
    assert plans._dca("plan", "--cache-dir", tmp_path / "für Bauten (alt)", env=plans.env).returncode == 0
