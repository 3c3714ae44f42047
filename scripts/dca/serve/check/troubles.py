"""What each way of failing means for whoever runs the server: a code, a sentence and a remedy."""

from __future__ import annotations

from typing import NamedTuple

from dca.serve.check.client import RequestFailed
from dca.serve.check.values import Outcome, Trouble

UNREACHABLE, PROTOCOL, PROMPT, MODEL = "DCA-160", "DCA-161", "DCA-162", "DCA-163"

LOG = "read the end of the server's log; `dca explain LOG` tells what it is."
PLAN = "`dca serve plan` tells the longest prompt that fits, and the flags that make more fit."

# Statuses that mostly come from a proxy before the server, and say nothing of its engine.
BY_STATUS = {
    413: "a million tokens are 5 MB: let the proxy take bodies of that size (nginx: client_max_body_size), or ask the "
    "engine itself.",
    429: "the server, or a gateway before it, limits how much may be asked: ask the engine itself, or when it is idle.",
    504: "a proxy did not wait for the answer: let it wait longer (nginx: proxy_read_timeout), or ask the engine "
    "itself.",
}

OUTCOMES: dict[Trouble, Outcome] = {
    "gone": "gone",
    "denied": "refused",
    "refused": "refused",
    "broken": "broken",
    "malformed": "broken",
    "cut": "cut",
    "hung": "hung",
    "ignored": "refused",
    "endless": "broken",
}


class Told(NamedTuple):
    """What is told of a failure."""

    code: str
    detail: str
    remedy: str


def tell(failed: RequestFailed, *, long: bool = False) -> Told:
    """A failed request in words.

    Args:
        failed: the request.
        long: whether its prompt was a long one, which fails for reasons of its own.
    """
    words = failed.words
    if failed.status in BY_STATUS:
        return Told(PROTOCOL, f"the prompt does not get through: {words}", BY_STATUS[failed.status])
    if failed.kind == "gone":
        why = "a long prompt that ran out of GPU memory ends the engine. " + PLAN if long else "is it still running?"
        return Told(UNREACHABLE, f"the server does not answer: {words}", f"{LOG} {why}")
    if failed.kind == "denied":
        return Told(
            UNREACHABLE,
            f"the server refuses the key: {words}",
            "name the variable that holds it with --api-key-env; the server has it as --api-key.",
        )
    if failed.kind == "refused":
        if long:
            return Told(
                PROMPT,
                f"the server refuses the prompt: {words}",
                f"start it with a greater --max-model-len, or check a shorter --length. {PLAN}",
            )
        return Told(PROTOCOL, f"the server refuses the request: {words}", LOG)
    if failed.kind == "ignored":
        return Told(
            PROMPT,
            'the server did not take the prompt: an empty answer with finish_reason "length"',
            "the prompt needs more of the KV cache than there is; its log says `exceeds the capacity of "
            f"block_manager`. {PLAN}",
        )
    if failed.kind == "hung":
        where = "before the first token" if failed.first_token is None else "after the first token"
        return Told(
            PROTOCOL,
            f"{words}, {where if long else 'no answer'}",
            f"{LOG} Where it is only slow, give it more {'--needle-timeout' if long else '--timeout'}.",
        )
    if failed.kind == "cut":
        return Told(
            PROTOCOL,
            f"the stream was cut: {words}",
            f"{LOG} A proxy between here and the server cuts streams as well: check without it.",
        )
    if failed.kind == "endless":
        return Told(PROTOCOL, f"the server does not keep to max_tokens: {words}", LOG)
    if failed.kind == "malformed":
        return Told(
            PROTOCOL,
            f"the answer is not of the protocol: {words}",
            "check that the URL is an OpenAI-compatible server's, and that no proxy answers for it.",
        )
    return Told(PROTOCOL, f"the server fails: {words}", f"{LOG}{' ' + PLAN if long else ''}")
