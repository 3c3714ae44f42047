"""Worker in the harness's environment: sends RULER's tasks to a server, and writes what came of each at each length.

Argument: a file of JSON with what is asked (`Wanted` of `dca.serve.check.ruler.harness`). The server's key is in
OPENAI_API_KEY, and shown nowhere. Results are written as lines of JSON to the file that is asked for, never to the
output, because a server may repeat the key in them; the output has a line for each answer and each result.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

ASKED: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
OUTPUT = sys.stdout
CHAT = ASKED["api"] == "chat"
MOST_BYTES = 64 << 20
WORDS = 2000
SAMPLE = 200
# The function of each module of tasks that makes its texts.
MAKERS = {
    "niah_utils": "generate_samples",
    "vt_utils": "sys_vartrack_w_noise_random",
    "cwe_utils": "sys_word_pair_random",
    "fwe_utils": "sys_kwext",
    "qa_utils": "generate_samples",
}
BUSY = 429
# After these a server is gone, or still busy with a prompt.
ENDS = ("gone", "hung", "untrusted", "redirected")
TASKS = "lm_eval.tasks.ruler"


class Failed(Exception):  # noqa: N818 - a result, which is written
    """A request that failed, or texts that could not be made.

    Args:
        kind: how it failed.
        words: the server's own, or the error's.
        status: of the response; 0 without one.
    """

    def __init__(self, kind: str, words: str = "", status: int = 0, **more: int) -> None:
        super().__init__(kind)
        self.told = {"kind": kind, "words": words[:WORDS], "status": status, **more}


def limit(seconds: float, ended: Callable[[], object]) -> None:
    """Call a function in so many seconds, in the place of an earlier one; 0 for never."""
    signal.signal(signal.SIGALRM, lambda *_: ended())
    signal.setitimer(signal.ITIMER_REAL, seconds)


def limited(make: Callable[..., Any]) -> Callable[..., Any]:
    """A maker of texts that makes no more of them than are asked for; one makes a single text as an example."""

    def fewer(*words: Any, **more: Any) -> Any:
        return make(*words, **{**more, "num_samples": min(ASKED["samples"], more.get("num_samples", ASKED["samples"]))})

    return fewer


def prepare(tokenizer: Any) -> None:
    """Let the harness make as many texts as are asked for, with the tokenizer that was loaded, and without a network.

    Args:
        tokenizer: the model's; the harness itself would run code that comes with one.
    """
    # Some tasks need nltk's data, and the module that has them downloads it for the others too.
    import_module("nltk").download = lambda *_, **__: False  # type: ignore[attr-defined]
    for name, function in MAKERS.items():
        module: Any = import_module(f"{TASKS}.{name}")
        # The harness loads the files of its tasks by itself, unless it finds this of them.
        module.__mtime__ = Path(module.__file__).stat().st_mtime_ns
        module.get_tokenizer = lambda *_, **__: tokenizer
        setattr(module, function, limited(getattr(module, function)))


def take_data(path: str) -> None:
    """Let the harness take data from the disk that it would download: essays as a data set, questions as JSON."""
    datasets: Any = import_module("datasets")
    load = getattr(datasets, "unchanged", datasets.load_dataset)
    datasets.unchanged = load
    datasets.load_dataset = lambda _, **more: load(path, **more)
    questions: Any = import_module(f"{TASKS}.qa_utils")
    questions.download_json = lambda _: json.loads(Path(path).read_text(encoding="utf-8"))


def rendered(tokenizer: Any, history: list[dict[str, str]], begun: bool) -> str:
    """A chat as its template writes it.

    Args:
        tokenizer: that has the template.
        history: the messages.
        begun: whether the last message is the beginning of the answer.
    """
    switches = {"enable_thinking": False, "thinking": False} if ASKED["no_thinking"] else {}
    text = tokenizer.apply_chat_template(
        history, tokenize=False, add_generation_prompt=not begun, continue_final_message=begun, **switches
    )
    return str(text)


class Sender:
    """Sends the harness's requests one at a time, each with a bound, a deadline and a record.

    Prompts are sent as text: those of token numbers the harness itself cuts to its max_length.
    """

    def begin(self, tokenizer: Any, cell: dict[str, Any], answers: list[dict[str, Any]]) -> Any:
        """The sender itself, which is then ready.

        Args:
            tokenizer: the model's.
            cell: what is asked.
            answers: receives the records.
        """
        self.own, self.cell, self.answers = tokenizer, cell, answers
        self.requests: Any = import_module("requests")
        self.session = self.requests.Session()
        if key := os.environ.get("OPENAI_API_KEY"):
            self.session.headers["Authorization"] = f"Bearer {key}"
        return self

    @property
    def eos_string(self) -> None:
        """No text ends an answer; the model's own token does."""

    def apply_chat_template(self, history: list[dict[str, str]], add_generation_prompt: bool = True) -> Any:
        """A chat as the harness sends it."""
        if CHAT:
            return super().apply_chat_template(history, add_generation_prompt)  # type: ignore[misc]
        return rendered(self.own, history, not add_generation_prompt)

    def model_call(self, messages: Any, *, generate: bool = True, gen_kwargs: Any = None, **_: Any) -> Any:
        """The body of the response to a prompt."""
        own: Any = self
        text = own.create_message(messages)
        wanted = own._create_payload(text, generate=generate, gen_kwargs=copy.deepcopy(gen_kwargs), seed=own._seed)
        expected = self.measured(wanted)
        needed, longest = expected + wanted["max_tokens"], ASKED["max_model_len"]
        if longest and needed > longest:
            raise Failed("too long", f"{needed:,} tokens")
        # Of the whole request: a server that sends a byte now and then keeps one open for ever.
        limit(self.cell["timeout"], self.late)
        try:
            body = self.sent(own.base_url, wanted)
        finally:
            limit(0, self.late)
        self.record(body, expected)
        return body

    def late(self) -> NoReturn:
        """The request is not answered in time."""
        raise Failed("hung", f"not finished within {self.cell['timeout']:g} s")

    def measured(self, wanted: dict[str, Any]) -> int:
        """The tokens of a prompt, by the model's tokenizer; its request receives what only some have."""
        if not CHAT:
            text, bos = wanted["prompt"], self.own.bos_token
            begun = self.own.chat_template is not None and bool(bos) and text.startswith(bos)
            if begun:
                # The template has written the token that the server would put before the text.
                wanted["add_special_tokens"] = False
            return len(self.own(text, add_special_tokens=not begun).input_ids)
        begun = wanted["messages"][-1]["role"] == "assistant"
        if begun:
            # Without these, the server begins another answer behind the beginning of this one.
            wanted |= {"add_generation_prompt": False, "continue_final_message": True}
        if ASKED["no_thinking"]:
            wanted["chat_template_kwargs"] = {"enable_thinking": False, "thinking": False}
        texts = [one["content"] for one in wanted["messages"]]
        if self.own.chat_template is not None:
            texts = [rendered(self.own, wanted["messages"], begun)]
        return sum(len(self.own(text, add_special_tokens=False).input_ids) for text in texts)

    def sent(self, url: str, wanted: dict[str, Any]) -> Any:
        """The body of a response; a busy server is asked again when it says."""
        response, content = self.response(url, wanted)
        while response.status_code == BUSY and (pause := response.headers.get("retry-after", "")).isdigit():
            time.sleep(int(pause))
            response, content = self.response(url, wanted)
        if response.is_redirect:
            location = response.headers.get("location", "")
            raise Failed("redirected", f"HTTP {response.status_code} to {location}", response.status_code)
        text = content.decode("utf-8", "replace")
        if not response.ok:
            raise Failed("status", text, response.status_code)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Failed("malformed", f"the answer is not JSON: {error}") from None

    def response(self, url: str, wanted: dict[str, Any]) -> tuple[Any, bytes]:
        """A response and its content."""
        errors = self.requests.exceptions
        try:
            with self.session.post(
                url,
                json=wanted,
                headers={"Accept-Encoding": "identity"},
                verify=ASKED["verify"] or True,
                timeout=self.cell["timeout"],
                allow_redirects=False,
                stream=True,
            ) as response:
                content = b""
                for part in response.iter_content(1 << 16):
                    content += part
                    if len(content) > MOST_BYTES:
                        raise Failed("endless", f"an answer of more than {MOST_BYTES >> 20} MiB")
                return response, content
        except errors.SSLError as error:
            raise Failed("untrusted", str(error)) from None
        except errors.Timeout:
            self.late()
        except errors.RequestException as error:
            raise Failed("gone", str(error)) from None

    def record(self, body: Any, expected: int) -> None:
        """Keep what a response says of its prompt, and stop at the first that was not read as it was sent."""
        try:
            (choice,) = body["choices"]
            text = choice["message"]["content"] if CHAT else choice["text"]
            usage = body.get("usage") or {}
            counts = [None if (one := usage.get(f"{name}_tokens")) is None else int(one) for name in USAGE]
            cut, empty = choice.get("finish_reason") == "length", not (text or "").strip()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Failed("malformed", f"no answer in {json.dumps(body)[:SAMPLE]}: {error!r}") from None
        counted, generated = counts
        answer = {"tokens": expected, "counted": counted, "generated": generated, "cut": cut, "empty": empty}
        self.answers.append(answer)
        print(f"\nanswered {len(self.answers)}", file=OUTPUT, flush=True)
        spread = ASKED["spread"] * expected + ASKED["template"]
        if counted is not None and not -spread <= counted - expected <= spread:
            raise Failed("miscounted", counted=counted, expected=expected)


