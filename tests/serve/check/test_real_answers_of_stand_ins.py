"""What real servers answered, from stand-ins that send the same: engines that end, cut answers, thoughts, proxies."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dca import __version__
from dca.serve import engines
from dca.serve.check import Engine as Told
from dca.serve.check import ServeCheck, client, identity, probes, transport
from tests.serve.check.conftest import Check, Serve, probe_of
from tests.support import scripted_server as scripted
from tests.support.scripted_server import Asked, Handler, Reply, Scripted, Trick, count, serving

NO_NEEDLES = ("--skip", "needles", "--json")
ONE = ("--lengths", "4096", "--depths", "50", "--json")
# As vLLM 0.32.0 sends it when its engine process has ended.
DEAD = {
    "error": {
        "message": "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "type": "InternalServerError",
        "param": None,
        "code": 500,
    }
}
METRICS = """# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",enable_prefix_caching="True",engine="0",\
gpu_memory_utilization="0.92",kv_cache_size_tokens="None",num_gpu_blocks="512",num_gpu_blocks_override="None"} 1.0
"""


def vllm(version: str) -> dict[str, Any]:
    """The paths and cards by which a vLLM of a version can be told."""
    return {
        "pages": {"/version": json.dumps({"version": version}), "/metrics": METRICS},
        "cards": {"owned_by": "vllm", "root": "/models/m", "parent": None},
    }


# --- the engine ends -------------------------------------------------------------------------------------------------


def dying(answer: Trick, health: Trick) -> Trick:
    """The request that ends the engine gets one answer, and everything after it another."""

    def trick(handler: Handler, asked: Asked) -> None:
        kinds = ("models", "chat", "completion", "stream", "sampling", "sense", "tools", "structured", "needle")
        handler.place.tricks = {**dict.fromkeys((*kinds, "tokenize"), answer), "health": health}
        if health is scripted.drop:
            handler.place.tricks = dict.fromkeys(handler.place.tricks, scripted.drop)
        answer(handler, asked)

    return trick


def dead(handler: Handler, _asked: Asked) -> None:
    handler.send_json(DEAD, 500)


def dead_in_stream(handler: Handler, asked: Asked) -> None:
    if not asked.body.get("stream"):
        return dead(handler, asked)
    handler.start_stream()
    handler.event(DEAD)
    return handler.end_stream()


DEATHS = {
    "V1, /health 503": dying(dead, lambda handler, _: handler.send_body(b"", 503)),
    "V0, /health 500": dying(dead, lambda handler, _: handler.send_body(b"Internal Server Error", 500)),
    "in a stream": dying(dead_in_stream, lambda handler, _: handler.send_body(b"", 503)),
    "killed": dying(scripted.drop, scripted.drop),
    "the answer, then nothing": dying(dead, scripted.drop),
}


def some(first: tuple[Any, ...], *others: tuple[Any, ...]) -> list[Any]:
    """Every combination: the first values of each in `make test`, the rest in `make prove`."""
    rows = list(itertools.product(first, *others))
    longest = max(len(first), *map(len, others))
    daily = {tuple(values[number % len(values)] for values in (first, *others)) for number in range(longest)}
    return [pytest.param(*row, marks=() if row in daily else pytest.mark.whole) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), some(("structured", "stream", "tools"), tuple(DEATHS)))
def test_a_request_that_ends_a_stand_ins_engine_is_named_and_nothing_is_asked_after_it(
    serve: Serve, check: Check, name: str, how: str
) -> None:
    place = serve(tricks={name: DEATHS[how]})
    done = check(place.url, "--json")
    document = done.told
    wrong = probe_of(document, name)
    assert (wrong["status"], wrong["code"], wrong["after"], done.code) == ("failed", "DCA-160", "ended", 1)
    assert wrong["detail"].startswith("this request ended the engine: ")
    after = document["probes"][document["probes"].index(wrong) + 1 :]
    assert [(one["status"], one["detail"]) for one in after] == [("skipped", f"`{name}` ended the engine")] * len(after)
    assert f"long prompts: not asked, because `{name}` ended the engine" in document["not_proven"]
    assert f"`{name}` ended the engine, and nothing more was asked" in document["verdict"]
    assert (document["needles"], "token count" in str(document["not_proven"])) == ([], False)
    asked = [request.kind for request in place.asked]
    assert set(asked[asked.index(name) + 1 :]) <= {name, "health", "models"}


@pytest.mark.slow
@pytest.mark.parametrize("how", DEATHS)
def test_a_long_prompt_that_ends_a_stand_ins_engine_is_named(serve: Serve, check: Check, how: str) -> None:
    place = serve(tricks={"needle": DEATHS[how]})
    document = check(place.url, "--lengths", "1024,2048", "--depths", "0,50", "--json").told
    assert [needle["outcome"] for needle in document["needles"]] == ["gone", "skipped", "skipped", "skipped"]
    assert document["needles"][0]["detail"].startswith("this prompt ended the engine: ")
    assert len(place.needles()) == 1


@pytest.mark.slow
def test_a_stand_in_that_is_stopped_hangs_and_is_asked_nothing_more(
    serve: Serve, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "HEALTH_SECONDS", 0.4)
    place = serve(tricks={"sense": dying(scripted.hang, scripted.hang)})
    document = check(place.url, "--timeout", "0.6", "--json").told
    wrong = probe_of(document, "sense")
    assert (wrong["code"], wrong["after"]) == ("DCA-160", "hangs")
    assert {probe["detail"] for probe in document["probes"][6:]} == {"the server hangs since `sense`"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chat", "completion", "stream", "sense"])
def test_a_stand_in_whose_engine_is_stopped_hangs_although_its_health_is_well(
    serve: Serve, check: Check, name: str
) -> None:
    """As vLLM 0.32.0 does: its /health asks the process that listens, not the one that computes."""
    place = serve(tricks={name: dying(scripted.hang, lambda handler, _: handler.send_body(b"", 200))})
    document = check(place.url, "--timeout", "0.6", "--json").told
    wrong = probe_of(document, name)
    assert (wrong["code"], wrong["after"]) == ("DCA-160", "hangs")
    after = document["probes"][document["probes"].index(wrong) + 1 :]
    assert {probe["detail"] for probe in after} == {f"the server hangs since `{name}`"}
    assert document["needles"] == []
    # One token is asked for, in the other way, and nothing else.
    last = [request.kind for request in place.asked if request.body][-2:]
    assert last == [name, "chat" if name == "completion" else "completion"]


# --- answers that were cut, and schemas ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ('{"title": "Moby', "undecided", "so far it follows the schema"),
        ('{"title": "Moby-Dick", "year": 18', "undecided", "so far it follows the schema"),
        ("{", "undecided", "so far it follows the schema"),
        ("Certainly! A book that I know is", "failed", "violates the schema"),
        ('{"name": "Moby', "failed", "violates the schema"),
        ('{"title": 7, "ye', "failed", "violates the schema"),
    ],
)
def test_an_answer_of_a_stand_in_that_was_cut_is_no_broken_schema(
    serve: Serve, check: Check, text: str, status: str, words: str
) -> None:
    def script(asked: Asked) -> Reply:
        return Reply(text, finish="length") if asked.kind == "structured" else scripted.right(asked)

    place = serve(script=script)
    done = check(place.url, *NO_NEEDLES)
    probe = probe_of(done.told, "structured")
    assert (probe["status"], done.code) == (status, int(status == "failed"))
    assert words in probe["detail"]
    assert ("structured: undecided" in done.told["verdict"]) == (status == "undecided")
    # It was asked again with more tokens before that was said.
    limits = [request.body["max_tokens"] for request in place.asked if request.kind == "structured"]
    assert limits == [128, probes.REASONING]
    assert check(place.url, *NO_NEEDLES, "--need", "structured").code == 1


@pytest.mark.slow
def test_a_call_of_a_stand_in_that_was_cut_is_undecided(serve: Serve, check: Check) -> None:
    def script(asked: Asked) -> Reply:
        cut = Reply("", [("get_weather", '{"city": "Lis')], "length")
        return cut if asked.kind == "tools" else scripted.right(asked)

    done = check(serve(script=script).url, *NO_NEEDLES)
    assert (probe_of(done.told, "tools")["status"], done.code) == ("undecided", 0)


VERSIONS = [
    ("0.6.6.post2.dev0+dca1.cu124", "guided_json", "--guided-decoding-backend"),
    ("0.9.2+dca3.cu124.lean", "guided_json", "--guided-decoding-backend"),
    ("0.10.0", "guided_json", "--guided-decoding-backend"),
    ("0.10.1.1+dca3.cu124", "guided_json", "V0 engine, which ignores schemas and named tools"),
    ("0.10.2+dca5.cu124", "guided_json", "V0 engine, which ignores schemas and named tools"),
    ("0.11.0", "structured_outputs", "--structured-outputs-config.backend"),
    ("0.32.0", "structured_outputs", "--structured-outputs-config.backend"),
    ("0.33.1.dev7+g1234567", "structured_outputs", "--structured-outputs-config.backend"),
]


@pytest.mark.parametrize(("version", "field", "words"), VERSIONS)
def test_fields_and_flags_follow_the_servers_version(version: str, field: str, words: str) -> None:
    told = identity.known("vllm", version, lambda _: {})
    assert identity.structured_fields(told) == ("response_format", field)
    assert words in identity.structured_remedy(told)
    other = Told(name="llamacpp", version="b9000")
    assert identity.structured_fields(other) == ("response_format",)
    assert "--" not in identity.structured_remedy(other) + identity.tools_remedy(other, accepted=False)


def test_each_recipe_says_whether_it_enforces_schemas() -> None:
    kept = {one.recipe: one.structured_output for one in engines.load_all()}
    ignored = {"vllm-0.10.1.1", "vllm-0.10.2"}
    assert {recipe for recipe, keeps in kept.items() if not keeps} == ignored


@pytest.mark.slow
@pytest.mark.parametrize(("version", "field"), [("0.10.0", "guided_json"), ("0.32.0", "structured_outputs")])
def test_a_stand_in_is_asked_for_a_schema_in_the_field_of_its_version(
    serve: Serve, check: Check, version: str, field: str
) -> None:
    place = serve(refused=("response_format",), **vllm(version))
    assert probe_of(check(place.url, *NO_NEEDLES).told, "structured")["detail"].endswith(f"with {field}")
    sent = [set(request.body) for request in place.asked if request.kind == "structured"]
    assert [{"guided_json", "structured_outputs"} & names for names in sent] == [set(), {field}]


@pytest.mark.slow
def test_a_stand_in_that_has_its_tool_flags_is_not_told_to_set_them(serve: Serve, check: Check) -> None:
    def script(asked: Asked) -> Reply:
        return Reply("It is sunny.") if asked.kind == "tools" else scripted.right(asked)

    document = check(serve(script=script, **vllm("0.32.0")).url, *NO_NEEDLES).told
    remedy = probe_of(document, "tools")["remedy"]
    assert "--enable-auto-tool-choice" not in remedy
    assert "check that the value of --tool-call-parser" in remedy
    assert "--tool-call-parser" in {flag["name"] for flag in document["flags"]}
    document = check(serve(refused=("tools",), **vllm("0.10.2")).url, *NO_NEEDLES).told
    assert "--enable-auto-tool-choice --tool-call-parser hermes" in probe_of(document, "tools")["remedy"]
    assert "--tool-call-parser" not in {flag["name"] for flag in document["flags"]}


# --- models that reason ----------------------------------------------------------------------------------------------

THOUGHT = "hm " * 300
FORMS: dict[str, Callable[[str], tuple[str, str]]] = {
    "reasoning_content": lambda answer: (answer, THOUGHT),
    "<think>": lambda answer: (f"<think>\n{THOUGHT}</think>\n\n{answer}", ""),
    "the template wrote <think>": lambda answer: (f"{THOUGHT}\n</think>\n\n{answer}", ""),
    "[THINK]": lambda answer: (f"[THINK]{THOUGHT}[/THINK]{answer}", ""),
}


def reasoning(form: str, thinks: Callable[[Asked], bool] = lambda _: True) -> scripted.Script:
    """A model that reasons before each answer, up to the limit of the request."""

    def script(asked: Asked) -> Reply:
        reply = scripted.right(asked)
        if not asked.path.endswith("/chat/completions") or not thinks(asked):
            return reply
        text, thought = FORMS[form](reply.text)
        most = int(asked.body["max_tokens"])
        if count(thought + text) <= most:
            return Reply(text, reply.calls, reply.finish, thought=thought)
        return Reply("" if thought else text[: 2 * most], finish="length", tokens=most, thought=thought[: 2 * most])

    return script


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_stand_in_that_reasons_has_tokens_enough_for_its_answers(serve: Serve, check: Check, form: str) -> None:
    place = serve(script=reasoning(form))
    done = check(place.url, *ONE)
    assert done.code == 0, done.err
    assert {probe["status"] for probe in done.told["probes"]} == {"passed"}
    assert (done.told["needles"][0]["outcome"], done.told["reasons"], done.told["reached"]) == ("found", True, 4096)
    # A long prompt is sent once: that the model reasons is known by then.
    assert [request.body["max_tokens"] for request in place.needles()] == [1024]


@pytest.mark.slow
def test_a_stand_in_is_asked_not_to_reason(serve: Serve, check: Check) -> None:
    def thinks(asked: Asked) -> bool:
        return bool(asked.body.get("chat_template_kwargs", {}).get("enable_thinking", True))

    place = serve(script=reasoning("<think>", thinks))
    done = check(place.url, *ONE, "--no-thinking")
    assert (done.code, done.told["reasons"], done.told["no_thinking"]) == (0, False, True)
    assert [request.body["max_tokens"] for request in place.needles()] == [64]
    place = serve(script=reasoning("<think>"))
    assert any(one.startswith("--no-thinking") for one in check(place.url, *ONE, "--no-thinking").told["not_proven"])
    place = serve(refused=("chat_template_kwargs",))
    done = check(place.url, *NO_NEEDLES, "--no-thinking")
    assert "the server rejects --no-thinking" in probe_of(done.told, "chat")["detail"]
    assert "omit --no-thinking" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(("length", "kernels"), [("4096", False), ("65536", True)])
def test_a_fact_that_a_stand_in_lost_in_a_short_prompt_is_no_fault_of_kernels(
    serve: Serve, check: Check, length: str, kernels: bool
) -> None:
    place = serve(
        script=lambda asked: Reply("0") if asked.kind == "needle" else scripted.right(asked), max_model_len=None
    )
    (needle,) = check(place.url, "--lengths", length, "--depths", "0", "--json").told["needles"]
    assert (needle["outcome"], "dca smoke" in needle["remedy"]) == ("lost", kernels)


# As a server of vLLM 0.32.0 with the plugin sends it.
WITH_PLUGIN = """# HELP vllm_dca_info Dual chunk attention of the served model; no threshold if it is dense.
# TYPE vllm_dca_info gauge
vllm_dca_info{chunk_size="8192",length_factor="token",local_size="2048",original_max_position_embeddings="0",\
sparse_attention_threshold=""} 1.0
"""


@pytest.mark.slow
@pytest.mark.parametrize(("length", "advice"), [("4096", "up to 6,144 tokens"), ("8192", "dca plugin check vllm==")])
def test_a_stand_in_with_the_plugin_is_known_and_told_how_to_prove_it(
    serve: Serve, check: Check, length: str, advice: str
) -> None:
    for version, known in (("0.33.0", True), ("0.32.0+cpu", True), ("0.31.0", False), ("0.2.0", False)):
        about = vllm(version)
        about["pages"]["/metrics"] += WITH_PLUGIN
        place = serve(script=lambda asked: Reply("0") if asked.kind == "needle" else scripted.right(asked), **about)
        told = check(place.url, "--lengths", length, "--depths", "0", "--json").told
        recipe = f"vllm-{version[:4]}" if known else ""
        assert (told["engine"]["recipe"], told["engine"]["ordinary"]) == (recipe, 6144 if known else 0)
        seen = {flag["name"]: flag["value"] for flag in told["flags"]}
        assert (seen.get("chunk_size"), seen.get("length_factor")) == (("8192", "token") if known else (None, None))
        assert "sparse_attention_threshold" not in seen
        (needle,) = told["needles"]
        assert (advice in needle["remedy"]) is known, needle
        assert "dca smoke" not in needle["remedy"]


def test_a_stand_in_of_the_same_vllm_without_the_plugin_is_of_no_recipe(serve: Serve, check: Check) -> None:
    told = check(serve(**vllm("0.33.0")).url, *NO_NEEDLES).told
    assert (told["engine"]["version"], told["engine"]["recipe"], told["engine"]["ordinary"]) == ("0.33.0", "", 0)


@pytest.mark.slow
def test_a_stand_in_that_reasons_to_its_last_token_is_told_from_one_that_forgot(serve: Serve, check: Check) -> None:
    def script(asked: Asked) -> Reply:
        most = int(asked.body["max_tokens"])
        long = Reply("", finish="length", tokens=most, thought="hm")
        return long if asked.kind in ("needle", "sense") else scripted.right(asked)

    document = check(serve(script=script).url, *ONE).told
    assert probe_of(document, "sense")["status"] == "undecided"
    (needle,) = document["needles"]
    assert (needle["outcome"], needle["detail"]) == ("lost", "the whole answer is reasoning")
    assert "--no-thinking" in needle["remedy"]
    assert "dca smoke" not in needle["remedy"]


# --- loading, busy, elsewhere ----------------------------------------------------------------------------------------


def later(answer: Trick, times: int, kinds: tuple[str, ...]) -> dict[str, Trick]:
    """Another answer for the first requests, and then the right one."""
    left = [times]

    def trick(handler: Handler, asked: Asked) -> None:
        left[0] -= 1
        if left[0] >= 0:
            return answer(handler, asked)
        handler.place.tricks = {}
        return handler.answer(handler.place.asked.pop())

    return dict.fromkeys(kinds, trick)


def loading(handler: Handler, _asked: Asked) -> None:
    """As llama.cpp's server says it; others send less."""
    handler.send_json({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, 503)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("models",), ("chat",), ("needle",)])
