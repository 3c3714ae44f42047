"""RULER's tasks run whole by their harness, in its own environment: against a stand-in, and against a real vLLM."""

from __future__ import annotations

import html
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dca import cli
from dca.catalogue import machine
from dca.foundation import data, store
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.serve.check.ruler import known
from dca.toolchain import environments
from tests.serve.check.conftest import Check, Done
from tests.serve.conftest import Engines
from tests.support import real_vllm
from tests.support.answering import answering, write_tokenizer
from tests.support.real_vllm import Vllm

pytestmark = [pytest.mark.network, pytest.mark.long]
KNOWN = known.load()
MADE = tuple(task.name for task in KNOWN.tasks if not task.data)
KEY = "a-key-of-the-test"
SHORT = "stream,tools,structured,sampling,needles"
# In the place of nltk's own data: learnt from texts of the test, in the harness's environment.
SENTENCES = """
import sys
from pathlib import Path
from nltk.tokenize.punkt import PunktTrainer, save_punkt_params
folder, text = Path(sys.argv[1]), Path(sys.argv[2]).read_text()
folder.parent.mkdir(parents=True)
save_punkt_params(PunktTrainer(text).get_params(), dir=str(folder))
"""


@pytest.fixture
def ruled(cache: store.Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Check:
    """`dca serve check` with the cache of the session, which has the harness, and with no way to a hub."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    harness_python(cache)
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def call(*words: object) -> Done:
        code = cli.run(["serve", "check", *map(str, words), "--restart", "--cache-dir", str(cache.root)])
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return call


def harness_python(cache: store.Store) -> Path:
    """The Python of the harness's environment."""
    own = machine.own_python()
    run = Run(cache, Silent(), cache.folder("run", "ruler") / "ruler.log")
    return environments.make(data.ruler_lock(), own.path, own.version, run)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer")


def scores(done: Done) -> dict[str, dict[str, Any]]:
    return {one["task"]: one for one in done.told["ruler"]["scores"]}


@pytest.mark.parametrize("api", ["completions", pytest.param("chat", marks=pytest.mark.whole)])
def test_a_stand_in_that_reads_the_answers_scores_100_in_every_task_without_data(
    api: str, ruled: Check, tokenizer: Path, cache: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVERS_KEY", KEY)
    log = cache.folder("run", "ruler") / "ruler.log"
    begins = log.stat().st_size if log.exists() else 0
    words = ("--skip", SHORT, "--api-key-env", "SERVERS_KEY", "--ruler", ",".join(MADE), "--ruler-samples", 3)
    with answering() as server:
        done = ruled(server.url, *words, "--ruler-api", api, "--ruler-tokenizer", tokenizer, "--json")
    assert done.code == 0, done.err
    seen = scores(done)
    results = {name: (one["outcome"], one["score"], one["answered"]) for name, one in seen.items()}
    assert results == dict.fromkeys(MADE, ("scored", 100.0, 3))
    # The harness asked what the catalogue says of its tasks, and as many texts as were asked for, of this length.
    limits = [body["max_tokens"] for body in server.asked]
    assert limits == [KNOWN.task(name).answer_tokens for name in MADE for _ in range(3)]
    assert {body["temperature"] for body in server.asked} == {0}
    for one in seen.values():
        assert 1800 < one["tokens"] <= 4096
        assert abs(one["counted"] - one["tokens"]) <= 64
    if api == "chat":
        assert all(body["messages"][-1]["role"] == "assistant" for body in server.asked)
        assert all(body["continue_final_message"] and not body["add_generation_prompt"] for body in server.asked)
    else:
        assert all(body["prompt"].startswith("<|user|>\n") for body in server.asked)
        assert not any(re.search(r"<\|end\|>\s*$", body["prompt"]) for body in server.asked)
    assert set(server.keys) == {f"Bearer {KEY}"}
    with log.open("rb") as stream:
        stream.seek(begins)
        assert KEY.encode() not in stream.read()
    assert done.told["cost"]["requests"] == 4 + len(MADE) * 3
    assert done.told["ruler"]["lengths"][0]["average"] == 100.0


@pytest.mark.whole
def test_tasks_with_data_run_with_the_data_of_a_folder(
    ruled: Check, tokenizer: Path, cache: store.Store, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    towns = [f"Town-{number}" for number in range(40)]
    facts = [f"The number of {town} is {1000 + number}." for number, town in enumerate(towns)]
    questions = [f"What is the number of {town}?" for town in towns]
    essay = " ".join(f"Once we walked {number} miles to a hill. Mr. Hay was there." for number in range(2000))
    (folder / "paul_graham_essays").mkdir(parents=True)
    (folder / "paul_graham_essays/train.jsonl").write_text(json.dumps({"text": essay}) + "\n")
    (folder / "text").write_text(essay)
    path = folder / "nltk_data/tokenizers/punkt_tab/english"
    # It writes to folders of its data alone.
    env = {"NLTK_DATA": str(folder / "nltk_data"), "HOME": str(tmp_path)}
    subprocess.run([harness_python(cache), "-c", SENTENCES, path, folder / "text"], env=env, check=True, timeout=300)
    asked = [
        {"question": question, "is_impossible": False, "answers": [{"text": str(1000 + number)}]}
        for number, question in enumerate(questions)
    ]
    paragraphs = [{"context": fact, "qas": [one]} for fact, one in zip(facts, asked, strict=True)]
    (folder / "dev-v2.0.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    hops = [
        {"question": question, "answer": str(1000 + number), "context": [[town, [fact]]]}
        for number, (question, town, fact) in enumerate(zip(questions, towns, facts, strict=True))
    ]
    (folder / "hotpot_dev_distractor_v1.json").write_text(json.dumps(hops))
    tasks = ("niah_single_2", "niah_multivalue", "ruler_qa_squad", "ruler_qa_hotpot")
    words = ("--skip", SHORT, "--ruler", ",".join(tasks), "--ruler-samples", 2, "--ruler-data", folder)
    with answering() as server:
        done = ruled(server.url, *words, "--ruler-tokenizer", tokenizer, "--json")
    results = {name: (one["outcome"], one["score"]) for name, one in scores(done).items()}
    assert results == dict.fromkeys(tasks, ("scored", 100.0)), done.out
    assert "Once we walked" in server.asked[0]["prompt"]


def test_a_server_that_truncates_gets_no_score_and_no_second_prompt(ruled: Check, tokenizer: Path) -> None:
    words = ("--skip", SHORT, "--ruler", "niah_single_1", "--ruler-samples", 3, "--ruler-tokenizer", tokenizer)
    # What it keeps has the question, so that its answers could be right.
    with answering(cut=2000) as server:
        done = ruled(server.url, *words, "--json")
    one = scores(done)["niah_single_1"]
    assert (done.code, one["outcome"], one["score"], one["code"]) == (1, "miscounted", None, "DCA-162")
    assert "the server counted 2,000: it was truncated" in one["detail"]
    assert len(server.asked) == 1


@pytest.mark.whole
def test_prompts_and_key_do_not_follow_a_redirection(
    ruled: Check, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVERS_KEY", KEY)
    words = ("--skip", SHORT, "--ruler", "niah_single_1,ruler_vt", "--ruler-samples", 2, "--ruler-tokenizer", tokenizer)
    with answering() as other, answering(redirect=other.url) as server:
        done = ruled(server.url, *words, "--api-key-env", "SERVERS_KEY", "--json")
    assert other.asked == []
    assert [one["outcome"] for one in scores(done).values()] == ["failed", "skipped"]
    assert "redirects to another one" in scores(done)["niah_single_1"]["detail"]


@pytest.mark.whole
def test_a_text_that_cannot_be_made_ends_its_task_alone_and_a_missing_count_is_told(
    ruled: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a token for each letter, the example of one task never fits, and the harness would try for ever."""
    folder = write_tokenizer(tmp_path / "letters", template=False)
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    monkeypatch.setattr("dca.serve.check.ruler.harness.MAKING_SECONDS", 20.0)
    words = ("--skip", SHORT, "--ruler", "niah_single_1,ruler_vt,ruler_fwe", "--ruler-samples", 2)
    with answering(counts=False, words="no") as server:
        done = ruled(server.url, *words, "--ruler-tokenizer", folder, "--json")
    seen = scores(done)
    assert [(one["outcome"], one["code"]) for one in seen.values()] == [
        ("zero", "DCA-163"),
        ("failed", "DCA-105"),
        ("zero", "DCA-163"),
    ]
    assert "not made within" in seen["ruler_vt"]["detail"]
    assert "the server reports no token counts" in " ".join(done.told["not_proven"])
    assert not done.told["ruler"]["templated"]


# --- a real vLLM -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(engines: Engines, tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    with real_vllm.serving(engines("vllm-0.32"), tiny_chat, tmp_path_factory.mktemp("vllm")) as running:
        yield running


@pytest.mark.whole
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_two_tasks_run_whole_against_a_real_vllm_without_a_network(
    api: str, server: Vllm, ruled: Check, tmp_path: Path
) -> None:
    """Random weights score 0, which is named as that; the server itself counts the tokens that we say."""
    words: tuple[object, ...] = ("--skip", f"{SHORT},sense", "--ruler", "niah_single_1,ruler_fwe", "--ruler-samples", 2)
    words += ("--ruler-lengths", "8192", "--ruler-api", api, "--timeout", 300, "--needle-timeout", 300)
    # The tokenizer is found where the server says that its model is.
    done = ruled(server.url, *words, "--json", "--report", tmp_path / "page.html")
    for name, one in scores(done).items():
        assert (one["outcome"], one["score"], one["code"], one["answered"]) == ("zero", 0.0, "DCA-163", 2), one
        assert "all 2 answers are wrong" in one["detail"]
        assert 4000 < one["tokens"] <= 8192 + 64
        assert one["counted"] == one["tokens"], name
        # Random weights seldom end an answer by themselves.
        assert one["cut"] + one["empty"] > 0
    assert done.code == 1
    assert done.told["ruler"]["tokenizer"] == str(server.model)
    before, after = done.told["before"], done.told["after"]
    assert (after["running"], after["waiting"]) == (0, 0)
    assert after["first_tokens"] - (before["first_tokens"] or 0) == done.told["cost"]["requests"] - 1
    assert after["preemptions"] >= before["preemptions"] >= 0
    page = html.unescape((tmp_path / "page.html").read_text())
    assert "mean time to first token during the check" in page
    assert page.count(">all wrong<") == 2
