"""The verdicts of `dca serve check`, each from a scripted server that behaves well or badly in one way."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest

from dca import __version__
from dca.foundation import documents
from dca.foundation.events import Silent
from dca.serve import check as engine
from dca.serve.check import ServeCheck, answers, client, haystack, transport
from tests.serve.check.conftest import Check, Serve
from tests.support import ROOT, wait_for
from tests.support import scripted_server as scripted
from tests.support.scripted_server import Asked, Reply

# Each test starts servers or programs.
pytestmark = pytest.mark.slow

ONE = ("--lengths", "2048", "--depths", "50")
TIMEOUT = 0.6
# A busy machine is slow to notice.
SLACK = 4.0


def lose(asked: Asked) -> Reply:
    """A model that does not find what stands in a prompt."""
    return Reply("I do not know.") if asked.kind == "needle" else scripted.right(asked)


def ignore(asked: Asked) -> Reply:
    """An engine whose KV cache has too few blocks for a long prompt."""
    return Reply("", finish="length", tokens=0) if len(asked.text) > 4000 else scripted.right(asked)


# --- all is well ---------------------------------------------------------------------------------------------------


def test_a_server_that_does_everything_right_passes(serve: Serve, check: Check) -> None:
    place = serve()
    done = check(place.url, "--json")
    assert done.code == 0, done.err
    document = done.told
    assert {probe["status"] for probe in document["probes"]} == {"passed"}
    assert document["lengths"] == [4096, 8192, 16384]
    assert {needle["outcome"] for needle in document["needles"]} == {"found"}
    assert (document["reached"], document["max_model_len"], document["not_proven"]) == (16384, 16384, [])
    for one in document["needles"]:
        assert 0.93 * one["length"] - 100 < one["tokens"] <= one["length"] - 64
    longest = max(needle["tokens"] for needle in document["needles"])
    assert document["verdict"].startswith(
        f"every fact was found up to 16,384 tokens (the longest prompt had {longest:,},"
    )


def test_the_tokens_told_are_those_that_the_server_counted(serve: Serve, check: Check) -> None:
    place = serve()
    document = check(place.url, *ONE, "--json").told
    sent = place.needles()[-1]
    assert document["needles"][0]["tokens"] == scripted.count(sent.text) + scripted.TEMPLATE
    assert document["cost"]["prompt_tokens"] == sum(
        scripted.count(request.text) + scripted.TEMPLATE for request in place.asked if "max_tokens" in request.body
    )


@pytest.mark.parametrize(
    ("usage", "tokenizer", "how"), [(True, False, "usage"), (False, True, "estimate"), (False, False, "estimate")]
)
def test_lengths_are_counted_as_far_as_the_server_helps(
    serve: Serve, check: Check, usage: bool, tokenizer: bool, how: str
) -> None:
    place = serve(usage=usage, tokenizer=tokenizer, max_model_len=None)
    document = check(place.url, "--lengths", "8192", "--depths", "0,100", "--json").told
    assert {needle["counted"] for needle in document["needles"]} == {how}
    real = scripted.count(place.needles()[-1].text)
    if usage or tokenizer:
        assert 0.93 * 8192 < real < 8192
    assert ("no credible token count" in " ".join(document["not_proven"])) == (how == "estimate")


def test_a_stream_without_its_options_is_read_all_the_same(serve: Serve, check: Check) -> None:
    place = serve(options=False)
    document = check(place.url, *ONE, "--json").told
    assert document["needles"][0]["outcome"] == "found"
    assert sum("stream_options" in request.body for request in place.asked) == 1


def test_no_two_prompts_begin_alike_so_that_nothing_is_answered_from_a_prefix(serve: Serve, check: Check) -> None:
    place = serve()
    check(place.url, "--lengths", "2048,4096", "--depths", "0,50,100")
    opening = len(haystack.OPENING)
    beginnings = {needle.text[opening : opening + 24] for needle in place.needles()}
    assert len(beginnings) == 6


def test_the_same_seed_asks_the_same(serve: Serve, check: Check) -> None:
    first, second, other = serve(), serve(), serve()
    for place, seed in ((first, 3), (second, 3), (other, 4)):
        check(place.url, *ONE, "--seed", seed)
    assert first.needles()[-1].text == second.needles()[-1].text != other.needles()[-1].text


def test_story_a1_a_server_is_asked_to_its_full_million_tokens(serve: Serve, check: Check) -> None:
    place = serve(max_model_len=1_010_000, script=scripted.right)
    document = check(place.url, "--lengths", "1010000", "--depths", "50", "--json").told
    assert (document["reached"], document["needles"][0]["outcome"]) == (1_010_000, "found")
    assert 0.98 * 1_010_000 < document["needles"][0]["tokens"] <= 1_010_000 - 64


def test_lengths_double_up_to_what_the_server_takes(serve: Serve, check: Check) -> None:
    assert engine.needles.lengths_to(1_010_000) == (4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1_010_000)
    assert engine.needles.lengths_to(4096) == (4096,)
    place = serve(max_model_len=None)
    document = check(place.url, "--depths", "50", "--json").told
    assert document["lengths"] == [4096, 8192]
    assert any("--length is not given" in one for one in document["not_proven"])


# --- the model is wrong ----------------------------------------------------------------------------------------------


def test_a_fact_that_is_lost_fails_at_its_length_and_depth(serve: Serve, check: Check) -> None:
    def script(asked: Asked) -> Reply:
        at = asked.text.find("The access number")
        # The past is forgotten: what stands before the last 6,000 characters.
        far = asked.kind == "needle" and len(asked.text) - asked.text.rfind(_fact(asked)) > 6000
        return Reply("0") if far and at else scripted.right(asked)

    done = check(serve(script=script).url, "--lengths", "1024,4096", "--depths", "0,100", "--json")
    outcomes = {(needle["length"], needle["depth"]): needle["outcome"] for needle in done.told["needles"]}
    assert outcomes == {(1024, 0): "found", (1024, 100): "found", (4096, 0): "lost", (4096, 100): "found"}
    assert (done.code, done.told["reached"]) == (1, 1024)
    assert "at 4,096 tokens, depth 0 %, the answer does not contain" in done.told["verdict"]
    assert "every fact was found up to 1,024 tokens" in done.told["verdict"]
    assert done.err.startswith("DCA-163")


def _fact(asked: Asked) -> str:
    place = re.search(r"access number of (\w+)\?", asked.text)
    return f"The access number of {place[1]} is" if place else "-"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("!" * 40, "repeats one character"),
        ("It is not in the record.", "the answer does not contain"),
        ("OTHER", "another town's number"),
        ("ALL", "another town's number"),
        ("", "the answer is empty"),
        # Reasoning up to the last token is no refused prompt.
        ("THOUGHT", "the whole answer is reasoning"),
    ],
)
def test_a_wrong_answer_is_told_for_what_it_is(serve: Serve, check: Check, answer: str, words: str) -> None:
    def script(asked: Asked) -> Reply:
        if asked.kind != "needle":
            return scripted.right(asked)
        if answer == "THOUGHT":
            return Reply("", finish="length", tokens=64, thought="hm " * 64)
        right = scripted.right(asked).text
        numbers = [number for number in re.findall(r"is (\d{7})\.", asked.text) if number != right]
        return Reply({"OTHER": numbers[0], "ALL": "\n".join([right, *numbers])}.get(answer, answer))

    document = check(serve(script=script).url, *ONE, "--json").told
    assert (document["needles"][0]["outcome"], document["needles"][0]["code"]) == ("lost", "DCA-163")
    assert words in document["needles"][0]["detail"]


def test_a_number_written_in_groups_is_the_same_number(serve: Serve, check: Check) -> None:
    def script(asked: Asked) -> Reply:
        reply = scripted.right(asked)
        return Reply(f"It is {int(reply.text):,}.") if asked.kind == "needle" else reply

    assert check(serve(script=script).url, *ONE).code == 0


@pytest.mark.parametrize(
    ("kind", "reply", "words"),
    [
        ("sense", Reply("43"), "17 + 25 is '43'"),
        ("sense", Reply("142"), "17 + 25 is '142'"),
        ("sense", Reply("-42"), "17 + 25 is '-42'"),
        ("sense", Reply("0.42"), "17 + 25 is '0.42'"),
        ("sense", Reply("41 or 42"), "17 + 25 is '41 or 42'"),
        ("sense", Reply("17 + 25"), "17 + 25 is '17 + 25'"),
        ("chat", Reply("!" * 16), "repeats one character"),
        ("tools", Reply("It is sunny."), "instead of a call"),
        ("tools", Reply("", [("get_time", '{"city": "Lisbon"}')], "tool_calls"), "the call is 'get_time'"),
        ("tools", Reply("", [("get_weather", '{"city": ')], "tool_calls"), "the call is 'get_weather'"),
        ("tools", Reply("", [("get_weather", "{}")], "tool_calls"), "the call is 'get_weather'"),
        ("tools", Reply("", [("get_weather", "7")], "tool_calls"), "the call is 'get_weather'"),
        ("structured", Reply("Moby-Dick, 1851"), "violates the schema"),
        ("structured", Reply('{"title": "Moby-Dick", "year": "1851", "novel": true}'), "year"),
        ("structured", Reply('{"title": "Moby-Dick", "year": 1851}'), "novel"),
        ("structured", Reply('{"title": "M", "year": 1851, "novel": true, "more": 1}'), "more"),
        ("structured", Reply('{"title": "M", "year": 1851, "novel": true'), "violates the schema"),
    ],
)
def test_what_a_model_does_not_do_right_is_its_own_code(
    serve: Serve, check: Check, kind: str, reply: Reply, words: str
) -> None:
    place = serve(script=lambda asked: reply if asked.kind == kind else scripted.right(asked))
    done = check(place.url, "--skip", "needles", "--json")
    wrong = [probe for probe in done.told["probes"] if probe["status"] == "failed"]
    assert [(one["name"], one["code"]) for one in wrong] == [(kind, "DCA-163")]
    assert words in wrong[0]["detail"]
    assert done.code == 1


@pytest.mark.parametrize("answer", ["42", "17 + 25 = 42.", "**42**", "25+17 is 42.0, forty-two"])
def test_a_right_sum_may_repeat_the_question(serve: Serve, check: Check, answer: str) -> None:
    place = serve(script=lambda asked: Reply(answer) if asked.kind == "sense" else scripted.right(asked))
    done = check(place.url, "--skip", "needles")
    assert done.code == 0, done.err


def probes(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The short requests of a check, by name."""
    return {probe["name"]: probe for probe in document["probes"]}


