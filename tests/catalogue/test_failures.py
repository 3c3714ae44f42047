"""The catalogue of known failures: each message is found, by itself, and nothing else is."""

from __future__ import annotations

import ast
import functools
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

from dca.catalogue import failures, logs, recipes
from dca.catalogue.failures import UNKNOWN, Failure
from dca.catalogue.logs import Explanation, judgement, lines, search
from dca.cli import explanation_of, root
from dca.foundation import data, runner
from dca.foundation.errors import DcaError
from tests.support import ROOT, examples
from tests.support.prepared import run_dca

ALL = failures.load()
LOUD = [failure for failure in ALL.failures if failure.texts]
SILENT = [failure for failure in ALL.failures if not failure.texts]

# What stands around a failure in logs that are otherwise fine.
BEFORE = """\
Processing /src/vllm
  Installing build dependencies: finished with status 'done'
-- The CXX compiler identification is GNU 12.2.0
-- Found CUDA: /usr/local/cuda (found version "12.4")
-- Found Torch: /env/lib/python3.11/site-packages/torch/lib/libtorch.so
[1/22] Building CXX object CMakeFiles/_C.dir/csrc/ops.cpp.o
[2/22] /usr/local/cuda/bin/nvcc -DENABLE_FP8 -Xcompiler=-Werror -c csrc/cache_kernels.cu
ERROR setuptools_scm._file_finders.git listing git files failed - pretending there aren't any
csrc/cache_kernels.cu(120): warning #177-D: variable "error" was declared but never referenced
INFO 01-31 12:00:00 config.py:510] This model supports multiple tasks: {'generate', 'score'}. Defaulting to 'generate'.
INFO 01-31 12:00:09 model_runner.py:1115] Loading model weights took 14.2419 GB
"""
AFTER = """\
Building wheels for collected packages: vllm
  Building wheel for vllm (pyproject.toml): still running...
INFO:     127.0.0.1:40852 - "GET /health HTTP/1.1" 200 OK
INFO 01-31 12:01:00 metrics.py:467] Avg prompt throughput: 3021.3 tokens/s, Running: 1 reqs, Waiting: 0 reqs
"""


def explain(text: str | bytes) -> Explanation:
    return logs.explain(BytesIO(text.encode() if isinstance(text, str) else text), "log")


def ids(explanation: Explanation) -> list[str]:
    return [known.id for known in explanation.found]


# --- the catalogue -------------------------------------------------------------------------------------------


