"""What the guards of a wheel refuse, `dca serve plan` says before a server starts: both are asked for each code."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dca import config as configs
from dca.catalogue import recipes
from dca.config.config_rules import Finding
from dca.foundation.errors import DcaError
from dca.serve import engines, server_rules
from tests.support.guards import guards
from tests.support.serving import DCA, folder, planned

LAYERS, HEADS = 28, 28
RECIPE = "vllm-0.10.2"


def table(vertical: int = 1000, slash: int = 6096, layers: int = LAYERS, heads: int = HEADS) -> list[dict[str, Any]]:
    return [{str(head): ["vertical_and_slash", vertical, slash, 1.0] for head in range(heads)} for _ in range(layers)]


def narrow(heads: range) -> list[dict[str, Any]]:
    """A table in whose last layer these heads have four vertical lines."""
    rows = table()
    rows[-1] |= {str(head): ["vertical_and_slash", 4, 6096, 1.0] for head in heads}
    return rows


@dataclass(frozen=True)
class Case:
    """A model's folder, and the flags and variables to serve it with.

    Args:
        finding: the code in the plan: an error's, or a warning's for what the guards only report.
        same: whether the plan uses the guards' own words.
    """

    finding: str
    dca: Any = field(default_factory=lambda: dict(DCA))
    table: Any = field(default_factory=table)
    config: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    same: bool = False
    severity: str = "error"


CASES: list[tuple[str, Case]] = [
    ("DCA-811", Case("DCA-155", env={"VLLM_ATTENTION_BACKEND": "FLASH_ATTN"})),
    ("DCA-811", Case("DCA-155", env={"VLLM_USE_V1": "1"})),
    ("DCA-811", Case("DCA-155", dca=None, table=None, env={"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN"})),
    ("DCA-812", Case("DCA-154", asked={"graphs": True}, severity="warning")),
    ("DCA-813", Case("DCA-154", asked={"kv_cache_dtype": "fp8"})),
    ("DCA-814", Case("DCA-154", asked={"prefix_caching": True, "length": 262_145})),
    ("DCA-815", Case("DCA-127", asked={"length": 1_048_576})),
    ("DCA-816", Case("DCA-124", {**DCA, "sparse_attention_enabled": True}, None)),
    ("DCA-816", Case("DCA-124", table=None, severity="warning")),
    ("DCA-817", Case("DCA-125", table=table(layers=27))),
    ("DCA-817", Case("DCA-125", table=table(heads=27))),
    ("DCA-817", Case("DCA-125", {**DCA, "sparse_attention_config": table(heads=27)}, None)),
    ("DCA-817", Case("DCA-125", table={"0": {}})),
    ("DCA-818", Case("DCA-125", table=[*table()[:-1], {**table()[0], "3": ["stream_llm", 100, 800, 0.5]}])),
    ("DCA-818", Case("DCA-818", table=table(slash=99), same=True)),
    ("DCA-818", Case("DCA-818", table=table(vertical=4), asked={"tp": 1}, same=True)),
    ("DCA-818", Case("DCA-818", table=narrow(range(21, 28)), asked={"tp": 4}, same=True)),
    ("DCA-819", Case("DCA-819", {**DCA, "chunk_size": 112, "local_size": 32}, same=True)),
    ("DCA-819", Case("DCA-133", {"local_size": 8192, "original_max_position_embeddings": 262144})),
    ("DCA-819", Case("DCA-133", {"chunk_size": 262144, "original_max_position_embeddings": 262144})),
    ("DCA-819", Case("DCA-133", {**DCA, "local_size": 262144})),
    ("DCA-819", Case("DCA-133", {**DCA, "original_max_position_embeddings": -1})),
    ("DCA-819", Case("DCA-133", ["chunk_size"])),
    ("DCA-819", Case("DCA-129", {**DCA, "local_size": 8200})),
    ("DCA-819", Case("DCA-154", asked={"block_size": 8})),
    ("DCA-819", Case("DCA-154", {**DCA, "local_size": 8208}, asked={"block_size": 32})),
    ("DCA-822", Case("DCA-156", table=table(150_000, 6096), asked={"batched": 250_000})),
    (
        "DCA-823",
        Case("DCA-153", table=table(heads=14), config={"num_attention_heads": 14, "num_key_value_heads": 2}),
    ),
    ("DCA-824", Case("DCA-155", env={"VLLM_PLUGINS": "lora"}, severity="warning")),
]

# Codes of guards for which no setting of the plan is refused, with the reason.
ONLY_THE_ENGINE = {
    "DCA-820": "the plan's flags always have --enable-chunked-prefill with dual chunk attention, and none omits it",
    "DCA-821": "the plan has no option for several steps or a draft model",
    "DCA-825": "a request asks for structured output, not the server; the plan's note says that the engine ignores it",
}
IDS = [f"{code}-{number}" for number, (code, _) in enumerate(CASES)]


def made_folder(case: Case, place: Path) -> Path:
    more = {"max_position_embeddings": 1_010_000, "rope_theta": 1e7, **case.config}
    model = Path(folder(place, dual_chunk_attention_config=case.dca, **more))
    if case.table is not None:
        (model / "sparse_attention_config.json").write_text(json.dumps(case.table))
    return model


def refused(case: Case, tp: int, length: int, batched: int) -> tuple[str, str]:
    """The code and the words with which the guards refuse a case, or report it; empty where they do neither.

    It is the order of `check_model` and `check_engine`, with the values that vLLM has there.
    """
    notices: list[str] = []
    config = case.dca
    layers, heads = case.config.get("num_hidden_layers", LAYERS), case.config.get("num_attention_heads", HEADS)
    if isinstance(config, dict) and case.table:
        config = {"sparse_attention_enabled": True, **config, "sparse_attention_config": case.table}
    text = SimpleNamespace(num_attention_heads=heads, num_hidden_layers=layers, max_position_embeddings=1_010_000)
    if config is not None:
        text.dual_chunk_attention_config = config
    model_config = SimpleNamespace(hf_config=text, hf_text_config=text, max_model_len=min(length, 1_010_000))
    model_config.model, model_config.dtype = "/m", "torch.bfloat16"
    model_config.get_head_size = lambda: case.config.get("hidden_size", 3584) // heads
    caching = case.asked.get("prefix_caching")
    asked = SimpleNamespace(enforce_eager="graphs" not in case.asked, enable_prefix_caching=caching)
    whole = SimpleNamespace(
        model_config=model_config,
        device_config=SimpleNamespace(device_type="cuda"),
        cache_config=SimpleNamespace(
            cache_dtype=case.asked.get("kv_cache_dtype", "auto"), block_size=case.asked.get("block_size", 16)
        ),
        scheduler_config=SimpleNamespace(chunked_prefill_enabled=True, max_num_batched_tokens=batched),
        parallel_config=SimpleNamespace(tensor_parallel_size=tp),
        kv_transfer_config=None,
    )
    logger = guards._logger
    with pytest.MonkeyPatch.context() as patch:
        for name in ("VLLM_ATTENTION_BACKEND", "VLLM_USE_V1", "VLLM_PLUGINS"):
            patch.delenv(name, raising=False)
        for name, value in case.env.items():
            patch.setenv(name, value)
        # What is only chosen on the user's behalf is no report of a problem.
        if "graphs" in case.asked:
            patch.setattr(logger, "info", lambda text, *words: notices.append(text % words))
        patch.setattr(logger, "warning", lambda text, *words: notices.append(text % words))
        try:
            guards.check_model(model_config, asked)
            guards.check_engine(whole)
            guards.capped_length(lambda _: 1_010_000, length, 1_010_000)
            if (notice := guards.plugins_notice(dict(case.env))) is not None:
                notices.append(notice)
        except guards.GuardError as error:
            return error.code, str(error)
        finally:
            for name in guards.choose_backend({}):
                patch.delenv(name, raising=False)
    said = notices[0] if notices else ""
    return said.rpartition("(")[2].removesuffix(")"), said


def plan_of(model: Path, case: Case) -> Any:
    # Without memory in the way, only what is asked for is refused.
    return planned(str(model), "8x500", recipe=RECIPE, env=dict(case.env), **{"tp": 1, **case.asked})


@pytest.mark.parametrize(("code", "case"), CASES, ids=IDS)
def test_what_a_guard_refuses_the_plan_says_before(code: str, case: Case, tmp_path: Path) -> None:
    model = made_folder(case, tmp_path / "m")
    made = plan_of(model, case)
    settings = made.planned.settings
    found, words = refused(case, settings.tp, case.asked.get("length", settings.length), settings.batched)
    assert found == code
    findings = {one.code: one for one in made.findings if one.severity == case.severity}
    assert case.finding in findings
    if case.same:
        finding = findings[case.finding]
        assert words == f"{finding.what} {finding.remedy} ({code})"
        checked = configs.check(model, ranks=settings.tp)
        assert finding.what in [one.what for one in checked.errors]


def test_every_guard_has_a_case_or_a_reason() -> None:
    assert {code for code, _ in CASES} | set(ONLY_THE_ENGINE) == set(guards.CODES)
    assert not {code for code, _ in CASES} & set(ONLY_THE_ENGINE)


def test_the_reasons_hold(tmp_path: Path) -> None:
    case = Case("")
    made = plan_of(made_folder(case, tmp_path / "m"), case)
    assert "--enable-chunked-prefill" in {flag.name for flag in made.flags}
    assert [note for note in made.notes if "response_format" in note]
    from dca.cli.serve import plan as command

    options = {name for parameter in command.params for name in parameter.opts}
    assert not options & {"--num-scheduler-steps", "--speculative-model", "--speculative-config"}
    assert not options & {"--kv-transfer-config", "--no-enable-chunked-prefill"}


def test_a_model_that_no_guard_refuses_has_no_finding(tmp_path: Path) -> None:
    case = Case("")
    made = plan_of(made_folder(case, tmp_path / "m"), case)
    assert refused(case, 1, 1_010_000, made.planned.settings.batched) == ("", "")
    assert made.errors == ()


def test_cached_prompts_in_host_memory_are_an_option_of_v1_alone(tmp_path: Path) -> None:
    case = Case("", asked={"offload_gib": 10.0})
    assert [one.code for one in plan_of(made_folder(case, tmp_path / "m"), case).errors] == ["DCA-154"]


def test_a_command_ends_as_a_failed_check_and_names_the_guards_code() -> None:
    finding = Finding(code="DCA-818", severity="error", what="What.", remedy="Do.")
    with pytest.raises(DcaError) as error:
        server_rules.refuse((finding,), "It is not to be served so.")
    assert (error.value.code, error.value.exit_code, error.value.why) == ("DCA-138", 1, "DCA-818: What.")


@pytest.mark.parametrize("recipe", [loaded.recipe.name for loaded in recipes.compiling(recipes.load_all())])
def test_every_recipe_with_guards_has_the_engine_that_they_choose(recipe: str) -> None:
    assert engines.of(recipe).environment.get(guards.BACKEND_VAR) == guards.BACKEND


def drawn(draw: random.Random) -> Case:
    """A small model with settings of dual chunk attention at and past the borders of what can be served."""
    rows = table(draw.choice((4, 5, 30, 1000)), draw.choice((99, 100, 6096)), 2, 4)
    for _ in range(draw.randrange(4)):
        draw.choice(rows)[str(draw.randrange(4))] = draw.choice(
            (
                ["vertical_and_slash", draw.choice((0, 1, 4, 5)), draw.choice((0, 99, 100)), 1.0],
                ["vertical_and_slash", 1000, 6096],
                ["dense", 1000, 6096, 1.0],
                None,
            )
        )
    dual: dict[str, Any] = {
        "chunk_size": draw.choice((64, 112, 131, 132, 4096, 262144, 0, "8192", None, True)),
        "local_size": draw.choice((0, 16, 32, 1024, 8192, -1, 16.0)),
        "original_max_position_embeddings": draw.choice((0, 4096, 262144, -1, "1")),
    }
    for name in draw.sample(list(dual), draw.randrange(2)):
        del dual[name]
    if draw.random() < 0.3:
        dual["sparse_attention_enabled"] = draw.random() < 0.5
    size = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 512}
    return Case("", dual, draw.choice((rows, rows, rows[:-1], None, [])), size, {"tp": draw.choice((1, 2, 4))})


@pytest.mark.proof
def test_no_drawn_model_passes_the_check_that_a_guard_refuses(tmp_path: Path, scale: Callable[[int], int]) -> None:
    refusals = 0
    for seed in range(scale(5_000)):
        draw = random.Random(seed)
        case, length = drawn(draw), draw.choice((64, 4096, 253_952, 1_010_000))
        place = tmp_path / str(seed)
        checked = configs.check(made_folder(case, place), ranks=case.asked["tp"], length=length)
        shutil.rmtree(place)
        code, _ = refused(case, case.asked["tp"], length, 8192)
        # A missing table is only reported, unless sparse attention is on.
        reported = code == "DCA-816" and not case.dca.get("sparse_attention_enabled")
        refusal = bool(code) and not reported
        refusals += refusal
        assert not refusal or checked.errors, (seed, code)
    assert refusals