@pytest.mark.parametrize(
    ("refused", "field"),
    [((), "response_format"), (("response_format",), "guided_json"), (("guided_json",), "response_format")],
)
def test_story_c4_a_tool_call_and_a_schema_are_proven_kept_through_whichever_field_the_server_takes(
    serve: Serve, check: Check, refused: tuple[str, ...], field: str
) -> None:
    document = check(serve(refused=refused).url, "--skip", "needles", "--json").told
    assert probes(document)["tools"]["detail"] == "the model itself chose to call it"
    assert probes(document)["structured"]["detail"].endswith(f"with {field}")


def test_a_server_without_a_feature_passes_unless_the_feature_is_needed(serve: Serve, check: Check) -> None:
    place = serve(refused=("tools", "response_format", "guided_json"))
    done = check(place.url, "--skip", "needles", "--json")
    assert done.code == 0
    assert [probe["name"] for probe in done.told["probes"] if probe["status"] == "refused"] == ["tools", "structured"]
    assert len(done.told["not_proven"]) == 3
    done = check(place.url, "--skip", "needles", "--need", "tools", "--json")
    assert done.code == 1
    assert next(probe for probe in done.told["probes"] if probe["code"])["name"] == "tools"
    assert "--enable-auto-tool-choice" in done.err


def test_a_tool_that_must_be_named_is_told_with_the_flags_that_mend_it(serve: Serve, check: Check) -> None:
    def only_named(handler: scripted.Handler, asked: Asked) -> None:
        if asked.body["tool_choice"] == "auto":
            handler.send_json({"message": '"auto" tool choice requires --enable-auto-tool-choice'}, 400)
        else:
            handler.complete(asked)

    document = check(serve(tricks={"tools": only_named}).url, "--skip", "needles", "--json").told
    probe = probes(document)["tools"]
    assert probe["status"] == "refused"
    assert "only when the client names the tool" in probe["detail"]


