"""What servers of other kinds, gateways and proxies send, from stand-ins that send the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from dca.serve.check import needles, thoughts
from dca.serve.check.client import base_of
from dca.serve.check.failed import refusal
from tests.serve.check.conftest import Check, Serve, probe_of
from tests.support.scripted_server import TEMPLATE, Asked, Handler, Reply, Trick, count, piece, right

NO_NEEDLES = ("--skip", "needles", "--json")
ONE = ("--lengths", "4096", "--depths", "50", "--json")
CHATS = ("chat", "stream", "sampling", "sense", "tools", "structured", "needle")
pytestmark = pytest.mark.slow


# --- streams ---------------------------------------------------------------------------------------------------------


def lines(*events: bytes) -> Callable[[str], list[bytes]]:
    """A stream of these lines around an answer, for which `%s` stands."""
    return lambda text: [event.replace(b"%s", json.dumps(text).encode()) for event in events]


SAYS = b'data: {"choices": [{"index": 0, "delta": {"content": %s}}]}\n\n'
STOP = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
WELL = {
    "the mark of UTF-8": lines(b"\xef\xbb\xbf" + SAYS, STOP, DONE),
    "lines that keep it open": lines(b": keep-alive\n\n", SAYS, b": more\n\n", STOP, DONE),
    "events that keep it open": lines(b'event: ping\ndata: {"type": "ping"}\n\n', SAYS, STOP, DONE),
    "CRLF": lines(*(line.replace(b"\n", b"\r\n") for line in (SAYS, STOP, DONE))),
    "no [DONE]": lines(SAYS, STOP),
    "counts without choices": lines(SAYS, STOP, b'data: {"usage": {"prompt_tokens": 9}}\n\n', DONE),
    "choices that are null": lines(SAYS, STOP, b'data: {"choices": null, "usage": null}\n\n', DONE),
    "a count below zero": lines(SAYS, STOP, b'data: {"choices": [], "usage": {"prompt_tokens": -1}}\n\n', DONE),
    "counts that are none": lines(SAYS, STOP, b'data: {"choices": [], "usage": []}\n\n', DONE),
    "content in parts": lines(SAYS.replace(b"%s", b'[{"type": "text", "text": %s}]'), STOP, DONE),
    "bytes one by one": lambda text: [bytes([one]) for one in b"".join(lines(SAYS, STOP, DONE)("é" + text))],
}
BADLY = {
    "an error that is no event": (lines(SAYS, b'error: {"message": "out of memory"}\n\n'), "out of memory"),
    "an error that is no event and comes alone": (lines(b'error: {"message": "out of memory"}\n\n'), "out of memory"),
    "an error that is a text": (lines(SAYS, b'data: {"error": "out of memory"}\n\n', DONE), "out of memory"),
    "an error of its own kind": (lines(b'event: error\ndata: {"message": "out of memory"}\n\n'), "out of memory"),
    "an answer that was aborted": (lines(SAYS, STOP.replace(b"stop", b"abort"), DONE), "finish_reason 'abort'"),
    "a message": (lines(SAYS.replace(b"delta", b"message"), STOP, DONE), "a whole `message`"),
    "no UTF-8": (lines(b'data: {"choices": [{"delta": {"content": "\xe9"}}]}\n\n', STOP), "not UTF-8"),
    "a wrong type in its middle": (lines(SAYS, b'data: {"choices": "none"}\n\n', DONE), "protocol: choices"),
}


def streaming(of: Callable[[str], list[bytes]]) -> Trick:
    def trick(handler: Handler, asked: Asked) -> None:
        handler.start_stream()
        for part in of(right(asked).text):
            handler.chunk(part)
        handler.end_stream(done=False)

    return trick


@pytest.mark.parametrize("how", WELL)
def test_a_stream_that_clients_can_read_is_read(serve: Serve, check: Check, how: str) -> None:
    done = check(serve(tricks=dict.fromkeys(("stream", "needle"), streaming(WELL[how]))).url, *ONE)
    assert done.code == 0, done.err
    assert done.told["needles"][0]["outcome"] == "found"


@pytest.mark.parametrize("how", BADLY)
def test_a_stream_that_fails_is_told_with_what_it_said(serve: Serve, check: Check, how: str) -> None:
    form, words = BADLY[how]
    document = check(serve(tricks=dict.fromkeys(("stream", "needle"), streaming(form))).url, *ONE).told
    for part in (probe_of(document, "stream"), document["needles"][0]):
        assert (part["code"], words in part["detail"]) == ("DCA-161", True), part
        assert "was cut" not in part["detail"]


def test_a_stream_that_a_proxy_collects_is_told(serve: Serve, check: Check) -> None:
    def collected(handler: Handler, asked: Asked) -> None:
        handler.place.stopped.wait(0.5)
        body = b"".join(b"".join(lines(SAYS)(part)) for part in "a stream of pieces") + STOP + DONE
        handler.send_body(body, kind="text/event-stream")

    document = check(serve(tricks={"stream": collected}).url, *NO_NEEDLES).told
    assert "proxy_buffering off" in probe_of(document, "stream")["detail"]
    assert "proxy" not in probe_of(check(serve().url, *NO_NEEDLES).told, "stream")["detail"]


# --- reasoning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "< think >hm</ think >42",
        '<think lang="zh">嗯</think>42',
        "&lt;think&gt;hm&lt;/think&gt;42",
        "<reflection>hm</reflection><output>42</output>",
        "<think>hm</think>\n<answer>\n42\n</answer>",
        "<think>hm</think>\n\n<response>\n42\n</response>\n",
        "<|im_start|>think\nhm<|im_end|>\n<|im_start|>answer\n42<|im_end|>",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>",
        "analysisWe add.assistantfinal42",
        "<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>42<|END_RESPONSE|>",
        '<details type="reasoning" done="true"><summary>Thought</summary>hm</details>\n42',
        "Here is my thought process: hm Here is my response: 42",
    ],
)
def test_reasoning_in_more_marks_is_no_part_of_an_answer(text: str) -> None:
    assert thoughts.split(text) == ("42", True)


@pytest.mark.parametrize("text", ["analysis of it: 42", "<answer>42</answer>", "I think it is 42"])
def test_what_is_no_reasoning_is_left(text: str) -> None:
    assert thoughts.split(text) == (text, False)


FIELDS: dict[str, dict[str, Any]] = {
    "thinking": {"thinking": "hm"},
    "reasoning_details": {"reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
    "parts": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
}


@pytest.mark.parametrize("how", [*FIELDS, "counts"])
def test_reasoning_in_other_fields_that_was_cut_is_no_empty_answer(serve: Serve, check: Check, how: str) -> None:
    def trick(handler: Handler, asked: Asked) -> None:
        most = asked.body["max_tokens"]
        usage: dict[str, Any] = {"prompt_tokens": count(asked.text) + TEMPLATE, "completion_tokens": most}
        if how == "counts":
            usage["completion_tokens_details"] = {"reasoning_tokens": most}
        message = {"role": "assistant", "content": "", **FIELDS.get(how, {})}
        if asked.body.get("stream"):
            handler.start_stream()
            handler.event(piece(message))
            handler.event(piece({}, "length"))
            handler.event({"choices": [], "usage": usage})
            return handler.end_stream()
        choice = {"index": 0, "finish_reason": "length", "message": message}
        return handler.send_json({"choices": [choice], "usage": usage})

    document = check(serve(tricks=dict.fromkeys(CHATS, trick)).url, *ONE).told
    assert document["reasons"]
    assert {probe_of(document, name)["status"] for name in CHATS[:-1]} == {"undecided"}
    assert document["needles"][0]["detail"] == "the whole answer is reasoning"


def test_tokens_that_a_server_counts_and_does_not_show_are_told(serve: Serve, check: Check) -> None:
    def script(asked: Asked) -> Reply:
        return Reply("", finish="length", tokens=asked.body["max_tokens"]) if asked.kind == "sense" else right(asked)

    probe = probe_of(check(serve(script=script).url, *NO_NEEDLES).told, "sense")
    assert (probe["status"], "--reasoning-parser" in probe["remedy"]) == ("failed", True)


# --- rejections ------------------------------------------------------------------------------------------------------


def told(status: int, body: Any, more: dict[str, str] | None = None) -> Trick:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda handler, _: handler.send_body(data, status, more=more)


def test_a_page_of_a_proxy_is_shown_as_what_it_says() -> None:
    page = (
        "<!DOCTYPE html><html><head><title>502 Bad Gateway</title><style>body{color:red}</style></head>"
        "<body><h1>Bad&nbsp;Gateway</h1><!-- a comment --><script>run()</script></body></html>"
    )
    assert refusal(502, page).words == "HTTP 502: 502 Bad Gateway Bad Gateway"
    assert refusal(403, "<html><h1>no key <b>sec</b>ret</h1><p>nginx").words == "HTTP 403: no key secret nginx"
    assert refusal(500, "a < b").words == "HTTP 500: a < b"


@pytest.mark.parametrize(
    ("status", "key", "words"),
    [
        (401, "", ("requires a key", "name it with --api-key-env")),
        (401, "a-key-of-ours", ("rejects the key", "the variable of --api-key-env")),
        (403, "a-key-of-ours", ("denies access", "may do")),
    ],
)
def test_a_key_that_is_missing_wrong_or_not_enough_is_told_apart(
    serve: Serve, check: Check, monkeypatch: pytest.MonkeyPatch, status: int, key: str, words: tuple[str, str]
) -> None:
    monkeypatch.setenv("GATEWAY", key)
    place = serve(tricks={"chat": told(status, {"error": {"message": "no"}})})
    document = check(place.url, *ONE, *(("--api-key-env", "GATEWAY") if key else ())).told
    probe = probe_of(document, "chat")
    assert (probe["code"], words[0] in probe["detail"], words[1] in probe["remedy"]) == ("DCA-160", True, True)
    # It is not gone.
    assert {one["detail"] for one in document["probes"][2:]} == {"the server did not allow `chat`"}
    assert [request.kind for request in place.asked][-2:] == ["chat", "health"]


def test_a_wanted_payment_is_no_missing_feature(serve: Serve, check: Check) -> None:
    trick = told(402, {"error": {"message": "Insufficient credits"}})
    document = check(serve(tricks=dict.fromkeys(CHATS, trick)).url, *ONE).told
    assert not [probe for probe in document["probes"] if probe["status"] == "refused"]
    assert "the account has credit" in probe_of(document, "tools")["remedy"]
    assert document["needles"][0]["outcome"] == "broken"


def test_where_no_chat_is_possible_features_are_not_called_missing(serve: Serve, check: Check) -> None:
    trick = told(404, {"error": {"message": "The model `x` does not exist."}})
    document = check(serve(tricks=dict.fromkeys(CHATS, trick)).url, *ONE).told
    assert {probe_of(document, name)["status"] for name in ("sampling", "tools", "structured")} == {"skipped"}
    assert "the model's name" in probe_of(document, "chat")["remedy"]
    (needle,) = document["needles"]
    assert (needle["outcome"], needle["code"], "--max-model-len" in needle["remedy"]) == ("refused", "DCA-161", False)


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_without_plain_completions_passes_unless_they_are_needed(
    serve: Serve, check: Check, status: int
) -> None:
    place = serve(tricks={"completion": told(status, {"detail": "Not Found"})})
    done = check(place.url, *NO_NEEDLES)
    assert (done.code, probe_of(done.told, "completion")["status"]) == (0, "refused")
    assert check(place.url, *NO_NEEDLES, "--need", "completion").code == 1


def test_an_api_at_another_path_is_hinted_at(serve: Serve, check: Check) -> None:
    done = check(serve(tricks={"models": told(404, {"detail": "Not Found"})}).url)
    assert (done.code, "/openai/v1" in done.err, "--model" in done.err) == (1, True, True)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/openai/v1/", "http://h:1/openai/v1"),
        ("http://h:1/v1/chat/completions", "http://h:1/v1"),
        ("http://h:1/v1/completions", "http://h:1/v1"),
        ("http://h:1/v1/models", "http://h:1/v1"),
    ],
)
def test_the_url_of_a_request_is_one_of_its_server(url: str, base: str) -> None:
    assert base_of(url) == base


@pytest.mark.parametrize("after", ["inf", "1e400", "soon", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_retry_after_that_is_no_time_is_not_waited_for(serve: Serve, check: Check, after: str) -> None:
    trick = told(429, {"error": {"message": "slow down"}}, {"Retry-After": after})
    detail = probe_of(check(serve(tricks={"chat": trick}).url, *NO_NEEDLES).told, "chat")["detail"]
    assert "HTTP 429: slow down" in detail
    assert "inf" not in detail


# --- errors with status 200, and redirections ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "boom"}, "choices": []}, "boom"),
        ({"choices": [{"finish_reason": "error", "error": {"message": "boom"}, "message": {"content": "re"}}]}, "boom"),
        ({"choices": [{"finish_reason": "abort", "message": {"content": "re"}}]}, "finish_reason 'abort'"),
    ],
)
def test_an_error_beside_an_answer_is_one(serve: Serve, check: Check, body: Any, words: str) -> None:
    probe = probe_of(check(serve(tricks={"chat": told(200, body)}).url, *NO_NEEDLES).told, "chat")
    assert (probe["code"], words in probe["detail"]) == ("DCA-161", True), probe


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirection_that_loses_the_prompt_is_told(serve: Serve, check: Check, status: int) -> None:
    place = serve(tricks={"chat": told(status, b"", {"Location": "/v1/models"})})
    probe = probe_of(check(place.url, *NO_NEEDLES).told, "chat")
    assert (probe["code"], "without its body" in probe["detail"]) == ("DCA-161", True)
    assert [request.kind for request in place.asked].count("models") == 1


def test_redirections_in_a_circle_are_no_server_that_is_gone(serve: Serve, check: Check) -> None:
    circle: Trick = lambda handler, _: handler.send_body(b"", 307, more={"Location": handler.path})  # noqa: E731
    document = check(serve(tricks={"chat": circle}).url, *NO_NEEDLES).told
    assert (probe_of(document, "chat")["code"], probe_of(document, "sense")["status"]) == ("DCA-161", "passed")


# --- lists of models -------------------------------------------------------------------------------------------------


def listing(*cards: dict[str, Any]) -> dict[str, Trick]:
    return {"models": told(200, {"object": "list", "data": [{"id": "m", **card} for card in cards]})}


@pytest.mark.parametrize(
    ("cards", "length"),
    [
        (({"max_model_len": 16384, "root": "/m"}, {"id": "lora", "parent": "m", "max_model_len": 16384}), 16384),
        (({}, {}), None),
        (({"max_model_len": 0},), None),
        (({"max_model_len": "16384"},), 16384),
        (({"context_length": 16384},), 16384),
        (({"meta": {"n_ctx": 8192, "n_ctx_train": 1_010_000}},), 8192),
    ],
)
def test_a_list_of_one_model_is_read_whatever_it_says_of_it(
    serve: Serve, check: Check, cards: tuple[dict[str, Any], ...], length: int | None
) -> None:
    done = check(serve(tricks=listing(*cards)).url, *NO_NEEDLES)
    assert (done.code, done.told["model"], done.told["max_model_len"]) == (0, "m", length), done.err


def test_an_empty_list_and_a_long_one_are_told(serve: Serve, check: Check) -> None:
    done = check(serve(tricks=listing()).url)
    assert (done.code, "lists no model" in done.err) == (1, True)
    many = serve(tricks=listing(*({"id": f"org/model-{number}"} for number in range(300))))
    assert "and 288 more" in check(many.url).err
    # The nearest names come first.
    assert "it serves: org/model-217," in check(many.url, "--model", "org/modl-217").err
    for name in ("", "x" * 10_000):
        assert check(serve(tricks=listing({"id": name})).url).code == 1


# --- prompts that are truncated, and answers to other prompts --------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [True, False])
@pytest.mark.parametrize("most", [1000, 2048, 6000])
def test_a_server_that_silently_truncates_prompts_is_found_out(
    serve: Serve, check: Check, tokenizer: bool, most: int
) -> None:
    def trick(handler: Handler, asked: Asked) -> None:
        tokens = count(asked.text) + TEMPLATE
        kept = asked.text[-int(len(asked.text) * min(1.0, most / tokens)) :]
        reply = right(asked)
        reply = reply if f"is {reply.text}." in kept else Reply("I do not know.")
        handler.stream(reply, {"prompt_tokens": min(tokens, most), "completion_tokens": count(reply.text)})

    place = serve(tricks={"needle": trick}, tokenizer=tokenizer, max_model_len=None)
    document = check(place.url, "--lengths", "1024,2048,4096,8192,16384", "--depths", "0,100", "--json").told
    first = next(needle for needle in document["needles"] if needle["outcome"] != "found")
    assert (first["outcome"], first["code"]) == ("refused", "DCA-162")
    assert f"truncated the prompt: it counted {most:,} tokens" in first["detail"]
    assert first["length"] > most
    assert document["needles"][-1]["outcome"] == "skipped"


def test_the_count_of_another_tokenizer_is_no_truncated_prompt() -> None:
    """A gateway may answer /tokenize with a tokenizer of its own, which counts a quarter more."""
    counter = needles.Counter()
    assert counter.learn(40_000, 12_500, 0, needles.KEPT_BY_TOKENIZE)
    assert not counter.truncated(16_000, 4_000 + counter.overhead)
    assert counter.learn(16_000, 4_000 + counter.overhead, counter.overhead)
    # A count that no text has shows nothing.
    assert not counter.truncated(160_000, 1)
    assert counter.truncated(160_000, 20_000)


def test_an_answer_to_an_earlier_prompt_is_told_as_that(serve: Serve, check: Check) -> None:
    first: list[str] = []

    def script(asked: Asked) -> Reply:
        reply = right(asked)
        if asked.kind != "needle" or not asked.body.get("stream"):
            return reply
        first.append(reply.text)
        return Reply(first[0])

    document = check(serve(script=script).url, "--lengths", "1024,2048", "--depths", "0,100", "--json").told
    assert [needle["outcome"] for needle in document["needles"]] == ["found", "lost", "lost", "lost"]
    assert {"another request's" in needle["detail"] for needle in document["needles"][1:]} == {True}
    assert "--no-enable-prefix-caching" in document["needles"][1]["remedy"]