USAGE = ("prompt", "completion")


def client(tokenizer: Any, cell: dict[str, Any], answers: list[dict[str, Any]]) -> Any:
    """The harness's own client, which sends with `Sender`."""
    models: Any = import_module("lm_eval.models.openai_completions")
    base, path = models.LocalCompletionsAPI, "completions"
    if CHAT:
        base, path = models.LocalChatCompletion, "chat/completions"
    made = type("Client", (Sender, base), {})(
        base_url=f"{ASKED['url']}/{path}",
        model=ASKED["model"],
        tokenizer_backend=None,
        tokenized_requests=False,
        # A prompt that ended an engine once would end it again.
        max_retries=1,
    )
    return made.begin(tokenizer, cell, answers)


def evaluate(tokenizer: Any, cell: dict[str, Any], told: dict[str, Any]) -> None:
    """Run one task at one length, and tell its score, and the first answer with what was expected.

    Args:
        tokenizer: the model's.
        cell: what is asked.
        told: receives what came of it.
    """
    task, length = cell["task"], str(cell["length"])
    take_data(cell["data"])
    # The harness would read the files of all of its tasks, which takes minutes on a busy machine.
    folder = Path(str(import_module(f"{TASKS}.common_utils").__file__)).parent
    about = {"max_seq_lengths": [cell["length"]], "tokenizer": ASKED["tokenizer"]}
    manager = import_module("lm_eval.tasks").TaskManager(
        include_path=str(folder), include_defaults=False, metadata=about
    )
    result = import_module("lm_eval").simple_evaluate(
        model=client(tokenizer, cell, told["answers"]),
        tasks=[task],
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=told["templated"],
    )
    samples = result["samples"][task]
    first = samples[0]
    told["first"] = {"answer": str(first["resps"][0][0])[:SAMPLE], "wanted": list(map(str, first["doc"]["outputs"]))}
    # The harness gives -1 for lengths that were not run.
    told["scores"] = [one[length] for one in samples if one.get(length, -1) >= 0]
    told["score"] = result["results"][task].get(f"{length},none")


