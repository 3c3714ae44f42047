"""What an engine reports of its load in /metrics, before and after a check."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from dca.serve.check.client import Server
from dca.serve.check.failed import RequestFailed
from dca.serve.check.values import Load

PATH = "/metrics"
# A value of vLLM's, with its labels, which may hold any character in quotes, and without a time.
_LINE = re.compile(r"^(vllm:\w+)(?:\{.{0,4000}\})?[ \t]+([0-9.eE+-]+)(?:[ \t]+[0-9]+)?\r?$", re.MULTILINE)
# By the names of the V1 engine, and of those before it, where they differ.
NAMES = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "swapped": ("vllm:num_requests_swapped",),
    "cache": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "preemptions": ("vllm:num_preemptions_total", "vllm:num_preemptions"),
    "first_tokens": ("vllm:time_to_first_token_seconds_count",),
    "first_token_seconds": ("vllm:time_to_first_token_seconds_sum",),
}


def text_of(server: Server, deadline: float) -> str:
    """The server's metrics; empty if it offers none.

    Args:
        server: the server.
        deadline: seconds for the request.
    """
    try:
        return server.text_of(PATH, deadline)
    except RequestFailed:
        return ""


def read(text: str) -> Load | None:
    """The load that metrics report; None if they are not vLLM's.

    Engines that serve one model together have a value each: they are added, and of the cache's use the highest counts.

    Args:
        text: in Prometheus' text format.
    """
    found: dict[str, list[float]] = {}
    for name, value in _values(text):
        found.setdefault(name, []).append(value)
    values: dict[str, float] = {}
    for field, names in NAMES.items():
        series = next((found[name] for name in names if name in found), None)
        if series is not None:
            # The cache's use is a share.
            values[field] = round(100 * max(series), 3) if field == "cache" else round(sum(series), 6)
    return Load.model_validate(values) if values else None


def _values(text: str) -> Iterator[tuple[str, float]]:
    for match in _LINE.finditer(text):
        try:
            value = float(match[2])
        except ValueError:
            continue
        if math.isfinite(value) and value >= 0:
            yield match[1], value
