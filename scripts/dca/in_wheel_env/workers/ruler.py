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
from importlib import import_module
from pathlib import Path

import datasets

ASKED = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
OUTPUT = sys.stdout
LOAD_DATASET = datasets.load_dataset
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


class Failed(Exception):
    """A request that failed, or texts that could not be made.

    Args:
        kind: how it failed.
        words: the server's own, or the error's.
        status: of the response; 0 without one.
    """

    def __init__(self, kind, words="", status=0, **more):
        super().__init__(kind)
        self.told = {"kind": kind, "words": words[:WORDS], "status": status, **more}


def limit(seconds, ended):
    """Call a function in so many seconds, in the place of an earlier one; 0 for never."""
    signal.signal(signal.SIGALRM, lambda *_: ended())
    signal.setitimer(signal.ITIMER_REAL, seconds)


def tokenizer():
    """The model's tokenizer, of which no code is run."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ASKED["tokenizer"], trust_remote_code=False, local_files_only=True)


def prepare(loaded):
    """Let the harness make as many texts as are asked for, of the data that are here, without a network."""
    import nltk

    nltk.download = lambda *_, **__: False
    for name, function in MAKERS.items():
        module = import_module(f"lm_eval.tasks.ruler.{name}")
        # The harness loads the files of its tasks by itself, unless it finds this of them.
        module.__mtime__ = Path(module.__file__).stat().st_mtime_ns
        module.get_tokenizer = lambda *_, **__: loaded
        setattr(module, function, limited(getattr(module, function)))


def limited(make):
    """A maker of texts that makes no more of them than are asked for; some make a single one as an example."""

    def fewer(*words, **more):
        return make(*words, **{**more, "num_samples": min(ASKED["samples"], more.get("num_samples", ASKED["samples"]))})

    return fewer


def client(loaded, cell, answers):
    """The harness's client, with a bound, a deadline and a record for each request.

    Args:
        loaded: the model's tokenizer.
        cell: what is asked.
        answers: receives the records.
    """
    import requests
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    chat = ASKED["api"] == "chat"
    words = f"not finished within {cell['timeout']:g} s"

    def late():
        raise Failed("hung", words)

    class Client(LocalChatCompletion if chat else LocalCompletionsAPI):
        """Sends one request at a time, text as text: the harness itself would cut token numbers to its max_length."""

        def __init__(self):
            url = f"{ASKED['url']}/{'chat/completions' if chat else 'completions'}"
            super().__init__(
                base_url=url, model=ASKED["model"], tokenizer_backend=None, tokenized_requests=False, max_retries=1
            )
            self.session = requests.Session()
            if key := os.environ.get("OPENAI_API_KEY"):
                self.session.headers["Authorization"] = f"Bearer {key}"

        @property
        def eos_string(self):
            return None

        def apply_chat_template(self, history, add_generation_prompt=True):
            if chat:
                return super().apply_chat_template(history, add_generation_prompt=add_generation_prompt)
            return rendered(loaded, history, add_generation_prompt)

        def model_call(self, messages, *, generate=True, gen_kwargs=None, **_):
            wanted = self._create_payload(
                self.create_message(messages), generate=generate, gen_kwargs=copy.deepcopy(gen_kwargs), seed=self._seed
            )
            expected = self.measured(wanted)
            longest = ASKED["max_model_len"]
            if longest and expected + wanted["max_tokens"] > longest:
                needed = expected + wanted["max_tokens"]
                raise Failed("too long", f"{needed:,} tokens", needed=needed)
            # A limit of the whole request: a server that sends a byte now and then keeps one open for ever.
            limit(cell["timeout"], late)
            try:
                body = self.sent(wanted)
            finally:
                limit(0, late)
            self.record(body, expected)
            return body

        def measured(self, wanted):
            """The tokens of a prompt, by the model's tokenizer; adds what only some requests have."""
            if not chat:
                text = wanted["prompt"]
                bare = loaded.chat_template is not None and bool(loaded.bos_token) and text.startswith(loaded.bos_token)
                if bare:
                    # The template has begun the text already.
                    wanted["add_special_tokens"] = False
                return len(loaded(text, add_special_tokens=not bare).input_ids)
            if wanted["messages"][-1]["role"] == "assistant":
                # The answer goes on where the prompt has begun it.
                wanted |= {"add_generation_prompt": False, "continue_final_message": True}
            if ASKED["no_thinking"]:
                wanted["chat_template_kwargs"] = {"enable_thinking": False, "thinking": False}
            if loaded.chat_template is None:
                return sum(len(loaded(one["content"], add_special_tokens=False).input_ids) for one in wanted["messages"])
            text = rendered(loaded, wanted["messages"], wanted.get("add_generation_prompt", True))
            return len(loaded(text, add_special_tokens=False).input_ids)

        def sent(self, wanted):
            """The body of a response."""
            while True:
                try:
                    response = self.session.post(
                        self.base_url,
                        json=wanted,
                        headers={"Accept-Encoding": "identity"},
                        verify=ASKED["verify"] or True,
                        timeout=cell["timeout"],
                        allow_redirects=False,
                        stream=True,
                    )
                    with response:
                        content = b""
                        for part in response.iter_content(1 << 16):
                            content += part
                            if len(content) > MOST_BYTES:
                                raise Failed("endless", f"an answer of more than {MOST_BYTES >> 20} MiB")
                except requests.exceptions.SSLError as error:
                    raise Failed("untrusted", str(error)) from None
                except requests.exceptions.Timeout:
                    raise Failed("hung", words) from None
                except requests.exceptions.RequestException as error:
                    raise Failed("gone", str(error)) from None
                pause = response.headers.get("retry-after", "")
                if response.status_code != BUSY or not pause.isdigit():
                    break
                time.sleep(int(pause))
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

        def record(self, body, expected):
            """Keep what a response says of its prompt, and stop at the first that was not read as it was sent."""
            try:
                (choice,) = body["choices"]
                text = choice["message"]["content"] if chat else choice["text"]
                usage = body.get("usage") or {}
                counted, generated = usage.get("prompt_tokens"), usage.get("completion_tokens")
                answer = {
                    "tokens": expected,
                    "counted": None if counted is None else int(counted),
                    "generated": None if generated is None else int(generated),
                    "cut": choice.get("finish_reason") == "length",
                    "empty": not (text or "").strip(),
                }
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise Failed("malformed", f"no answer in {json.dumps(body)[:SAMPLE]}: {error!r}") from None
            answers.append(answer)
            print(f"answered {len(answers)}", file=OUTPUT, flush=True)
            counted = answer["counted"]
            if counted is not None:
                spread = ASKED["spread"] * expected + ASKED["template"]
                if not -spread <= counted - expected <= spread:
                    raise Failed("miscounted", "", counted=counted, expected=expected)

    return Client()


