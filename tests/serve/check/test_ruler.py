"""RULER's tasks: what is asked for, what must be there, and when there is a score; without the harness itself."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dca.catalogue import machine
from dca.foundation import data, runner
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.serve.check import probes, report, ruler
from dca.serve.check.answers import Card
from dca.serve.check.budget import Budget, limit_of
from dca.serve.check.client import Server
from dca.serve.check.ruler import Asked, Begun, Harness, asked, known, scoring
from dca.serve.check.ruler.harness import Cell, Outcome, Reader, Wanted, Watch
from dca.serve.check.values import Ruler, RulerScore, ServeCheck
from dca.toolchain import lockfile
from tests.serve.check.conftest import Check

KNOWN = known.load()
CELL = Cell("niah_single_1", 4096, 60.0, 128)
MADE = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "ruler_vt", "ruler_cwe", "ruler_fwe")
KEY = "a-key-of-the-test"


class Answers(Server):
    """A server of which only the state is asked; a stand-in for one that answers."""

    def state(self) -> Any:
        return "answers"


SERVER = Answers("http://127.0.0.1:1/v1", key=KEY, model="m")


def outcome(failure: dict[str, Any] | None = None, **more: Any) -> Outcome:
    """What the harness writes of two answered texts, unless it failed."""
    answer = {"tokens": 4000, "counted": 4004, "generated": 9, "cut": False, "empty": False}
    first = {"answer": "7007071", "wanted": ["7007071"]}
    told = {"failure": failure, "answers": [answer] * 2, "templated": True, "first": first, "seconds": 1.5}
    return Outcome.model_validate({**told, "scores": [1.0, 0.5], "score": 0.75, **more})


def scored(told: Outcome, samples: int = 2) -> RulerScore:
    return scoring.score_of(CELL, told, Asked(KNOWN, MADE, samples=samples), SERVER)


# --- what is known ---------------------------------------------------------------------------------------------------


def test_the_lock_pins_the_harness_and_has_no_torch() -> None:
    locked = {package.name: package for package in lockfile.packages(data.ruler_lock(), machine.own_python().version)}
    for text in (KNOWN.package, *KNOWN.also):
        wanted = Requirement(text)
        assert locked[canonicalize_name(wanted.name)].version in wanted.specifier
    assert "torch" not in locked
    assert {"nltk", "wonderwords", "scipy", "aiohttp"} <= locked.keys()


def test_tasks_without_data_are_those_whose_texts_are_made_of_a_seed() -> None:
    assert tuple(task.name for task in KNOWN.tasks if not task.data) == MADE
    assert len(KNOWN.tasks) == 13


def test_a_models_results_are_found_by_its_name_and_its_path_and_by_nothing_similar() -> None:
    whole = KNOWN.results("Qwen/Qwen2.5-14B-Instruct-1M")
    assert whole == {4096: 97.5, 8192: 97.1, 16384: 94.6, 32768: 94.9, 65536: 94.9, 131072: 92.2}
    cached = "/home/me/hub/models--Qwen--Qwen2.5-14B-Instruct-1M/snapshots/0123abc"
    for name in ("/models/Qwen2.5-14B-Instruct-1M/", "qwen2.5-14b-instruct-1m", cached):
        assert KNOWN.results("", name) == whole
    for name in ("Qwen/Qwen2.5-14B-Instruct", "Qwen3-30B-A3B-Instruct-2507", "/models/Qwen3-8B/mine", ""):
        assert KNOWN.results(name) == {}


def test_names_of_tasks_stand_in_the_harness_order_and_the_group_is_all() -> None:
    assert asked.named(KNOWN, ("ruler_vt", "niah_single_1", "ruler_vt")) == ("niah_single_1", "ruler_vt")
    assert asked.named(KNOWN, ("ruler",)) == tuple(task.name for task in KNOWN.tasks)
    with pytest.raises(DcaError, match="there is no task `ruler_tv`") as error:
        asked.named(KNOWN, ("ruler_tv",))
    assert "ruler_vt" in error.value.remedy


# --- what must be there ----------------------------------------------------------------------------------------------


def test_missing_data_are_named_with_their_tasks_and_commands_and_nothing_is_sent(check: Check, tmp_path: Path) -> None:
    words = ("--ruler", "niah_single_1,niah_multivalue,ruler_qa_hotpot")
    # No server listens there: the data are missed before it is asked.
    done = check("http://127.0.0.1:9", *words)
    assert done.code == 4
    assert done.err.startswith("DCA-412: RULER's texts cannot be made: 3 of the data that they need are missing.")
    assert "the essays (DIR/paul_graham_essays), for niah_multivalue." in done.err
    assert "HotpotQA (DIR/hotpot_dev_distractor_v1.json), for ruler_qa_hotpot." in done.err
    assert "name the folder with --ruler-data" in done.err
    assert "SQuAD" not in done.err
    folder = tmp_path / "some data"
    # What an interrupted download leaves behind is no data.
    (folder / "paul_graham_essays/.cache").mkdir(parents=True)
    (folder / "hotpot_dev_distractor_v1.json").write_text("[]")
    done = check("http://127.0.0.1:9", *words, "--ruler-data", folder)
    assert "2 of the data" in done.err
    assert f"--local-dir '{folder}/paul_graham_essays'" in done.err
    (folder / "paul_graham_essays/train.jsonl").write_text("{}")
    (folder / "nltk_data/tokenizers/punkt_tab/english").mkdir(parents=True)
    (folder / "nltk_data/tokenizers/punkt_tab/english/sent_starters.txt").write_text("")
    done = check("http://127.0.0.1:9", *words, "--ruler-data", folder)
    assert "DCA-160: " in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ruler-samples", "3"), "--ruler-samples needs --ruler."),
        (("--ruler-data", "/tmp"), "--ruler-data needs --ruler."),
        (("--ruler", "ruler_vt", "--ruler-lengths", "512"), "512 tokens are too few"),
        (("--ruler", "ruler_vt", "--ruler-lengths", "4096,x"), "--ruler-lengths x is not a number of tokens."),
    ],
)
def test_wrong_options_are_refused(words: tuple[str, ...], said: str, check: Check) -> None:
    done = check("http://127.0.0.1:9", *words)
    assert done.code == 2
    assert said in done.err


def test_the_tokenizer_is_the_named_one_or_that_of_the_servers_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, other = tmp_path / "served", tmp_path / "other"
    snapshot = tmp_path / "hub/models--an--other/snapshots/1"
    for folder in (served, other, snapshot):
        folder.mkdir(parents=True)
        (folder / "tokenizer.json").write_text("{}")
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    card = Card(id="alias", root=str(served))
    assert Asked(KNOWN, MADE).tokenizer_folder(card) == served
    assert Asked(KNOWN, MADE, tokenizer=str(other)).tokenizer_folder(card) == other
    assert Asked(KNOWN, MADE, tokenizer="an/other").tokenizer_folder(card) == snapshot
    assert Asked(KNOWN, MADE).tokenizer_folder(Card(id="an/other")) == snapshot
    # One that was named and is not there is not replaced by another.
    for wanted in (Asked(KNOWN, MADE, tokenizer="an/absent"), Asked(KNOWN, MADE, tokenizer=str(tmp_path))):
        with pytest.raises(DcaError, match="--ruler-tokenizer"):
            wanted.tokenizer_folder(card)


# --- scores, and what is none ----------------------------------------------------------------------------------------


def test_a_score_is_the_harness_own_in_percent() -> None:
    one = scored(outcome())
    assert (one.outcome, one.score, one.code, one.answered, one.counted) == ("scored", 75.0, "", 2, 4004)


def test_the_harness_minus_one_for_a_length_that_was_not_run_is_no_score() -> None:
    for told in (outcome(scores=[], score=-1), outcome(scores=[], score=None), outcome(scores=[1.0], score=1.0)):
        one = scored(told)
        assert (one.outcome, one.score, one.code) == ("failed", None, "DCA-105")


def test_texts_that_could_not_be_made_are_counted() -> None:
    one = scored(outcome(), samples=5)
    assert (one.outcome, one.score) == ("scored", 75.0)
    assert one.detail == "3 of 5 texts could not be made so short"


def test_a_score_of_zero_is_a_failure_and_shows_an_answer_without_the_key() -> None:
    wrong: dict[str, Any] = {"scores": [0.0, 0.0], "score": 0.0}
    one = scored(outcome(**wrong, first={"answer": f"ask {KEY}\n\x1b[31m", "wanted": ["7007071"]}))
    assert (one.outcome, one.score, one.code) == ("zero", 0.0, "DCA-163")
    assert "all 2 answers are wrong" in one.detail
    assert "expected was 7007071" in one.detail
    assert KEY not in one.detail
    assert "\x1b" not in one.detail
    empty = {"tokens": 4000, "counted": 4004, "generated": 1, "cut": False, "empty": True}
    one = scored(outcome(**wrong, answers=[empty] * 2))
    assert "2 of them empty" in one.detail
    assert "chat template" in one.remedy
    one = scored(outcome(**wrong, first={"answer": "<think>The user wants", "wanted": ["7"]}))
    assert "--no-thinking" in one.remedy


@pytest.mark.parametrize(
    ("failure", "expected", "said"),
    [
        ({"kind": "miscounted", "counted": 2048, "expected": 4000}, ("miscounted", "DCA-162"), "it was truncated"),
        ({"kind": "miscounted", "counted": 9000, "expected": 4000}, ("miscounted", "DCA-162"), "not of this length"),
        ({"kind": "too long", "words": "4,300 tokens"}, ("skipped", ""), "need 4,300 tokens, more than the server"),
        ({"kind": "unmade", "words": "not made within 9 s"}, ("failed", "DCA-105"), "not made within 9 s"),
        ({"kind": "gone", "words": "Connection refused"}, ("failed", "DCA-160"), "Connection refused"),
        ({"kind": "hung", "words": "not finished within 9 s"}, ("failed", "DCA-161"), "not finished within 9 s"),
        ({"kind": "redirected", "words": "HTTP 307 to http://x"}, ("failed", "DCA-160"), "redirects to another one"),
        (
            {"kind": "status", "status": 400, "words": '{"error": {"message": "longer than 2048"}}'},
            ("failed", "DCA-162"),
            "HTTP 400: longer than 2048",
        ),
        ({"kind": "status", "status": 401, "words": f"wrong key {KEY}"}, ("failed", "DCA-160"), "wrong key ***"),
        ({"kind": "status", "status": 500, "words": "oh"}, ("failed", "DCA-161"), "HTTP 500: oh"),
    ],
)
def test_a_failure_has_no_score(failure: dict[str, Any], expected: tuple[str, str], said: str) -> None:
    one = scored(outcome(failure=failure))
    assert (one.outcome, one.code) == expected
    assert one.score is None
    assert said in one.detail
    assert bool(one.remedy) == bool(one.code)
    assert KEY not in one.detail


def test_an_average_is_compared_only_if_all_tasks_ran_with_all_texts() -> None:
    whole = tuple(task.name for task in KNOWN.tasks)

    def averaged(tasks: tuple[str, ...], answered: int) -> Any:
        given = Asked(KNOWN, tasks, (4096, 8192), samples=answered)
        scores = [
            RulerScore(task=name, length=4096, samples=answered, answered=answered, outcome="scored", score=90.0)
            for name in tasks
        ]
        failed = RulerScore(task=whole[0], length=8192, samples=answered, outcome="failed", code="DCA-161")
        # A length without a score has no average.
        (one,) = scoring.averages([*scores, failed], given, {4096: 97.5})
        return one

    assert averaged(whole, 500).words == "90.0 on average over 13 tasks, published 97.5 (difference -7.5)"
    for one in (averaged(whole, 20), averaged(whole[:12], 500)):
        assert not one.comparable
        assert "not comparable" in one.words
    assert averaged(whole[:1], 20).words.startswith("90.0 on average over 1 task;")


def test_an_outcome_that_is_written_in_parts_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "outcomes"
    line = outcome().model_dump_json() + "\n"
    path.write_text(line[:40])
    read = Reader(path)
    assert list(read.new()) == []
    path.write_text(line + line[:10])
    assert list(read.new()) == [outcome()]
    path.write_text(line * 2)
    assert list(read.new()) == [outcome()]


# --- the run ---------------------------------------------------------------------------------------------------------


class Scripted(Harness):
    """A stand-in of the harness that ends each run with the next of these outcomes.

    Args:
        runs: the outcomes of each run, and how it ended.
    """

    def __init__(self, *runs: tuple[list[Outcome], int]) -> None:
        super().__init__(Path("python"), Path("ruler.log"))
        object.__setattr__(self, "runs", list(runs))
        object.__setattr__(self, "seen", [])

    def run(self, cells: list[Cell], wanted: Wanted, server: Server, watch: Watch) -> runner.Completed:
        self.seen.append([cell.task for cell in cells])  # type: ignore[attr-defined]
        outcomes, code = self.runs.pop(0)  # type: ignore[attr-defined]
        for cell, one in zip(cells, outcomes, strict=False):
            watch.ended(cell, one)
        return runner.Completed(("python",), code, ("ImportError: no",), 9.0, timed_out=code == -9)


def begun(harness: Harness, *tasks: str, lengths: tuple[int, ...] = (4096,), cost: str | None = None) -> Any:
    given = Asked(KNOWN, tasks, lengths, samples=2)
    card = Card(id="m", max_model_len=8192)
    asking = probes.Asking(SERVER, Budget(limit_of(cost, None)), 60.0)
    one = Begun(given, harness, card, Path("/tokenizer"))
    ruler.run(asking, one, Silent(), lambda: None)
    return one, asking


def test_scores_and_their_cost_are_taken_up() -> None:
    one, asking = begun(Scripted(([outcome(), outcome()], 0)), "niah_single_1", "ruler_vt")
    result = one.result(interrupted=False)
    assert [(score.task, score.score) for score in result.scores] == [("niah_single_1", 75.0), ("ruler_vt", 75.0)]
    assert (result.templated, result.harness, result.lengths[0].average) == (True, "lm-eval 0.4.13", 75.0)
    cost = asking.budget.cost
    assert (cost.requests, cost.prompt_tokens, cost.answer_tokens, cost.seconds) == (4, 4 * 4004, 4 * 9, 3.0)


def test_a_task_whose_texts_cannot_be_made_does_not_end_the_others() -> None:
    unmade = outcome(failure={"kind": "unmade", "words": "not made"}, answers=[])
    harness = Scripted(([unmade], 0), ([outcome()], 0))
    one, _ = begun(harness, "niah_single_1", "ruler_vt")
    assert [score.outcome for score in one.scores] == ["failed", "scored"]
    assert harness.seen == [["niah_single_1", "ruler_vt"], ["ruler_vt"]]  # type: ignore[attr-defined]


def test_after_a_server_that_is_gone_nothing_more_is_sent() -> None:
    gone = outcome(failure={"kind": "gone", "words": "refused"}, answers=[])
    one, asking = begun(Scripted(([gone], 0)), "niah_single_1", "ruler_vt")
    assert [(score.outcome, score.code) for score in one.scores] == [("failed", "DCA-160"), ("skipped", "")]
    assert one.scores[1].detail == "niah_single_1 at 4,096 tokens was not answered"
    assert asking.budget.cost.requests == 1


def test_a_harness_that_ends_by_itself_is_named_and_has_no_score() -> None:
    one, _ = begun(Scripted(([], 1)), "niah_single_1", "ruler_vt")
    assert [(score.outcome, score.score) for score in one.scores] == [("failed", None), ("skipped", None)]
    assert "ImportError: no" in one.scores[0].detail


def test_lengths_past_the_server_or_the_budget_are_not_run() -> None:
    one, _ = begun(Scripted(([outcome()], 0)), "niah_single_1", lengths=(4096, 16384))
    assert [(score.outcome, score.detail) for score in one.scores] == [
        ("skipped", "the server takes 8,192 tokens"),
        ("scored", ""),
    ]
    one, _ = begun(Scripted(([outcome()], 0)), "niah_single_1", "ruler_vt", cost="10k")
    assert sorted(score.outcome for score in one.scores) == ["scored", "skipped"]
    one, _ = begun(Scripted(([], -9)), "niah_single_1", cost="90s")
    assert [(score.outcome, score.detail) for score in one.scores] == [("skipped", "--max-cost 90s ended it")]


def test_scores_of_an_interrupted_check_are_kept_if_they_were_made_in_the_same_way() -> None:
    old = Ruler(
        harness="lm-eval 0.4.13",
        api="completions",
        tokenizer="/tokenizer",
        samples=2,
        templated=True,
        scores=(
            RulerScore(task="niah_single_1", length=4096, samples=2, answered=2, outcome="scored", score=50.0),
            RulerScore(task="ruler_vt", length=4096, samples=2, outcome="failed", code="DCA-161"),
        ),
    )
    given = Asked(KNOWN, ("niah_single_1", "ruler_vt"), samples=2)
    for changed, taken in (({}, 1), ({"samples": 3}, 0), ({"api": "chat"}, 0), ({"tokenizer": "/other"}, 0)):
        one = Begun(given, Scripted(), Card(id="m"), Path("/tokenizer"))
        one.take_over(old.model_copy(update=changed))
        assert len(one.known) == taken
        # An interruption before they are taken up loses nothing.
        assert len(one.result(interrupted=True).scores) == taken


# --- the report ------------------------------------------------------------------------------------------------------


def test_page_and_troubles_have_the_scores_failures_first() -> None:
    scores = (
        RulerScore(
            task="niah_single_1", length=4096, samples=2, answered=2, outcome="scored", score=75.0, counted=4004
        ),
        scored(outcome(scores=[0.0, 0.0], score=0.0)).model_copy(update={"task": "ruler_vt"}),
    )
    lengths = scoring.averages(scores, Asked(KNOWN, MADE, samples=2), {4096: 97.5})
    whole = Ruler(
        harness="lm-eval 0.4.13",
        api="completions",
        templated=True,
        tokenizer="/t",
        samples=2,
        scores=scores,
        lengths=lengths,
        source=KNOWN.published.source,
    )
    result = ServeCheck(date="2026-11-30T12:00", tool="1", url="http://x/v1", model="m", seed=0, probes=(), ruler=whole)
    assert [trouble.code for trouble in result.troubles] == ["DCA-163"]
    page = html.unescape(report.render(result))
    assert "RULER's ruler_vt at 4,096 tokens" in page[: page.index("What was checked")]
    rows = re.findall(r'<td class="word (\w+)">([\w ]+)</td>\s*<td data-name="task">(\w+)', page)
    assert rows == [("bad", "all wrong", "ruler_vt"), ("good", "scored", "niah_single_1")]
    assert "37.5 on average over 2 tasks; published 97.5 over all tasks with all texts, so not comparable" in page
    assert KNOWN.published.source in page
    assert json.loads(result.model_dump_json())["ruler"]["scores"][1]["score"] == 0.0