def guard_codes() -> dict[str, str]:
    """The codes of the guards inside of a wheel, as their source lists them."""
    tree = ast.parse((data.data_root() / "patches/guards/vllm/dca_guards.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "CODES":
            assert node.value is not None
            return dict(ast.literal_eval(node.value))
    raise AssertionError


@functools.cache
def code_uses() -> dict[str, set[str]]:
    """The codes in the texts of the package and the guards, by the files they are in; docstrings do not count."""
    uses: dict[str, set[str]] = {}
    for path in [*data.PACKAGE.rglob("*.py"), *(data.data_root() / "patches/guards").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        # Walking the trees of all files takes a second.
        nodes = list(ast.walk(ast.parse(text))) if failures.CODE.search(text) else []
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                for code in failures.CODE.findall(node.value):
                    uses.setdefault(code, set()).add(path.name)
    for path in data.PACKAGE.rglob("*.cpp"):
        for code in failures.CODE.findall(path.read_text(encoding="utf-8")):
            uses.setdefault(code, set()).add(path.name)
    return uses


def test_every_code_that_the_source_uses_is_explained() -> None:
    assert {code: files for code, files in code_uses().items() if code not in ALL.codes} == {}


def test_no_code_is_explained_that_nothing_uses() -> None:
    assert sorted(set(ALL.codes) - set(code_uses())) == []


def test_every_code_of_the_guards_is_explained_in_their_own_words() -> None:
    assert {code: ALL.codes[code].title for code in guard_codes()} == guard_codes()


def test_the_documents_name_only_codes_that_are_explained() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    named = {(page.name, code) for page in pages for code in failures.CODE.findall(page.read_text(encoding="utf-8"))}
    assert sorted((page, code) for page, code in named if code not in ALL.codes) == []


@pytest.mark.parametrize("code", sorted(ALL.codes))
def test_what_a_code_stands_for_is_one_short_clause(code: str) -> None:
    title = ALL.codes[code].title
    assert title == title.strip()
    assert not title.endswith(".")
    assert len(title.splitlines()) == 1


def test_no_two_codes_stand_for_the_same() -> None:
    assert len({about.title for about in ALL.codes.values()}) == len(ALL.codes)


def test_the_catalogue_holds_what_is_known_of_builds_packages_and_serving() -> None:
    assert {path.name for path in data.failures_folder().iterdir()} == {
        "build.toml",
        "packages.toml",
        "serving.toml",
        "codes.toml",
        "marks.toml",
        "cluster.toml",
        "compilers.toml",
        "installers.toml",
        "loader.toml",
        "models.toml",
    }
    assert len(ALL.failures) >= 200
    assert len(SILENT) < 10


@pytest.mark.parametrize("failure", ALL.failures, ids=lambda failure: failure.id)
def test_a_remedy_says_what_to_do(failure: Failure) -> None:
    for text in (failure.title, failure.when, failure.cause, failure.remedy):
        assert text == text.strip()
        assert "\n" not in text
    assert failure.cause.endswith(".")


def _before(failure: Failure) -> str:
    """Other lines above a failure; none where they make the same text another failure."""
    others = [other for other in LOUD if other is not failure and set(other.texts) & set(failure.texts)]
    return "" if any(near in BEFORE for other in others for near in other.near) else BEFORE


@pytest.mark.parametrize("failure", LOUD, ids=lambda failure: failure.id)
def test_a_failure_is_found_among_other_lines_and_is_the_only_one(failure: Failure) -> None:
    before = _before(failure)
    explanation = explain(before + failure.example + AFTER)
    if failure.kind == "harmless":
        assert (explanation.found, explanation.overcome) == ((), ())
        return
    # A warning in a log that says that all went well is not reported.
    (known,) = explanation.found or explanation.overcome
    assert known.id == failure.id
    assert known.line > before.count("\n")
    assert known.text in "\n".join(lines.shown(line).strip() for line in failure.example.splitlines())
    said = {failure.remedy, *(other.remedy for other in failure.remedies)}
    causes = {failure.cause, *(other.cause for other in failure.remedies if other.cause)}
    assert any(_as_pattern(remedy).fullmatch(known.remedy) for remedy in said)
    assert any(_as_pattern(cause).fullmatch(known.cause) for cause in causes)
    assert failures.NUMBER not in known.title + known.cause + known.remedy


def _as_pattern(text: str) -> re.Pattern[str]:
    """A sentence of the catalogue, with digits where it says {number}."""
    return re.compile(re.escape(text).replace(re.escape(failures.NUMBER), r"[0-9.]+"))


def _number(failure: Failure) -> str:
    """A number that an entry is about."""
    bounds = SpecifierSet(failure.number)
    return next(str(number) for number in (12, 50, 70, 100) if bounds.contains(str(number)))


def _line(failure: Failure, text: str) -> str:
    """A line with one of the texts of an entry, and what must follow it."""
    line = text.removeprefix("^").removesuffix("$").replace("{}", "x.y").replace(failures.NUMBER, _number(failure))
    return "\n".join([line, *(words.replace("{}", "x.y") for words in failure.followed_by[:1])])


@pytest.mark.parametrize("failure", LOUD, ids=lambda failure: failure.id)
def test_a_near_miss_is_not_the_failure(failure: Failure) -> None:
    assert failure.near_miss.strip()
    if failure.kind == "harmless":  # it is never found
        texts = [search.text("failure", failure.id, words) for words in failure.texts]
        missed = failure.near_miss.splitlines()
        assert not any(text.search(line, line.encode()) for text in texts for line in missed)
    assert failure.id not in ids(explain(failure.near_miss))
    assert failure.id not in ids(explain(BEFORE + failure.near_miss + AFTER))


@pytest.mark.slow
@pytest.mark.parametrize("failure", LOUD, ids=lambda failure: failure.id)
def test_each_text_of_a_failure_is_found_and_names_it_alone(failure: Failure) -> None:
    for text in failure.texts:
        context = failure.near[0] if failure.near else "..."
        found = ids(explain(f"{_before(failure)}  File {context}\n{_line(failure, text)}\n{AFTER}"))
        assert found == ([] if failure.kind == "harmless" else [failure.id]), text


@pytest.mark.slow
@pytest.mark.parametrize("failure", LOUD, ids=lambda failure: failure.id)
def test_a_failure_is_found_in_colour_in_progress_lines_and_in_the_logs_of_servers(failure: Failure) -> None:
    for line in failure.example.strip().splitlines():
        plain = ids(explain(f"{line}\n"))
        coloured = " ".join(f"\x1b[1;31m{word}\x1b[0m" for word in line.split(" "))
        assert ids(explain(f"{coloured}\n")) == plain
        assert ids(explain(f"  7%|███ | 1/14\r{line}\r\n")) == plain


def test_the_remedies_name_only_commands_and_options_that_exist() -> None:
    texts = [failure.remedy for failure in ALL.failures] + [code.remedy for code in ALL.codes.values()]
    texts += [other.remedy for failure in ALL.failures for other in failure.remedies]
    asked = {words for text in texts for words in _commands(text)}
    commands = {command for command, _ in asked}
    helps = {command: CliRunner().invoke(root, [*command.split(), "--help"]).output for command in commands}
    assert set(helps) >= {"doctor", "explain", "config check"}
    assert sorted((command, flag) for command, flag in asked if flag and flag not in helps[command]) == []
    assert all(text for text in helps.values())


def test_the_wheels_that_remedies_name_can_be_built() -> None:
    known = {loaded.recipe.name: loaded.recipe for loaded in recipes.load_all()}
    texts = [failure.remedy for failure in ALL.failures] + [code.remedy for code in ALL.codes.values()]
    named = 0
    for text in texts:
        for words in re.findall(r"make wheel((?: [A-Z]+=\S+)*)", text.replace("`", "")):
            variables = dict(re.findall(r"([A-Z]+)=([^\s,;.)]+(?:\.[^\s,;.)]+)*)", words))
            # Without a recipe the first one is built.
            recipe = (
                known[variables["RECIPE"]]
                if "RECIPE" in variables
                else min(known.values(), key=lambda recipe: recipe.priority)
            )
            assert "WITH" not in variables or variables["WITH"] in recipe.groups, text
            named += "WITH" in variables
        if "--quantization fp8" in text or "FP8 weights" in text:
            assert "WITH=fp8" in text
    assert named >= 3


def test_what_a_code_is_caused_by_is_what_its_remedy_is_for() -> None:
    # A shallow clone is not deepened by fetching more of what it has.
    assert "shallow" in ALL.codes["DCA-405"].cause
    assert "--unshallow" in ALL.codes["DCA-405"].remedy
    # What was there before is in the folder itself, and undo brings it back.
    assert "`dca config undo DIR --force`" in ALL.codes["DCA-209"].remedy
    assert "backup" not in ALL.codes["DCA-209"].remedy


def _commands(text: str) -> set[tuple[str, str]]:
    commands = set()
    for part in text.split("`")[1::2]:
        words = part.split()
        if words[:1] == ["dca"] and len(words) > 1 and words[1].islower():
            command = " ".join(words[1:3] if words[1] in ("config", "index", "plugin", "serve") else words[1:2])
            commands |= {(command, word) for word in words if word.startswith("--")} | {(command, "")}
    return commands


# --- order, and what is not known ----------------------------------------------------------------------------


def test_the_first_cause_comes_before_what_follows_from_it_and_warnings_come_last() -> None:
    by_id = {failure.id: failure.example for failure in ALL.failures}
    log = "".join(by_id[name] for name in ("pynvml-deprecated", "engine-died", "gpu-out-of-memory", "disk-full"))
    assert ids(explain(log)) == ["gpu-out-of-memory", "disk-full", "engine-died", "pynvml-deprecated"]


def test_the_words_of_the_program_come_before_the_code_that_quotes_them() -> None:
    explanation = explain("DCA-602: CMake could not configure the build.\n  Why:  CMake 3.26 or higher is required.\n")
    assert ids(explanation) == ["cmake-too-old", "DCA-602"]


@pytest.mark.parametrize("failure", [failure for failure in LOUD if failure.near], ids=lambda failure: failure.id)
def test_a_text_that_others_print_too_is_told_only_where_it_belongs(failure: Failure) -> None:
    text = _line(failure, failure.texts[0])
    if not any(near in text for near in failure.near):
        # Alone it may be another failure, whose text is the same.
        alone = '  File "other.py", line 1\n' + text + "\n"
        assert failure.id not in ids(explain(alone))
        assert failure.id not in ids(explain(f"{failure.near[0]}\n" + "x\n" * failures.LINES_AROUND + alone))
    # Also where the two are in different blocks.
    filler = "y" * ((1 << 20) - 20) + "\n"
    assert ids(explain(f"{filler}  {failure.near[0]}\n{text}\n")) == [failure.id]


def test_a_code_in_a_log_is_explained() -> None:
    (known,) = explain("ValueError: CUDA graphs are on. Pass --enforce-eager. [DCA-812]").found
    assert (known.id, known.title) == ("DCA-812", guard_codes()["DCA-812"])


def test_a_code_that_nothing_is_known_of_is_no_finding() -> None:
    assert explain("see DCA-999").found == ()


def test_a_message_is_counted_and_the_last_one_of_an_exception_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "ENOUGH", 50)
    line = "AssertionError: CUDA_HOME is not set\n"
    assert [(known.line, known.count) for known in explain("fine\n" + 3 * line).found] == [(4, 3)]
    (often,) = explain(3 * search.ENOUGH * line).found
    assert (often.line, often.count >= search.ENOUGH) == (3 * search.ENOUGH, True)


@pytest.mark.slow
def test_an_error_on_every_line_up_to_the_end_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "ENOUGH", 50)
    explanation = explain(1000 * "ValueError: a tensor of nothing\n")
    assert (explanation.outcome, ids(explanation), explanation.found[0].line) == ("failed", [UNKNOWN], 1000)


def test_an_unknown_failure_is_said_as_such_with_the_lines_that_look_like_it() -> None:
    explanation = explain(
        BEFORE + 'csrc/a.cu(12): error: identifier "x" is undefined\n' + AFTER + "ld: error: no such symbol\n"
    )
    (unknown,) = explanation.found
    assert not explanation.explained
    assert (unknown.id, unknown.line, unknown.text) == (
        UNKNOWN,
        12,
        'csrc/a.cu(12): error: identifier "x" is undefined',
    )
    assert [line.line for line in explanation.suspicious] == [17]


@pytest.mark.slow
def test_of_many_lines_that_look_like_an_error_the_first_and_the_last_are_told() -> None:
    explanation = explain("".join(f"line {number}: error: no\n" for number in range(1, 5001)))
    numbers = [line.line for line in explanation.suspicious]
    assert explanation.found[0].line == 1
    assert numbers == [*range(2, judgement.SUSPICIOUS + 2), *range(5001 - judgement.SUSPICIOUS, 5001)]


def test_a_warning_alone_does_not_explain_an_error() -> None:
    explanation = explain("You are using a deprecated pynvml package\nRuntimeError: something else\n")
    assert ids(explanation) == [UNKNOWN, "pynvml-deprecated"]
    assert explanation.found[0].line == 2


# --- what must not be found ----------------------------------------------------------------------------------


def test_the_log_of_a_build_that_went_well_has_no_finding() -> None:
    explanation = explain(BEFORE + AFTER)
    assert (explanation.found, explanation.suspicious) == ((), ())


def test_the_projects_own_documents_and_code_are_no_failures_but_those_that_quote_them() -> None:
    texts = [
        (ROOT / name).read_bytes() for name in ("docs/patches.md", "docs/toolkits.md", "docs/oracle.md", "Makefile")
    ]
    assert [ids(explain(text)) for text in texts] == [[]] * len(texts)
    # One that says what codes mean is explained by them, and by nothing else.
    assert all(map(failures.CODE.fullmatch, ids(explain((ROOT / "docs/smoke.md").read_bytes()))))


# --- logs of every kind --------------------------------------------------------------------------------------

NEEDLE = b"AssertionError: CUDA_HOME is not set"


@pytest.mark.slow
def test_binary_junk_does_no_harm(chance: random.Random) -> None:
    junk = chance.randbytes(3 << 20)
    assert explain(junk).size == len(junk)
    assert "cuda-home-unset" in ids(explain(junk + b"\n" + NEEDLE + b"\n" + junk))
    # A line end among the first bytes does not make it text.
    assert explain(b"x\n" + junk).outcome == "unreadable"
    assert explain(junk + b"\nE: \xff\xfe\n" + junk).outcome == "unreadable"
    assert ids(explain(b"\xff\xfe\x00" + NEEDLE + b"\x00\x1b")) == ["cuda-home-unset"]


@pytest.mark.slow
@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(
        st.one_of(st.binary(max_size=60), st.sampled_from([failure.example.encode() for failure in LOUD])), max_size=8
    )
)
def test_any_bytes_are_read_without_an_error(parts: list[bytes]) -> None:
    for joint in (b"", b"\n", b"\r", b"\x1b["):
        content = joint.join(parts)
        explanation = explain(content)
        assert explanation.size == len(content)
        assert all(
            known.text.isprintable() and 1 <= known.line <= max(1, explanation.lines) for known in explanation.found
        )