def rendered(loaded, history, add_generation_prompt):
    """A chat as its template writes it."""
    switches = {"enable_thinking": False, "thinking": False} if ASKED["no_thinking"] else {}
    return loaded.apply_chat_template(
        history,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt,
        **switches,
    )


def evaluate(loaded, cell, told):
    """Run one task at one length, and tell its score, and the first answer with what was expected.

    Args:
        loaded: the model's tokenizer.
        cell: what is asked.
        told: receives what came of it.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    task, length = cell["task"], str(cell["length"])
    # Both are downloaded by the harness: essays by the library of data sets, questions as a file of JSON.
    datasets.load_dataset = lambda _, **more: LOAD_DATASET(cell["data"], **more)
    questions = import_module("lm_eval.tasks.ruler.qa_utils")
    questions.download_json = lambda _: json.loads(Path(cell["data"]).read_text(encoding="utf-8"))
    # The harness would read the files of all of its tasks, which takes minutes on a busy machine.
    folder = Path(import_module("lm_eval.tasks.ruler.common_utils").__file__).parent
    about = {"max_seq_lengths": [cell["length"]], "tokenizer": ASKED["tokenizer"]}
    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=about)
    result = simple_evaluate(
        model=client(loaded, cell, told["answers"]),
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


def write(told):
    """Write a result."""
    with open(ASKED["out"], "a", encoding="utf-8") as stream:
        stream.write(json.dumps(told) + "\n")
    print("done", file=OUTPUT, flush=True)


def run(loaded, cell):
    """Run one task at one length, and write the result whatever happens; whether more can be asked."""
    told = {"failure": None, "answers": [], "templated": ASKED["api"] == "chat" or loaded.chat_template is not None}
    started = time.monotonic()

    def unmade():
        # Some tasks try for ever to make a text that is too short for them, and take every error for one more reason.
        told["failure"] = Failed("unmade", f"not made within {cell['making']:g} s").told
        write(told)
        os._exit(0)

    # Until the first request.
    limit(cell["making"], unmade)
    try:
        evaluate(loaded, cell, told)
    except Failed as failed:
        told["failure"] = failed.told
    except Exception as error:  # noqa: BLE001 - the harness and its libraries raise many
        told["failure"] = Failed("unmade", f"{type(error).__name__}: {error}").told
    limit(0, unmade)
    write({**told, "seconds": time.monotonic() - started})
    return not told["failure"] or told["failure"]["kind"] not in ENDS


def main():
    """Run what is asked, until the server no longer answers."""
    loaded = tokenizer()
    if not loaded("The quick brown fox").input_ids:
        sys.exit(f"{ASKED['tokenizer']} makes no tokens of a text")
    prepare(loaded)
    # A task that cannot make a text says so as fast as it can, for as long as it may.
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end
    for cell in ASKED["cells"]:
        if not run(loaded, cell):
            break


if __name__ == "__main__":
    main()
