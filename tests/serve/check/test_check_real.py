"""`dca serve check` against transformers' own server, with a tiny random model: the protocol, and nothing of sense."""

from __future__ import annotations

import json

import pytest

from dca.serve.check import probes
from tests.serve.check.conftest import Check, Done, Real


@pytest.fixture(scope="module")
def seen() -> dict[str, Done]:
    return {}


@pytest.fixture
def whole(real: Real, check: Check, seen: dict[str, Done], monkeypatch: pytest.MonkeyPatch) -> Done:
    """Everything, once; random weights use all the tokens that they may."""
    monkeypatch.setattr(probes, "REASONING", 256)
    if "whole" not in seen:
        seen["whole"] = check(real.url, "--lengths", "600,1200", "--depths", "0,100", "--seed", "7", "--json")
    return seen["whole"]


@pytest.mark.long
def test_a_server_that_nobody_here_wrote_is_asked_for_everything(whole: Done, real: Real) -> None:
    probes = {probe["name"]: probe for probe in whole.told["probes"]}
    assert [name for name, one in probes.items() if one["status"] == "passed"] == [
        "models",
        "chat",
        "completion",
        "stream",
    ]
    assert (whole.told["model"], whole.told["max_model_len"]) == (real.model, None)
    # It takes only OpenAI's own fields of sampling, and says so.
    assert probes["sampling"]["status"] == "refused"
    assert "repetition_penalty" in probes["sampling"]["detail"]
    # Random weights neither calculate nor keep to a schema: that is the model's fault, and is told as such.
    for name in ("sense", "tools", "structured"):
        assert (probes[name]["status"], probes[name]["code"]) == ("failed", "DCA-163")
    assert whole.code == 1
    assert whole.err == "" or whole.err.startswith("DCA-163")


def test_its_own_count_of_tokens_keeps_every_prompt_within_its_length(whole: Done) -> None:
    needles = whole.told["needles"]
    assert [(needle["length"], needle["depth"]) for needle in needles] == [
        (600, 0.0),
        (600, 100.0),
        (1200, 0.0),
        (1200, 100.0),
    ]
    for one in needles:
        assert (one["outcome"], one["counted"], one["code"]) == ("lost", "usage", "DCA-163")
        # What is kept free for texts that differ, and a sentence of 113 letters: here a letter is a token.
        assert 0.85 * (one["length"] - 64) - 130 <= one["tokens"] <= one["length"] - 64
        assert 0 < one["first_token"] < one["seconds"] < one["deadline"]
        assert one["prefill_speed"] == pytest.approx(one["tokens"] / one["first_token"], rel=0.01)
        assert one["decode_speed"] > 0
    assert whole.told["reached"] == 0
    assert 0.95 < whole.told["chars_per_token"] < 1.05


def test_the_document_keeps_to_the_schema_that_is_told(whole: Done, check: Check) -> None:
    # It takes seconds to import, which every run that collects this file would pay.
    import jsonschema

    schema = check("--schema").told
    jsonschema.validate(whole.told, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**whole.told, "probes": [{"name": "chat"}]}, schema)


def test_what_it_can_do_passes(real: Real, check: Check) -> None:
    done = check(real.url, "--skip", "sense,tools,structured,needles", "--model", real.model)
    assert done.code == 0, done.err
    assert "every short request was answered." in done.out
    assert "not proven  sampling: rejected by the server" in done.out


def test_a_feature_that_is_needed_and_refused_fails(real: Real, check: Check) -> None:
    done = check(real.url, "--skip", "sense,tools,structured,needles", "--need", "sampling", "--json")
    assert done.code == 1
    assert json.loads(done.out)["probes"][-1]["code"] == "DCA-161"
    assert "DCA-161" in done.err


def test_a_model_that_it_does_not_have_is_named_with_those_that_it_has(real: Real, check: Check) -> None:
    done = check(real.url, "--model", "tiny/randon")
    assert done.code == 2
    assert "DCA-201: the server has no model tiny/randon." in done.err
    assert real.model in done.err