@pytest.mark.proof
def test_a_huge_log_takes_little_memory(scale: Callable[[int], int], tmp_path: Path) -> None:
    log = tmp_path / "huge.log"
    lines = (BEFORE + AFTER).encode()
    with log.open("wb") as stream:
        for _ in range(scale(200_000_000) // len(lines)):
            stream.write(lines)
        stream.write(NEEDLE)
    probe = (
        "from dca.cli import run\n"
        f"assert run(['explain', {str(log)!r}]) == 0\n"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", probe], env=env, text=True, capture_output=True, check=True)
    assert "cuda-home-unset" in done.stdout
    # KiB
    assert int(done.stdout.split()[-1]) < 100_000


def test_what_is_shown_of_a_line_does_nothing_to_a_terminal() -> None:
    (known,) = explain(b"\x1b]0;title\x07\x07\x00\x9b31m" + NEEDLE + b" \x1b[31m\x1b").found
    assert known.text.isprintable()


@pytest.mark.parametrize("place", [0, 1, 2_000, 1 << 20, (1 << 20) - 20, (1 << 20) - 2_010, 3 << 20, 5_000_000])
def test_a_message_in_a_very_long_line_is_found_wherever_it_stands(place: int) -> None:
    explanation = explain(b"one\n" + b"x" * place + NEEDLE + b"y" * (6_000_000 - place) + b"\nthree\n")
    assert ids(explanation) == ["cuda-home-unset"]
    assert (explanation.found[0].line, explanation.lines) == (2, 3)
    assert len(explanation.found[0].text) <= lines.SHOWN


@pytest.mark.slow
@pytest.mark.parametrize("place", [*range((1 << 20) - 40, (1 << 20) + 3, 3)])
def test_a_message_at_the_border_of_two_blocks_is_found(place: int) -> None:
    filler = b"a line of a log\n" * (place // 16) + b"x" * (place % 16)
    (known,) = explain(filler + NEEDLE + b"\n").found
    assert (known.id, known.line) == ("cuda-home-unset", place // 16 + 1)
    # A program that prints more has only reported it.
    (known,) = explain(filler + NEEDLE + b"\n" + filler).overcome
    assert (known.id, known.line) == ("cuda-home-unset", place // 16 + 1)


@pytest.mark.parametrize(("text", "lines"), [("", 0), ("\n", 1), ("a", 1), ("a\n", 1), ("a\nb", 2), ("\n\n\n", 3)])
def test_lines_are_counted_as_people_do(text: str, lines: int) -> None:
    assert explain(text).lines == lines


def test_a_log_that_grows_line_by_line_is_read_to_its_end() -> None:
    class Slowly(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(7)

    text = (BEFORE + NEEDLE.decode() + "\n" + AFTER).encode()
    assert logs.explain(Slowly(text), "log") == logs.explain(BytesIO(text), "log")


# --- packages ------------------------------------------------------------------------------------------------


def test_packages_that_have_moved_are_named_with_what_they_lead_to() -> None:
    drifted = failures.drifted({"vllm": "0.10.2", "transformers": "5.1.0", "starlette": "0.41"})
    assert list(drifted) == ["transformers 5.1.0"]
    assert {failure.id for failure in drifted["transformers 5.1.0"]} >= {"transformers-5-tokenizer"}


def test_packages_are_judged_among_those_they_fail_with() -> None:
    assert failures.drifted({"transformers": "5.1.0"}) == {}
    assert failures.drifted({"transformers": "5.1.0", "vllm": "0.14.0"}).keys() & {"transformers 5.1.0"} == set()
    assert list(failures.drifted({"vllm": "0.6.6.post2.dev0+dca1.cu124", "numpy": "2.1.0"})) == ["numpy 2.1.0"]
    assert failures.drifted({"vllm": "0.10.2", "numpy": "2.1.0"}) == {}


# --- what the file of the catalogue may say ------------------------------------------------------------------

ENTRY = """\
schema = "dca.failures/2"
[[failures]]
id = "one-thing"
title = "t"
texts = ["something happened"]
when = "w"
cause = "c."
remedy = "r"
source = "s"
example = "something happened"
"""


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('id = "one-thing"', 'id = "One Thing"', "id"),
        ('texts = ["something happened"]', "texts = []", ""),
        ('texts = ["something happened"]', 'text = ["something happened"]', "texts"),
        ('example = "something happened"', "", ""),
        ('source = "s"', 'source = "s"\npackages = ["not a requirement!"]', "packages"),
        ('cause = "c."', 'cause = ""', "cause"),
        ('cause = "c."', 'cause = "c."\nnumber = "below 75"', "number"),
        ('cause = "c."', 'cause = "c."\nnumber = "<75"', ""),
        ('cause = "c."', 'cause = "c."\nwithin = 0', "within"),
        ('cause = "c."', 'cause = "c."\nversions = ["vllm 0.11"]', "versions"),
        ('example = "something happened"', 'example = "something happened"\n[[failures.remedies]]\nremedy = "r"', ""),
    ],
)
def test_a_mistake_in_the_catalogue_is_reported_with_its_place(old: str, new: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(ENTRY.replace(old, new))
    with pytest.raises(DcaError) as refused:
        failures.load(tmp_path)
    assert refused.value.code == "DCA-202"
    assert "line " in refused.value.what
    assert named in str(refused.value)


def test_an_id_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.toml").write_text(ENTRY)
    with pytest.raises(DcaError, match="one-thing"):
        failures.load(tmp_path)


def test_the_cause_of_a_consequence_is_in_the_catalogue(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(ENTRY.replace('source = "s"', 'source = "s"\nconsequence_of = ["one-thin"]'))
    with pytest.raises(DcaError, match="one-thin") as refused:
        failures.load(tmp_path)
    assert "one-thing" in refused.value.remedy


# --- the command ---------------------------------------------------------------------------------------------


def run(*arguments: str | Path, log: bytes = b"") -> subprocess.CompletedProcess[str]:
    return run_dca("explain", *arguments, env={"PATH": "/usr/bin:/bin"}, data=log)


@pytest.mark.slow
def test_a_log_is_explained(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    log.write_text(BEFORE + LOUD[0].example)
    done = run(log)
    assert done.returncode == 0, done.stderr
    assert f"What happened: {LOUD[0].title} ({LOUD[0].id})" in done.stdout
    assert f"Next: {LOUD[0].remedy}" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
def test_standard_input_is_explained_as_json() -> None:
    document = json.loads(run("-", "--json", log=NEEDLE).stdout)
    assert (document["schema"], document["log"], document["found"][0]["id"]) == (
        "dca.explanation/2",
        "standard input",
        "cuda-home-unset",
    )


@pytest.mark.slow
def test_the_schema_is_that_of_what_is_printed() -> None:
    schema = json.loads(run("--schema").stdout)
    document = json.loads(run("-", "--json", log=NEEDLE).stdout)
    assert set(document) == set(schema["properties"])


def test_an_unknown_failure_ends_with_1() -> None:
    done = run("-", log=b"RuntimeError: something new\n")
    assert done.returncode == 1
    assert "RuntimeError: something new" in done.stdout
    assert done.stderr.startswith("DCA-106: ")


@pytest.mark.parametrize("name", ["DCA-606", "dca-606", "DCA-812", "jobs-divided", "Compiler-Killed"])
def test_a_code_or_a_name_is_explained(name: str) -> None:
    done = run(name)
    assert done.returncode == 0, done.stderr
    assert "Next: " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "DCA-201: no log or code is named"),
        (["/no/such.log"], "DCA-204: /no/such.log does not exist"),
        (["compiler-kiled"], "did you mean compiler-killed?"),
        (["DCA-6060"], "did you mean DCA-60"),
    ],
)
def test_a_mistake_gets_one_message(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_everything_that_is_known_is_listed() -> None:
    listed = run("--list").stdout.splitlines()
    assert {line.split()[0] for line in listed} >= {failure.id for failure in ALL.failures} | set(ALL.codes)


# --- messages of other commands ------------------------------------------------------------------------------


def test_the_message_of_a_failed_program_says_what_is_known_of_it() -> None:
    done = runner.run(["/bin/sh", "-c", f"echo fine; echo '{NEEDLE.decode()}'; echo last words; exit 1"])
    quoting = DcaError("DCA-703", "setup.py failed.", why="last words", remedy="see the log.", output=done.tail)
    assert [known.id for known in explanation_of(quoting)] == ["cuda-home-unset"]


def test_a_message_about_something_else_is_not_explained_by_an_earlier_program() -> None:
    runner.run(["/bin/sh", "-c", f"echo '{NEEDLE.decode()}'; exit 1"])
    assert explanation_of(DcaError("DCA-303", "not that CUDA.", why="it is 12.9.", remedy="another.")) == ()


@pytest.mark.slow
def test_a_command_that_fails_on_a_program_says_what_is_known(tmp_path: Path) -> None:
    stand_in = tmp_path / "conda"
    words = "echo 'error: RPC failed; curl 56 GnuTLS recv error'\necho 'CondaError: no more'\nexit 1\n"
    stand_in.write_text(f"#!/bin/sh\n{words}")
    stand_in.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(ROOT / "scripts"), "HOME": str(tmp_path)}
    done = run_dca("env", "--engine", "conda", "--cache-dir", tmp_path / "cache", "--json", env=env)
    assert done.stderr.startswith("DCA-107: ")
    assert "  Known: a repository could not be cloned (git-unreachable)." in done.stderr
    assert [known["id"] for known in json.loads(done.stdout)["known"]] == ["git-unreachable"]