def test_a_stand_in_that_is_loading_is_waited_for(
    serve: Serve, check: Check, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...]
) -> None:
    monkeypatch.setattr(probes, "POLL_SECONDS", 0.1)
    skipped = ("--skip", ",".join(probes.PROBES)) if kinds == ("needle",) else ()
    done = check(serve(tricks=later(loading, 3, kinds)).url, *ONE, *skipped)
    assert done.code == 0, done.err
    assert all(probe["seconds"] < 0.3 for probe in done.told["probes"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["models", "chat"])
def test_a_stand_in_that_never_loads_is_told_as_that(serve: Serve, check: Check, kind: str) -> None:
    started = time.monotonic()
    done = check(serve(tricks={kind: loading}).url, *ONE, "--wait", "0.3")
    assert time.monotonic() - started < 5
    assert (done.code, "DCA-160" in done.err) == (1, True)
    assert "still loading: HTTP 503: Loading model" in done.err
    assert "--wait" in done.err


def busy(after: str | None) -> Trick:
    more = {} if after is None else {"Retry-After": after}
    return lambda handler, _: handler.send_body(b'{"error": {"message": "slow down"}}', 429, more=more)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "how"), some(("chat", "stream", "models", "needle"), (("0.2", 1), ("0.2", 2), (None, 1)))
)
def test_one_429_with_retry_after_of_a_stand_in_is_waited_for(
    serve: Serve, check: Check, kind: str, how: tuple[str | None, int]
) -> None:
    after, times = how
    passes = how == ("0.2", 1)
    done = check(serve(tricks=later(busy(after), times, (kind,))).url, *ONE)
    assert (done.code == 0) == passes, done.err