def test_story_c2_the_recommended_sampling_is_sent_and_an_engine_that_dies_of_it_is_told(
    serve: Serve, check: Check
) -> None:
    place = serve()
    check(place.url, "--skip", "needles")
    (sent,) = [request.body for request in place.asked if request.kind == "sampling"]
    assert (sent["temperature"], sent["top_p"], sent["top_k"], sent["repetition_penalty"]) == (0.7, 0.8, 20, 1.05)
    done = check(serve(tricks={"sampling": scripted.fail}).url, "--skip", "needles", "--json")
    probe = probes(done.told)["sampling"]
    assert (probe["status"], probe["code"], done.code) == ("failed", "DCA-161", 1)
    assert "dca inspect WHEEL --model DIR" in probe["remedy"]


def test_story_b5_plain_completions_and_chat_are_asked_apart(serve: Serve, check: Check) -> None:
    place = serve(tricks={"completion": scripted.fail})
    found = probes(check(place.url, "--skip", "needles", "--json").told)
    assert (found["completion"]["status"], found["chat"]["status"]) == ("failed", "passed")
    found = probes(check(serve().url, "--skip", "needles", "--json").told)
    assert "/v1/chat/completions" in found["completion"]["detail"]


# --- the prompt is refused -------------------------------------------------------------------------------------------


def test_story_a9_an_empty_answer_with_finish_reason_length_is_the_server_refusing_the_prompt(
    serve: Serve, check: Check
) -> None:
    done = check(serve(script=ignore).url, "--lengths", "600,2048,4096", "--depths", "0,100", "--json")
    document = done.told
    assert [needle["outcome"] for needle in document["needles"]] == ["found"] * 2 + ["refused"] + ["skipped"] * 3
    refused = document["needles"][2]
    assert refused["code"] == "DCA-162"
    assert "block_manager" in refused["remedy"]
    assert "dca serve plan" in refused["remedy"]
    assert (document["reached"], done.code) == (600, 1)
    assert done.err.startswith("DCA-162")
    assert any("not asked, because 2,048 tokens were rejected" in one for one in document["not_proven"])


def test_the_same_without_a_count_of_tokens(serve: Serve, check: Check) -> None:
    document = check(serve(script=ignore, usage=False, tokenizer=False).url, "--lengths", "4096", "--json").told
    assert document["needles"][0]["code"] == "DCA-162"


def test_a_short_request_can_be_refused_like_that_too(serve: Serve, check: Check) -> None:
    def script(asked: Asked) -> Reply:
        return Reply("", finish="length", tokens=0)

    document = check(serve(script=script).url, "--skip", "needles", "--json").told
    assert {probe["code"] for probe in document["probes"] if probe["name"] != "models"} == {"DCA-162"}


def test_a_prompt_past_the_servers_length_is_told_in_its_own_words(serve: Serve, check: Check) -> None:
    done = check(serve(max_model_len=3000).url, "--lengths", "2048,8192", "--depths", "0", "--json")
    assert [needle["outcome"] for needle in done.told["needles"]] == ["found", "refused"]
    assert "maximum context length is 3000 tokens" in done.told["needles"][1]["detail"]
    assert "--max-model-len" in done.told["needles"][1]["remedy"]


# --- the server misbehaves -------------------------------------------------------------------------------------------

