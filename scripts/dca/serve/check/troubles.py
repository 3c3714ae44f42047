"""What each kind of failure means for the server's operator: a code, a sentence and a remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dca.serve.check.failed import ABSENT, RequestFailed
from dca.serve.check.values import Outcome, Trouble

UNREACHABLE, PROTOCOL, PROMPT, MODEL = "DCA-160", "DCA-161", "DCA-162", "DCA-163"

LOG = "read the end of the server's log; `dca explain LOG` explains it."
PLACE = (
    "check the URL's path and the model's name (--model): some servers have the API elsewhere, such as at /openai/v1 "
    "or /api/v1, and not every request."
)
FORBIDDEN = 403
YEAR = 365 * 86400
PLAN = "`dca serve plan` shows the longest prompt that fits, and the flags with which longer ones fit."

# Statuses that usually come from a proxy in front of the server, and say nothing about its engine.
BY_STATUS = {
    402: "a gateway wants to be paid: check the engine directly, or when the account has credit.",
    413: "a million tokens are 5 MB: let the proxy accept bodies of that size (nginx: client_max_body_size), or check "
    "the engine directly.",
    429: "the server, or a gateway in front of it, limits the requests: check the engine directly, or when it is idle.",
    504: "a proxy did not wait for the answer: let it wait longer (nginx: proxy_read_timeout), or check the engine "
    "directly.",
}

OUTCOMES: dict[Trouble, Outcome] = {
    "gone": "gone",
    "untrusted": "gone",
    "loading": "gone",
    "redirected": "broken",
    "bodiless": "broken",
    "denied": "refused",
    "refused": "refused",
    "broken": "broken",
    "malformed": "broken",
    "cut": "cut",
    "hung": "hung",
    "ignored": "refused",
    "truncated": "refused",
    "endless": "broken",
}


class Explanation(NamedTuple):
    """A failure, explained."""

    code: str
    detail: str
    remedy: str


def _untrusted(words: str) -> Explanation:
    if "certificate" not in words:
        return Explanation(
            UNREACHABLE,
            f"no secure connection (TLS): {words}",
            "if the server speaks plain HTTP, write its URL with http://; which authorities are trusted is set by "
            "SSL_CERT_FILE.",
        )
    if "mismatch" in words or "not valid for" in words:
        return Explanation(
            UNREACHABLE,
            f"no secure connection (TLS): {words}",
            "write the URL with a name that the server's certificate was made for; SSL_CERT_FILE does not change that.",
        )
    return Explanation(
        UNREACHABLE,
        f"no secure connection (TLS): {words}",
        "export SSL_CERT_FILE=FILE, a file (PEM) with the authority that signed the server's certificate, or with the "
        "certificate itself if it is self-signed; an expired one must be renewed.",
    )


# Failures before the server itself was reached.
REACHING: dict[Trouble, Callable[[str], Explanation]] = {
    "untrusted": _untrusted,
    "loading": lambda words: Explanation(
        UNREACHABLE, f"the server is still loading: {words}", f"{LOG} If it only takes long, raise --wait SECONDS."
    ),
    "redirected": lambda words: Explanation(
        UNREACHABLE,
        f"the server redirects to another one, which was not asked: {words}",
        "check that server by its own URL, if you trust it with the key and the prompts.",
    ),
    "bodiless": lambda words: Explanation(
        PROTOCOL,
        f"the server redirects the request so that clients send it without its body: {words}",
        "write the URL as the redirection has it.",
    ),
}
# What a failure that ends the check did, in words.
ENDS: dict[Trouble, str] = {
    "denied": "the server did not allow `{}`",
    "untrusted": "there was no secure connection for `{}`",
    "loading": "the server was still loading at `{}`",
    "redirected": "the server redirected `{}`",
}


def _denied(failed: RequestFailed) -> Explanation:
    if failed.status == FORBIDDEN:
        return Explanation(
            UNREACHABLE,
            f"the server denies access: {failed.words}",
            "check what the key of --api-key-env may do, and whom a gateway in front of the server lets through.",
        )
    if failed.keyed:
        return Explanation(
            UNREACHABLE,
            f"the server rejects the key: {failed.words}",
            "set the variable of --api-key-env to the key that the server was started with (--api-key).",
        )
    return Explanation(
        UNREACHABLE,
        f"the server requires a key: {failed.words}",
        "set a variable to the key that the server was started with (--api-key), and name it with --api-key-env.",
    )


def _refused(failed: RequestFailed, *, long: bool) -> Explanation:
    words = failed.words
    if "chat_template_kwargs" in words:
        return Explanation(
            PROTOCOL,
            f"the server rejects --no-thinking: {words}",
            "omit --no-thinking, and turn reasoning off in the server, if it has an option for that.",
        )
    if failed.status in ABSENT:
        return Explanation(PROTOCOL, f"the server rejects the request: {words}", PLACE)
    if long:
        return Explanation(
            PROMPT,
            f"the server rejects the prompt: {words}",
            f"let the server take longer prompts (vLLM: --max-model-len), or check a shorter --length. {PLAN}",
        )
    return Explanation(PROTOCOL, f"the server rejects the request: {words}", LOG)


def ended(trouble: Explanation, state: str, *, long: bool = False) -> Explanation:
    """The explanation of a request after which the server no longer answers.

    Args:
        trouble: what the request itself came to.
        state: `ended` or `hangs`.
        long: whether its prompt was long.
    """
    if state == "hangs":
        return Explanation(UNREACHABLE, f"the server hangs since this request: {trouble.detail}", trouble.remedy)
    what = "prompt" if long else "request"
    remedy = trouble.remedy if LOG in trouble.remedy else f"{LOG} {trouble.remedy}"
    return Explanation(UNREACHABLE, f"this {what} ended the engine: {trouble.detail}", remedy)


def explain(failed: RequestFailed, *, long: bool = False) -> Explanation:
    """A failed request in words.

    Args:
        failed: the request.
        long: whether its prompt was long, which has its own causes of failure.
    """
    words = failed.words
    if failed.kind in REACHING:
        return REACHING[failed.kind](words)
    if failed.status in BY_STATUS:
        after = failed.retry_after
        asked = "" if after is None else f" (Retry-After: {after:,.0f} s)" if after < YEAR else " (Retry-After: years)"
        return Explanation(PROTOCOL, f"the request does not get through: {words}{asked}", BY_STATUS[failed.status])
    if failed.kind == "gone":
        why = "A long prompt that ran out of GPU memory ends the engine. " + PLAN if long else "Is it still running?"
        return Explanation(UNREACHABLE, f"the server does not answer: {words}", f"{LOG} {why}")
    if failed.kind == "denied":
        return _denied(failed)
    if failed.kind == "refused":
        return _refused(failed, long=long)
    if failed.kind == "ignored":
        return Explanation(
            PROMPT,
            'the server ignored the prompt: an empty answer with finish_reason "length"',
            "the prompt requires more KV cache than the engine has; its log says `exceeds the capacity of "
            f"block_manager`. {PLAN}",
        )
    if failed.kind == "truncated":
        return Explanation(
            PROMPT,
            f"the server truncated the prompt: {words}",
            "let it take the whole prompt (its option may be called num_ctx or --ctx-size; vLLM never truncates by "
            f"itself), or check a shorter --length. {PLAN}",
        )
    if failed.kind == "hung":
        where = "before the first token" if failed.first_token is None else "after the first token"
        return Explanation(
            PROTOCOL,
            f"{words}, {where if long else 'no answer'}",
            f"{LOG} If the server is only slow, increase {'--needle-timeout' if long else '--timeout'}.",
        )
    if failed.kind == "cut":
        return Explanation(
            PROTOCOL,
            f"the stream was cut: {words}",
            f"{LOG} A proxy in front of the server may also cut streams: check the engine directly.",
        )
    if failed.kind == "endless":
        what = "ignores max_tokens" if "requested" in words else "sends without an end"
        return Explanation(PROTOCOL, f"the server {what}: {words}", LOG)
    if failed.kind == "malformed":
        return Explanation(
            PROTOCOL,
            f"the answer violates the protocol: {words}",
            "check that the URL belongs to an OpenAI-compatible server, and that no proxy answers in its place.",
        )
    return Explanation(PROTOCOL, f"the server fails: {words}", f"{LOG}{' ' + PLAN if long else ''}")