@pytest.mark.slow
def test_a_retry_after_past_the_deadline_is_told(serve: Serve, check: Check) -> None:
    started = time.monotonic()
    done = check(serve(tricks={"chat": busy("3600")}).url, *NO_NEEDLES)
    assert time.monotonic() - started < 5
    assert "Retry-After: 3,600 s" in probe_of(done.told, "chat")["detail"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "status"), some(("models", "chat", "needle"), (301, 302, 307, 308)))
def test_a_redirection_to_another_server_is_not_followed(serve: Serve, check: Check, kind: str, status: int) -> None:
    other = serve()

    def away(handler: Handler, asked: Asked) -> None:
        handler.send_body(b"", status, more={"Location": f"{other.url}{asked.path}"})

    done = check(serve(tricks={kind: away}).url, *ONE)
    assert (other.asked, done.code) == ([], 1)
    assert f"redirects to another one, which was not asked: HTTP {status} to {other.url}" in done.err


@pytest.mark.slow
def test_a_redirection_within_a_stand_in_is_followed(serve: Serve, check: Check) -> None:
    def within(handler: Handler, asked: Asked) -> None:
        handler.place.tricks = {}
        handler.send_body(b"", 307, more={"Location": asked.path})

    assert check(serve(tricks={"chat": within}).url, *NO_NEEDLES).code == 0