def write(told: dict[str, Any]) -> None:
    """Write a result. The harness leaves its own lines without an end."""
    with Path(ASKED["out"]).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(told) + "\n")
    print("\ndone", file=OUTPUT, flush=True)


def run(tokenizer: Any, cell: dict[str, Any]) -> bool:
    """Run one task at one length, and write the result whatever happens; whether more can be asked."""
    templated = CHAT or tokenizer.chat_template is not None
    told: dict[str, Any] = {"failure": None, "answers": [], "templated": templated}
    started = time.monotonic()

    def unmade() -> None:
        # Some tasks try for ever to make a text that is too short for them, and take every error for one more reason.
        failure = Failed("unmade", f"not made within {cell['making']:g} s").told
        write({**told, "failure": failure, "seconds": time.monotonic() - started})
        os._exit(0)

    # Until the first request.
    limit(cell["making"], unmade)
    try:
        evaluate(tokenizer, cell, told)
    except Failed as failed:
        told["failure"] = failed.told
    except Exception as error:
        told["failure"] = Failed("unmade", f"{type(error).__name__}: {error}").told
    limit(0, unmade)
    write({**told, "seconds": time.monotonic() - started})
    return not told["failure"] or told["failure"]["kind"] not in ENDS


def main() -> None:
    """Run what is asked, until the server no longer answers."""
    # A task that cannot make a text says so as fast as it can, for as long as it may.
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end
    load = import_module("transformers").AutoTokenizer.from_pretrained
    tokenizer = load(ASKED["tokenizer"], trust_remote_code=False, local_files_only=True)
    if not tokenizer("The quick brown fox").input_ids:
        sys.exit(f"{ASKED['tokenizer']} makes no tokens of a text")
    prepare(tokenizer)
    for cell in ASKED["cells"]:
        if not run(tokenizer, cell):
            break


if __name__ == "__main__":
    main()
