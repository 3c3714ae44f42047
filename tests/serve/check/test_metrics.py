"""The load that an engine reports in /metrics: names of vLLM's V0 and V1 engines, and texts that are neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.serve.check import metrics
from dca.serve.check.values import Load, ServeCheck
from tests.serve.check.conftest import Check
from tests.support.answering import answering

V1 = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a } model, \\"2.0\\""} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 7.0
vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.9
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
vllm:num_preemptions_total{engine="0",model_name="m"} 4.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7e+09
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 9.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 9.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 4.5
"""
V0 = """\
vllm:num_requests_running{model_name="m"} 1.0
vllm:num_requests_swapped{model_name="m"} 2.0
vllm:num_requests_waiting{model_name="m"} 0.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.123456
vllm:cpu_cache_usage_perc{model_name="m"} 0.7
"""


def test_the_v1_engines_names_are_read_and_engines_are_added() -> None:
    seen = metrics.read(V1)
    assert seen == Load(
        running=3, waiting=3, cache=50, preemptions=4, first_tokens=9, first_token_seconds=4.5, swapped=None
    )


def test_the_v0_engines_names_are_read() -> None:
    assert metrics.read(V0) == Load(running=1, waiting=0, swapped=2, cache=12.346)


@pytest.mark.parametrize(
    "text",
    ["", "<html>not found</html>", "process_open_fds 9.0\n", "vllm:num_requests_running NaN\n", "vllm:x 1\n" * 9],
)
def test_what_is_not_vllms_has_no_load(text: str) -> None:
    assert metrics.read(text) is None


def test_numbers_that_are_none_are_left_out() -> None:
    text = "vllm:num_requests_running 1.2.3\nvllm:num_requests_waiting -1\nvllm:kv_cache_usage_perc +Inf\n"
    assert metrics.read(text) is None
    assert metrics.read(text + "vllm:num_preemptions_total 3 1700000000000\r\n") == Load(preemptions=3)


def test_the_mean_time_to_first_token_is_that_of_the_check() -> None:
    before = Load(running=0, cache=0.0, first_tokens=10, first_token_seconds=100.0)
    after = Load(running=1, cache=12.5, first_tokens=14, first_token_seconds=101.0)
    result = ServeCheck(date="", tool="", url="", model="", seed=0, probes=(), before=before, after=after)
    assert result.load == (
        ("running", "0", "1"),
        ("KV cache used", "0.0 %", "12.5 %"),
        ("first tokens", "10", "14"),
        ("mean time to first token during the check", "", "0.250 s"),
    )
    assert result.model_copy(update={"after": before}).load[-1][0] == "first tokens"
    assert result.model_copy(update={"before": None}).load == ()


def test_every_report_has_the_load_or_says_that_it_is_not_offered(check: Check, tmp_path: Path) -> None:
    skip = ("--skip", "needles,stream,tools,structured,sampling", "--report", str(tmp_path / "page.html"))
    with answering(metrics=V1) as server:
        done = check(server.url, *skip)
    assert "load        running 3 -> 3, waiting 3 -> 3, KV cache used 50.0 % -> 50.0 %, preemptions 4 -> 4" in done.out
    assert '<td class="number" data-name="after">50.0 %</td>' in (tmp_path / "page.html").read_text()
    with answering() as server:
        done = check(server.url, *skip)
    assert "load        /metrics: not offered" in done.out
    assert "does not offer vLLM" in (tmp_path / "page.html").read_text()