# --- TLS, packed bodies, errors with status 200 ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that signed itself, with its key."""
    file = tmp_path_factory.mktemp("tls") / "own.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=server"]
    argv += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(file), "-out", str(file.with_suffix(".crt"))]
    subprocess.run(argv, check=True, capture_output=True)
    file.write_text(file.read_text() + file.with_suffix(".crt").read_text())
    return file


@pytest.mark.slow
def test_a_certificate_that_is_not_trusted_is_told_with_ssl_cert_file(
    check: Check, certificate: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "GIT_SSL_CAINFO", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with serving(Scripted(), tls) as place:
        done = check(place.url, *NO_NEEDLES)
        assert (done.code, "DCA-160" in done.err, "export SSL_CERT_FILE=FILE" in done.err) == (1, True, True)
        assert "self-signed certificate" in done.err.replace("self signed", "self-signed")
        done = check(place.url.replace("https", "http"), *NO_NEEDLES)
        assert (done.code, "DCA-160" in done.err) == (1, True)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
        # Whatever the machine has for other programs.
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "others"))
        assert check(place.url, *NO_NEEDLES).code == 0
        done = check(place.url.replace("127.0.0.1", "localhost"), *NO_NEEDLES)
        assert "with a name that the server's certificate was made for" in done.err
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
        assert "SSL_CERT_FILE" in check(place.url, *NO_NEEDLES).err
    with serving(Scripted()) as plain:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
        assert "write its URL with http://" in check(plain.url.replace("http", "https"), *NO_NEEDLES).err