BAD: dict[str, tuple[scripted.Trick, str, str, str]] = {
    "hangs": (scripted.hang, "hung", "DCA-161", "before the first token"),
    "hangs after its headers": (scripted.hang_after_headers, "hung", "DCA-161", "before the first token"),
    "hangs after a token": (scripted.hang_after_a_token, "hung", "DCA-161", "after the first token"),
    "drips comments": (scripted.drip, "hung", "DCA-161", "before the first token"),
    "drips headers": (scripted.drip_headers, "hung", "DCA-161", "before the first token"),
    "500": (scripted.fail, "broken", "DCA-161", "CUDA out of memory"),
    "502 as a page": (scripted.fail_in_html, "broken", "DCA-161", "502"),
    "error in the stream": (scripted.error_in_stream, "broken", "DCA-161", "EngineDeadError"),
    "drops the connection": (scripted.drop, "gone", "DCA-160", "does not answer"),
    "cuts the stream": (scripted.cut_stream, "cut", "DCA-161", "the stream was cut"),
    "no finish_reason": (scripted.end_without_reason, "cut", "DCA-161", "without a finish_reason"),
    "half an event": (scripted.half_an_event, "broken", "DCA-161", "not JSON"),
    "another shape": (scripted.another_shape, "broken", "DCA-161", "choices"),
    "a list": (scripted.not_an_object, "broken", "DCA-161", "violates the protocol"),
    "a web page": (scripted.a_web_page, "broken", "DCA-161", "Welcome"),
    "an empty body": (scripted.nothing, "cut", "DCA-161", "without a finish_reason"),
    "no events": (scripted.no_choices, "cut", "DCA-161", "without a finish_reason"),
    "endless": (scripted.endless, "broken", "DCA-161", "ignores max_tokens"),
    "400": (scripted.refuse, "refused", "DCA-162", "it is not supported"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_misbehaving_server_gets_its_verdict_for_a_long_prompt_within_the_deadline(
    serve: Serve, check: Check, name: str
) -> None:
    trick, outcome, code, words = BAD[name]
    place = serve(tricks={"needle": trick})
    started = time.monotonic()
    done = check(place.url, *ONE, "--needle-timeout", TIMEOUT, "--json", "--skip", "sampling,tools,structured,sense")
    assert time.monotonic() - started < TIMEOUT + SLACK
    (needle,) = done.told["needles"]
    assert (needle["outcome"], needle["code"]) == (outcome, code), needle
    assert words in needle["detail"]
    assert needle["deadline"] == TIMEOUT
    assert needle["seconds"] < TIMEOUT + SLACK
    assert (done.code, done.told["reached"]) == (1, 0)
    assert "Traceback" not in done.err
    assert done.err.startswith(code)


SHORT: dict[str, tuple[scripted.Trick, str, str]] = {
    "hangs": (scripted.hang, "DCA-161", "not finished within"),
    "drips headers": (scripted.drip_headers, "DCA-161", "not finished within"),
    "500": (scripted.fail, "DCA-161", "CUDA out of memory"),
    "drops the connection": (scripted.drop, "DCA-160", "does not answer"),
    "half a JSON": (scripted.half_a_json, "DCA-161", "not JSON"),
    "another shape": (scripted.another_shape, "DCA-161", "choices"),
    "a list": (scripted.not_an_object, "DCA-161", "violates the protocol"),
    "a web page": (scripted.a_web_page, "DCA-161", "not JSON"),
    "an empty body": (scripted.nothing, "DCA-161", "not JSON"),
    "no choices": (scripted.no_choices, "DCA-161", "no choices"),
    "an error with status 200": (scripted.error_with_200, "DCA-161", "engine is dead"),
    "400": (scripted.refuse, "DCA-161", "it is not supported"),
}


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("kind", ["chat", "completion", "sense"])
def test_a_misbehaving_server_gets_its_verdict_for_a_short_request_within_the_deadline(
    serve: Serve, check: Check, name: str, kind: str
) -> None:
    trick, code, words = SHORT[name]
    place = serve(tricks={kind: trick})
    started = time.monotonic()
    done = check(place.url, "--skip", "needles", "--timeout", TIMEOUT, "--json")
    assert time.monotonic() - started < TIMEOUT + SLACK
    wrong = [probe for probe in done.told["probes"] if probe["code"]]
    assert [(one["name"], one["code"]) for one in wrong] == [(kind, code)]
    assert words in wrong[0]["detail"]
    assert done.code == 1
    assert done.err.startswith(code)


@pytest.mark.parametrize("name", sorted(set(BAD) - {"400", "hangs", "drips headers"}))
def test_a_misbehaving_server_gets_its_verdict_for_a_short_stream(serve: Serve, check: Check, name: str) -> None:
    trick, _, code, _ = BAD[name]
    done = check(serve(tricks={"stream": trick}).url, "--skip", "needles", "--timeout", TIMEOUT, "--json")
    assert [(probe["name"], probe["code"]) for probe in done.told["probes"] if probe["code"]] == [("stream", code)]


def flood(status: int, part: bytes) -> scripted.Trick:
    """A body of the same bytes over and over, without an end."""

    def trick(handler: scripted.Handler, _asked: Asked) -> None:
        handler.send_response(status)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while not handler.place.stopped.is_set():
            handler.chunk(part)

    return trick


@pytest.mark.parametrize("kind", ["chat", "stream"])
@pytest.mark.parametrize(
    ("status", "part"), [(200, b" " * 65536), (500, b"x" * 65536), (200, b"data: " + b"x" * 65536)]
)
def test_an_answer_without_an_end_is_not_read_past_a_limit(
    serve: Serve, check: Check, monkeypatch: pytest.MonkeyPatch, kind: str, status: int, part: bytes
) -> None:
    monkeypatch.setattr(transport, "MOST_BYTES", 1 << 20)
    document = check(serve(tricks={kind: flood(status, part)}).url, "--skip", "needles", "--json").told
    assert "more than 1 MiB" in next(probe["detail"] for probe in document["probes"] if probe["name"] == kind)


HOSTILE = {
    "escape codes": scripted.saying("\x1b[2J\x1b]0;owned\x07"),
    "half a character": scripted.saying("\ud83d"),
    "deep": lambda handler, _asked: handler.send_body(b"[" * 200_000),
    "a number of tokens below zero": scripted.counting(-(10**6)),
    "a number of tokens past all bounds": scripted.counting(10**30),
    "compressed": lambda handler, _asked: handler.send_body(
        b"\x1f\x8b" + bytes(100), more={"Content-Encoding": "gzip"}
    ),
    "redirected in a circle": lambda handler, _asked: handler.send_body(b"", 307, more={"Location": handler.path}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_end_in_a_verdict_that_can_be_printed(serve: Serve, check: Check, name: str) -> None:
    for kinds in (("chat",), ("sense", "tools", "structured"), ("stream", "needle")):
        place = serve(tricks=dict.fromkeys(kinds, HOSTILE[name]))
        for words in (("--json",), ()):
            done = check(place.url, *ONE, "--timeout", 5, "--needle-timeout", 5, *words)
            assert done.code in (0, 1)
            assert "\x1b" not in done.out + done.err
            (done.out + done.err).encode()
            assert "Traceback" not in done.err


def test_a_name_of_a_model_that_cannot_be_printed_is_refused(serve: Serve, check: Check) -> None:
    done = check(serve(models=("\x1b[2J",)).url)
    assert (done.code, "\x1b" in done.err) == (1, False)
    assert "DCA-161" in done.err


@pytest.mark.parametrize("told", [1, 65, 10**9])
@pytest.mark.parametrize("where", ["/tokenize", "usage", "both"])
def test_a_count_that_no_text_has_is_not_believed_whatever_the_length(
    serve: Serve, check: Check, where: str, told: int
) -> None:
    place = serve(
        max_model_len=None,
        tokenizer=where != "usage",
        tokenized=None if where == "usage" else told,
        counted=None if where == "/tokenize" else told,
    )
    done = check(place.url, "--lengths", "1024,2048,4096", "--depths", "0,100", "--json")
    assert [needle["outcome"] for needle in done.told["needles"]] == ["found"] * 6
    for length, asked in zip([1024, 1024, 2048, 2048, 4096, 4096], place.needles(), strict=True):
        assert 0.6 * length < scripted.count(asked.text) < 1.3 * length
    assert {needle["counted"] for needle in done.told["needles"]} == {"usage" if where == "/tokenize" else "estimate"}
    assert f"{told:,} tokens for " in next(one for one in done.told["not_proven"] if "impossible" in one)
    assert done.code == 0


NO_PROBES = ("--skip", "chat,completion,stream,sampling,sense,tools,structured")


@pytest.mark.parametrize(
    ("how", "words", "code"),
    [
        ({"max_model_len": 10}, NO_PROBES, 1),
        ({"counted": 4000, "max_model_len": None}, ("--lengths", "1024,4096"), 1),
        ({}, (*NO_PROBES, "--max-cost", "300"), 0),
    ],
)
def test_a_check_without_any_prompt_fails_unless_its_cost_forbade_them(
    serve: Serve, check: Check, how: dict[str, Any], words: tuple[str, ...], code: int
) -> None:
    place = serve(**how)
    done = check(place.url, *words, "--json")
    assert (place.needles(), done.code) == ([], code)
    assert {needle["outcome"] for needle in done.told["needles"]} == {"skipped"}
    assert [needle["code"] for needle in done.told["needles"] if needle["code"]] == ["DCA-162"] * code


def test_a_length_past_all_bounds_is_not_believed(serve: Serve) -> None:
    card = answers.Card(id="one", max_model_len=10**15)
    wanted = engine._range(engine.Request(url=""), card)
    assert max(wanted.lengths) == engine.needles.LONGEST


def test_a_short_request_that_time_runs_out_for_is_not_the_servers_fault(serve: Serve, check: Check) -> None:
    done = check(serve(tricks={"chat": scripted.hang}).url, "--max-cost", "1s", "--json")
    assert done.code == 0
    assert "--max-cost 1s ended it" in next(probe["detail"] for probe in done.told["probes"] if probe["name"] == "chat")
    assert {probe["status"] for probe in done.told["probes"][1:]} == {"skipped"}


@pytest.mark.parametrize(
    ("status", "words"),
    [(413, "client_max_body_size"), (429, "gateway"), (504, "proxy_read_timeout"), (408, "dca explain")],
)
def test_what_a_proxy_refuses_is_not_told_of_the_engine(serve: Serve, check: Check, status: int, words: str) -> None:
    def proxy(handler: scripted.Handler, _asked: Asked) -> None:
        handler.send_body(b"<html>nginx</html>", status, "text/html")

    document = check(serve(tricks={"needle": proxy}).url, *ONE, "--json").told
    (needle,) = document["needles"]
    assert (needle["outcome"], needle["code"]) == ("broken", "DCA-161")
    assert f"HTTP {status}" in needle["detail"]
    assert words in needle["remedy"]
    assert "--max-model-len" not in needle["remedy"]


def test_once_the_server_is_gone_nothing_more_is_sent(serve: Serve, check: Check) -> None:
    place = serve(tricks={"sampling": scripted.drop})
    document = check(place.url, "--json").told
    assert [probe["status"] for probe in document["probes"]] == ["passed"] * 4 + ["failed"] + ["skipped"] * 3
    assert document["needles"] == []
    assert place.asked[-2].kind == "sampling"
    assert place.asked[-1].path == "/health"
    assert any("long prompts: not asked" in one for one in document["not_proven"])


def test_story_a6_a_server_that_dies_at_a_long_prompt_is_told_with_the_length_that_passed(
    serve: Serve, check: Check
) -> None:
    def die(handler: scripted.Handler, asked: Asked) -> None:
        if len(asked.text) > 12_000:
            handler.cut()
        else:
            handler.complete(asked)

    place = serve(tricks={"needle": die})
    done = check(place.url, "--lengths", "1024,2048,4096,8192", "--depths", "0,100", "--json")
    assert done.told["reached"] == 2048
    assert [needle["outcome"] for needle in done.told["needles"]] == ["found"] * 4 + ["gone"] + ["skipped"] * 3
    dead = done.told["needles"][4]
    assert "ran out of GPU memory" in dead["remedy"]
    assert "dca serve plan" in dead["remedy"]
    assert "dca explain" in dead["remedy"]
    assert len(place.needles()) == 5


def test_a_server_that_fails_twice_is_not_asked_for_more(serve: Serve, check: Check) -> None:
    place = serve(tricks={"needle": scripted.fail})
    document = check(place.url, "--lengths", "1024,2048", "--depths", "0,50,100", "--json").told
    assert [needle["outcome"] for needle in document["needles"]] == ["broken"] * 2 + ["skipped"] * 4
    assert len(place.needles()) == 2


def test_a_server_that_nobody_started_is_one_message(check: Check) -> None:
    done = check("http://127.0.0.1:9", "--json")
    assert done.code == 1
    assert json.loads(done.out)["code"] == "DCA-160"
    assert "start the server" in done.err


@pytest.mark.parametrize("trick", [scripted.hang, scripted.fail, scripted.a_web_page, scripted.not_an_object])
def test_a_server_that_does_not_list_its_models_can_be_asked_by_name(
    serve: Serve, check: Check, trick: scripted.Trick
) -> None:
    place = serve(tricks={"models": trick})
    done = check(place.url, "--skip", "needles", "--timeout", TIMEOUT)
    assert done.code == 1
    assert "DCA-161" in done.err
    assert "--model" in done.err
    document = check(place.url, "--skip", "needles", "--timeout", TIMEOUT, "--model", scripted.MODEL, "--json").told
    assert [probe["name"] for probe in document["probes"] if probe["code"]] == ["models"]
    assert [probe["status"] for probe in document["probes"][1:]] == ["passed"] * 7


def test_one_of_several_models_must_be_named(serve: Serve, check: Check) -> None:
    place = serve(models=("one", "two"))
    done = check(place.url)
    assert (done.code, "one, two" in done.err) == (2, True)
    assert check(place.url, "--skip", "needles", "--model", "two").code == 0
    assert {request.body["model"] for request in place.asked if request.body} == {"two"}


# --- the key -------------------------------------------------------------------------------------------------------


def test_story_c3_a_server_with_a_key_and_a_name_of_its_own_is_asked_as_its_clients_do(
    serve: Serve, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = serve(key="s3cret-key", models=("my-name",))
    monkeypatch.setenv("THE_KEY", "s3cret-key")
    done = check(place.url, "--api-key-env", "THE_KEY", "--model", "my-name", *ONE)
    assert done.code == 0, done.err
    assert "s3cret" not in done.out + done.err
    assert {request.path for request in place.asked} == {
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/tokenize",
        "/version",
        "/metrics",
    }


def test_a_wrong_key_and_a_missing_one_are_told(serve: Serve, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    place = serve(key="s3cret-key")
    monkeypatch.setenv("THE_KEY", "wr0ng-key")
    for words in ([], ["--api-key-env", "THE_KEY"]):
        done = check(place.url, *words)
        assert done.code == 1
        assert "--api-key-env" in done.err
        assert "wr0ng" not in done.err


# At its beginning, and where what is told of an answer or of an error is cut: half a key is too much as well.
BEFORE = ("", "x" * 48, "x" * 66, "x" * 272)


class Secret(NamedTuple):
    """A key, and what the server says before it each time that it says it back."""

    key: str
    before: tuple[str, ...]


SECRETS = [
    Secret("pr1vate-0123456789abcdef", BEFORE),
    Secret('pr1vate"&<\\1234567890>abcdef', ("",)),
    Secret("p4s", ("",)),
]


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: secret.key)
@pytest.mark.parametrize("how", scripted.ECHOES)
def test_a_key_that_the_server_says_back_is_shown_and_kept_nowhere(
    serve: Serve,
    check: Check,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    how: str,
    secret: Secret,
) -> None:
    key = secret.key
    # No name that tells what it is.
    monkeypatch.setenv("GATEWAY", key)
    page = tmp_path / "report.html"
    kinds = ("chat", "completion", "stream", "sampling", "sense", "tools", "structured", "needle")
    for before in secret.before:
        place = serve(tricks=dict.fromkeys(kinds, scripted.echoing(scripted.ECHOES[how], before)))
        done = check(place.url, "--api-key-env", "GATEWAY", *ONE, "--json", "--report", page)
        assert done.code == 1
        kept = [path.read_text() for path in (tmp_path / "cache/run").rglob("*.json")]
        for text in (done.out, done.err, page.read_text(), *kept):
            assert key[:7] not in text
            assert key[-7:] not in text
            assert before or "***" in text


@pytest.mark.parametrize("how", ["401", "500 as JSON", "a header"])
def test_a_key_that_is_refused_with_its_own_words_is_not_shown(
    serve: Serve, check: Check, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("GATEWAY", "pr1vate-0123456789abcdef")
    place = serve(tricks={"models": scripted.echoing(scripted.ECHOES[how], "")})
    for words in ((), ("--json",)):
        done = check(place.url, "--api-key-env", "GATEWAY", *words)
        assert (done.code, "***" in done.err) == (1, True)
        assert "pr1vate" not in done.out + done.err


def test_a_model_that_is_called_like_the_key_is_asked_and_not_named(
    serve: Serve, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY", "pr1vate-0123456789abcdef")
    for models in (("of pr1vate-0123456789abcdef",), ("pr1vate-0123456789abcdef", "other")):
        place = serve(models=models)
        done = check(place.url, "--api-key-env", "GATEWAY", "--skip", "needles")
        assert "pr1vate" not in done.out + done.err
    assert done.code == 2


def test_keys_and_accounts_of_another_service_are_not_sent(
    serve: Serve, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "pr1vate")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    place = serve()
    assert check(place.url, "--skip", "needles").code == 0
    assert not [request for request in place.asked if "pr1vate" in str(request.headers)]


def test_credentials_in_the_url_are_not_shown(serve: Serve, check: Check) -> None:
    place = serve()
    url = place.url.replace("http://", "http://user:s3cret@")
    done = check(url, "--skip", "needles", "--json")
    assert "s3cret" not in done.out + done.err
    assert "s3cret" not in check("http://user:s3cret@127.0.0.1:9").err


# --- what it may cost ------------------------------------------------------------------------------------------------


@pytest.mark.proof
def test_a_cost_is_never_passed(serve: Serve, check: Check, chance: random.Random, scale: Callable[[int], int]) -> None:
    for _ in range(scale(300)):
        usage, tokenizer = chance.random() < 0.7, chance.random() < 0.7
        place = serve(usage=usage, tokenizer=tokenizer, max_model_len=None)
        limit = chance.choice([600, 2000, 5000, 20_000, 60_000, 100_000])
        lengths = ",".join(str(chance.randint(512, 16384)) for _ in range(3))
        depths = ",".join(str(chance.randint(0, 100)) for _ in range(2))
        document = check(place.url, "--lengths", lengths, "--depths", depths, "--max-cost", limit, "--json").told
        counted = document["cost"]["prompt_tokens"] + document["cost"]["answer_tokens"]
        assert counted <= limit
        # Without any count it is the estimate that is kept to, and that is said.
        if usage:
            assert (
                place.billed()
                - sum(int(request.body["max_tokens"]) for request in place.asked if request.body.get("max_tokens"))
                <= limit
            )
        else:
            assert any("estimated" in one for one in document["not_proven"]) or not any(
                needle["outcome"] == "found" for needle in document["needles"]
            )


def test_what_a_cost_does_not_allow_is_told_as_not_proven(serve: Serve, check: Check) -> None:
    place = serve()
    done = check(place.url, "--lengths", "2048,8192", "--depths", "0,100", "--max-cost", "12k", "--json")
    assert [needle["outcome"] for needle in done.told["needles"]] == ["found"] * 2 + ["skipped"] * 2
    assert done.code == 0
    assert any("it would exceed --max-cost 12k" in one for one in done.told["not_proven"])
    assert done.told["reached"] == 2048


def test_money_is_counted_at_the_prices_given(serve: Serve, check: Check) -> None:
    place = serve()
    document = check(place.url, *ONE, "--price", "100,1000", "--json").told
    cost = document["cost"]
    assert cost["money"] == pytest.approx((cost["prompt_tokens"] * 100 + cost["answer_tokens"] * 1000) / 1e6)
    document = check(
        place.url, "--lengths", "2048,8192", "--depths", "0", "--price", "100", "--max-cost", "0.5", "--json"
    ).told
    assert [needle["outcome"] for needle in document["needles"]] == ["found", "skipped"]
    assert document["cost"]["money"] <= 0.5


def test_time_is_a_cost_too(serve: Serve, check: Check) -> None:
    place = serve(tricks={"needle": scripted.hang})
    started = time.monotonic()
    done = check(place.url, "--lengths", "2048,4096", "--depths", "0", "--max-cost", "2s", "--json")
    assert time.monotonic() - started < 2 + SLACK
    assert [needle["outcome"] for needle in done.told["needles"]] == ["skipped", "skipped"]
    assert "--max-cost 2s" in done.told["needles"][0]["detail"]
    # That the time was up is nothing that the server did wrong.
    assert done.code == 0


# --- what is shown ---------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """What a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]


def test_text_page_and_pictures_tell_the_same(serve: Serve, check: Check, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"

    def script(asked: Asked) -> Reply:
        return Reply(hostile) if asked.kind == "needle" and len(asked.text) > 6000 else scripted.right(asked)

    place = serve(script=script, models=("a<b>&c",))
    page, picture = tmp_path / "report.html", tmp_path / "heat.svg"
    done = check(place.url, "--lengths", "1024,2048", "--depths", "0,100", "--report", page, "--plot", picture)
    rows = [line.split() for line in done.out.splitlines() if re.match(r" +(depth|\d+ %) ", line)]
    assert rows[0] == ["depth", "1K", "2K"]
    assert [row[:3] + row[-1:] for row in rows[1:]] == [["0", "%", "found", "LOST"], ["100", "%", "found", "LOST"]]
    svg = ElementTree.parse(picture).getroot()
    words = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert (words.count("found"), words.count("lost")) == (3, 3)
    assert any("a<b>&c" in (word or "") for word in words)
    text = page.read_text()
    links = Links()
    links.feed(text)
    assert (links.found, "script" in links.tags, "svg" in links.tags) == ([], False, True)
    assert "&lt;script&gt;" in text
    order = [text.index(heading) for heading in ("DCA-163", "What was checked", "A fact in long prompts")]
    assert order == sorted(order)
    for fact in (f"dca {__version__}", "Date", place.url, "Engine", "a&lt;b&gt;&amp;c"):
        assert fact in text


def test_a_png_is_one_or_is_refused_before_anything_is_sent(serve: Serve, check: Check, tmp_path: Path) -> None:
    place = serve()
    done = check(place.url, *ONE, "--plot", tmp_path / "heat.png")
    if done.code == 0:
        assert (tmp_path / "heat.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert ("cairosvg" in done.err, place.asked) == (True, [])


def test_the_document_is_kept_and_can_be_read_back(serve: Serve, check: Check, tmp_path: Path) -> None:
    done = check(serve().url, *ONE, "--json")
    (kept,) = (tmp_path / "cache/run").glob("serve-check-*/serve-check.json")
    assert documents.read(ServeCheck, kept) == ServeCheck.model_validate(done.told)


def test_progress_is_told_while_a_prompt_is_waited_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    class Listener(Silent):
        told: list[tuple[float, float, str]] = []

        def progress(self, done: float, total: float, text: str) -> None:
            self.told.append((done, total, text))

    monkeypatch.setattr(client, "TICK_SECONDS", 0.05)
    place = serve(script=slow)
    engine.check(engine.Request(url=place.url, lengths=(1024, 2048), depths=(0.0,)), Listener())
    waited = [text for _, _, text in Listener.told if "waiting" in text]
    assert any(text.startswith("1,024 tokens, depth 0 %") for text in waited)
    assert (3072, 3072) in [(done, total) for done, total, _ in Listener.told]


def slow(asked: Asked) -> Reply:
    """A model that takes its time for long prompts."""
    time.sleep(0.2 if asked.kind == "needle" else 0)
    return scripted.right(asked)


def test_quiet_says_nothing_of_what_is_well(serve: Serve, check: Check) -> None:
    done = check(serve().url, "--skip", "needles", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_while_the_server_hangs_is_one_at_once_and_keeps_what_was_seen(
    serve: Serve, tmp_path: Path, number: signal.Signals
) -> None:
    def second(handler: scripted.Handler, asked: Asked) -> None:
        (scripted.hang if len(asked.text) > 6000 else scripted.Handler.complete)(handler, asked)

    place = serve(tricks={"needle": second})
    page, picture = tmp_path / "report.html", tmp_path / "heat.svg"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "dca",
            "serve",
            "check",
            place.url,
            "--lengths",
            "1024,2048",
            "--depths",
            "50",
            "--report",
            str(page),
            "--plot",
            str(picture),
            "--cache-dir",
            str(tmp_path / "cache"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert wait_for(lambda: len(place.needles()) == 2, 30)
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == (130 if number != signal.SIGKILL else -signal.SIGKILL)
    assert ("Interrupted." in err) == (number != signal.SIGKILL)
    assert "Traceback" not in out + err
    (kept,) = tmp_path.glob("cache/run/serve-check-*/*")
    result = documents.read(ServeCheck, kept)
    assert ([needle.outcome for needle in result.needles], result.reached) == (["found"], 1024)
    assert "1 prompt: not asked, because the check was interrupted" in result.not_proven
    assert result.interrupted
    if number != signal.SIGKILL:
        assert [str(file) in err for file in (kept, page, picture)] == [True] * 3
        assert ("the check was interrupted" in page.read_text(), picture.read_text()[:4]) == (True, "<svg")


def interrupt(handler: scripted.Handler, asked: Asked) -> None:
    """Press Ctrl-C at the first longer prompt."""
    if len(asked.text) > 6000:
        os.kill(os.getpid(), signal.SIGINT)
        handler.place.stopped.wait(5)
    else:
        handler.complete(asked)


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Lets this process be interrupted again: dca ignores what comes after the first interruption."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}

    def again() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    yield again
    again()


def test_an_interrupted_check_is_continued_with_the_same_server_model_and_seed(
    serve: Serve, check: Check, ctrl_c: Callable[[], None]
) -> None:
    place = serve(tricks={"needle": interrupt})
    words = (place.url, "--lengths", "1024,2048", "--depths", "0,50")
    first = check(*words, "--json")
    assert (first.code, first.told["interrupted"], first.told["reached"]) == (130, True, 1024)
    ctrl_c()
    place.tricks, sent = {}, len(place.needles())
    other = check(*words, "--seed", "1", "--json")
    assert (other.told["resumed"], len(place.needles())) == (0, sent + 4)
    again = check(*words, "--json")
    assert (again.code, again.told["interrupted"], again.told["resumed"]) == (0, False, 2)
    assert [needle["outcome"] for needle in again.told["needles"]] == ["found"] * 4
    assert len(place.needles()) == sent + 4 + 2
    assert again.told["cost"]["prompt_tokens"] > first.told["cost"]["prompt_tokens"]
    # What has ended is begun anew.
    assert check(*words, "--json").told["resumed"] == 0


def test_restart_and_another_model_length_or_version_continue_nothing(
    serve: Serve, check: Check, ctrl_c: Callable[[], None]
) -> None:
    changes: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (("--restart",), {}),
        (("--no-thinking",), {}),
        ((), {"max_model_len": 8192}),
        ((), {"pages": {"/version": '{"version": "2"}'}}),
    ]
    for words, change in changes:
        ctrl_c()
        place = serve(tricks={"needle": interrupt})
        every = (place.url, "--lengths", "1024,2048", "--depths", "0", "--json")
        assert check(*every).told["interrupted"]
        place.tricks = {}
        for name, value in change.items():
            setattr(place, name, value)
        assert (check(*every, *words).told["resumed"], words, change) == (0, words, change)


# --- wrong usage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["localhost:8000"], "write it as http://HOST:8000"),
        (["ftp://127.0.0.1"], "write it as http://HOST:8000"),
        (["http://"], "write it as http://HOST:8000"),
        (["http://127.0.0.1:99999"], "write it as http://HOST:8000"),
        (["http://127.0.0.1:9/v1?key=1"], "write it as http://HOST:8000"),
        (["URL", "--length", "many"], "131072, 128K or 1M"),
        (["URL", "--length", "10"], "the minimum is 256"),
        (["URL", "--length", "1M", "--lengths", "4096"], "exclude each other"),
        (["URL", "--lengths", "4096,"], "131072, 128K or 1M"),
        (["URL", "--depths", "101"], "0,50,100"),
        (["URL", "--depths", "nan"], "0,50,100"),
        (["URL", "--depths", "half"], "0,50,100"),
        (["URL", "--max-cost", "0"], "5M (tokens)"),
        (["URL", "--max-cost", "5 apples"], "5M (tokens)"),
        (["URL", "--max-cost", "1.5"], "whole number"),
        (["URL", "--price", "cheap"], "0.35,1.05"),
        (["URL", "--skip", "chatt"], "there is no test"),
        (["URL", "--need", "needles"], "there is no test"),
        (["URL", "--need", "tools", "--skip", "tools"], "both name tools"),
        (["URL", "--api-key-env", "NO_SUCH_VARIABLE"], "is not set"),
        (["URL", "--plot", "heat.jpg"], ".svg or .png file"),
        (["URL", "--plot", "heat.svg", "--skip", "needles"], "--plot draws"),
        (["URL", "--report", "/etc/hostname/report.html"], "cannot be written"),
        (["URL", "--timeout", "0"], "--timeout"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_sent(serve: Serve, check: Check, words: list[str], told: str) -> None:
    place = serve()
    done = check(*(place.url if word == "URL" else word for word in words))
    assert done.code == 2
    assert told in done.err
    assert re.match(r"DCA-20[14]: ", done.err)
    assert place.asked == []


def test_without_the_client_library_it_says_how_to_get_it(
    serve: Serve, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    done = check(serve().url)
    assert (done.code, done.err.startswith("DCA-103")) == (1, True)
    assert "/uv pip install --python " in done.err
    assert "'openai>=" in done.err


def test_the_client_library_is_not_loaded_before_it_is_needed() -> None:
    script = "import sys\nfrom dca.cli import run\nrun(['serve', 'check', '--help'])\nprint('openai' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.endswith("False\n")


def test_an_error_of_our_own_is_not_taken_for_the_servers(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> Any:
        raise KeyError("ours")

    monkeypatch.setattr(client, "answer_of", wrong)
    with pytest.raises(KeyError, match="ours"):
        engine.check(engine.Request(url=serve().url), Silent())