@pytest.mark.slow
def test_a_stand_in_that_packs_its_answers_is_read(serve: Serve, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    place = serve(packed=True)
    done = check(place.url, *ONE)
    assert done.code == 0, done.err
    monkeypatch.setattr(transport, "MOST_BYTES", 1 << 20)
    bomb = gzip.compress(bytes(200 << 20))
    assert len(bomb) < 1 << 20
    place = serve(tricks={"chat": lambda handler, _: handler.send_body(bomb, more={"Content-Encoding": "gzip"})})
    assert "more than 1 MiB" in probe_of(check(place.url, *NO_NEEDLES).told, "chat")["detail"]
    place = serve(tricks={"chat": lambda handler, _: handler.send_body(b"?", more={"Content-Encoding": "br"})})
    assert "packed with br" in probe_of(check(place.url, *NO_NEEDLES).told, "chat")["detail"]


def body(value: Any) -> Trick:
    return lambda handler, _: handler.send_json(value)


def event(value: Any) -> Trick:
    def trick(handler: Handler, _asked: Asked) -> None:
        handler.start_stream()
        handler.event(value)
        handler.end_stream()

    return trick


BOOM = "boom: the grammar is too deep"
ERRORS: dict[str, Trick] = {
    "a body": body({"error": {"message": BOOM, "type": "BadRequestError", "code": 400}}),
    "an old body": body({"object": "error", "message": BOOM, "type": "BadRequestError", "code": 400}),
    "a detail": body({"detail": BOOM}),
    "an event": event({"error": {"message": BOOM, "code": 400}}),
    "an old event": event({"object": "error", "message": BOOM, "code": 400}),
    "an event without a key": event({"message": BOOM}),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ERRORS)
def test_an_error_with_status_200_in_a_stream_is_shown(serve: Serve, check: Check, how: str) -> None:
    document = check(serve(tricks={"stream": ERRORS[how], "needle": ERRORS[how]}).url, *ONE).told
    for part in (probe_of(document, "stream"), document["needles"][0]):
        assert (part["code"], BOOM in part["detail"]) == ("DCA-161", True), part
    assert document["needles"][0]["outcome"] == "broken"


# --- what it was -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_names_of_one_model_of_a_stand_in_are_one(serve: Serve, check: Check) -> None:
    place = serve(models=("one", "two"), **vllm("0.32.0"))
    done = check(place.url, *NO_NEEDLES)
    assert (done.code, done.told["model"]) == (0, "one")
    assert {"name": "--served-model-name", "value": "one two", "seen": "/v1/models"} in done.told["flags"]
    assert check(place.url, *NO_NEEDLES, "--model", "two").told["model"] == "two"


@pytest.mark.slow
def test_the_document_names_date_tool_engine_version_and_the_flags_that_show(serve: Serve, check: Check) -> None:
    done = check(serve(**vllm("0.32.0")).url, *NO_NEEDLES)
    told = ServeCheck.model_validate(done.told)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", told.date)
    assert (told.tool, told.engine) == (__version__, Told(name="vllm", version="0.32.0"))
    flags = {flag.name: flag.value for flag in told.flags}
    assert (flags["--max-model-len"], flags["--block-size"], flags["num_gpu_blocks"]) == ("16384", "16", "512")
    assert "--num-gpu-blocks-override" not in flags
    text = check(serve(**vllm("0.10.2+dca5")).url, "--skip", "needles").out
    assert "engine vllm 0.10.2+dca5" in text
    assert "--gpu-memory-utilization 0.92" in text
    assert check(serve().url, *NO_NEEDLES).told["engine"]["name"] == ""
