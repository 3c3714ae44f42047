"""`dca smoke` on the wheel: what it proves, what it finds, and what it says of wrong input."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dca.catalogue import recipes
from dca.cli.smoke import render as render_text
from dca.foundation import documents, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.foundation.store import Store
from dca.pipeline.wheel import Made
from dca.smoke import CaseResult, Request, Smoke, prove, smoke, subject
from dca.smoke.report import render
from dca.smoke.values import KNOWN
from dca.sources import fetch
from tests.support import RunDca

BACKEND = "vllm/attention/backends/dual_chunk_flash_attn.py"
KERNEL = "csrc/attention/vertical_slash_index.cu"
# Defect D1 of the fork: the subtraction closes one factor too late.
RIGHT, WRONG = ".clip(min=0)) * chunk_len", ".clip(min=0) * chunk_len)"


@pytest.fixture(scope="module")
def overlay(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's backend with defect D1 put into it."""
    folder = tmp_path_factory.mktemp("overlay")
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(BACKEND, folder))
    file.write_text(with_d1(file.read_text()))
    return folder


def with_d1(text: str) -> str:
    assert text.count(RIGHT) == 1
    return text.replace(RIGHT, WRONG)


def report_from(output: str) -> Smoke:
    return Smoke.model_validate({**json.loads(output), "schema": "dca.smoke/1"})


def test_static_reads_the_wheel_alone(dca: RunDca, wheel: Path) -> None:
    done = dca("smoke", wheel, "--level", "static", "--json")
    assert done.returncode == 0, done.stderr
    report = report_from(done.stdout)
    assert {case.name for case in report.cases} == {
        "static/files",
        "static/backend",
        "static/ops",
        "static/archs",
        "static/schemas",
    }
    assert report.torch == ""
    assert any("--level cpu" in text for text in report.not_proven)


def test_an_arch_that_it_was_not_built_for_fails(dca: RunDca, wheel: Path) -> None:
    done = dca("smoke", wheel, "--level", "static", "--arch", "12.0", "--case", "static/archs")
    assert done.returncode == 8
    assert "DCA-801" in done.stderr
    assert "_C.abi3.so does not run on 12.0" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "row_blocks"), [(["--quick"], 2_000), pytest.param([], 100_000, marks=pytest.mark.whole)]
)
def test_cpu_proves_the_wheel(dca: RunDca, wheel: Path, made: Made, words: list[str], row_blocks: int) -> None:
    done = dca("smoke", wheel, "--level", "cpu", *words, "--json")
    assert done.returncode == 0, done.stderr
    report = report_from(done.stdout)
    assert report.passed
    names = {case.name for case in report.cases}
    for chunks in ("one-chunk", "two-chunks", "three-chunks", "five-chunks"):
        for kind in ("dense", "sparse"):
            assert {
                f"prefill/{kind}/{chunks}",
                f"prefill/{kind}/{chunks}/in-pieces",
                f"decode/{kind}/{chunks}",
            } <= names
    random = next(case for case in report.cases if case.name == "conversion/random")
    assert random.figures["row blocks"] >= row_blocks
    for case in report.cases:
        if "away from dense" in case.figures:
            assert case.figures["away from dense"] > 1000 * case.figures["largest difference"], "sparse and yet dense"
    tree = documents.read(fetch.Tree, Path(made.run) / "source.json")
    kernel = next(source for source in report.sources if source.path == KERNEL)
    assert kernel.sha256 == store.sha256_file(tree.path("source") / KERNEL)
    assert "according to the wheel's record" in kernel.origin
    assert any("--level gpu" in text for text in report.not_proven)
    assert all(f"--seed {report.seed}" in case.repeat for case in report.cases if case.level == "cpu")


@pytest.mark.whole
def test_a_fault_is_found_and_its_case_can_be_repeated(dca: RunDca, wheel: Path, overlay: Path) -> None:
    cases = ("--case", "decode/dense/two-chunks", "--case", "prefill/dense/two-chunks")
    done = dca("smoke", wheel, "--level", "cpu", "--overlay", overlay, "--seed", "3", "--json", *cases)
    assert done.returncode == 8
    report = report_from(done.stdout)
    assert {case.name: case.passed for case in report.cases} == {
        "decode/dense/two-chunks": False,
        "prefill/dense/two-chunks": True,
    }
    assert report.partial
    failed = next(case for case in report.cases if not case.passed)
    assert "decode of tokens 893" in failed.detail
    words = failed.repeat.split()
    assert words[:2] == ["dca", "smoke"]
    again = dca(*words[1:], "--json")
    assert report_from(again.stdout).cases[0].detail == failed.detail


@pytest.mark.whole
def test_several_overlays_are_tried_each_by_itself(dca: RunDca, wheel: Path, overlay: Path, tmp_path: Path) -> None:
    same = tmp_path / "same"
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(BACKEND, same)
    cases = ("--case", "decode/dense/two-chunks", "--case", "decode/dense/three-chunks")
    words = ("smoke", wheel, "--level", "cpu", "--overlay", same, "--overlay", overlay, "-x", *cases)
    done = dca(*words, "--json")
    assert done.returncode == 8, done.stderr
    report = report_from(done.stdout)
    assert [(case.overlay, case.name, case.passed) for case in report.cases] == [
        (str(same), "decode/dense/two-chunks", True),
        (str(same), "decode/dense/three-chunks", True),
        (str(overlay), "decode/dense/two-chunks", False),
    ]
    assert report.partial
    assert f"--overlay {overlay}" in report.cases[-1].repeat
    assert str(same) not in report.cases[-1].repeat
    assert sum(source.path == BACKEND for source in report.sources) == 2
    assert f"decode/dense/two-chunks with {overlay}: " in dca(*words).stderr


@pytest.mark.whole
def test_an_overlay_that_crashes_or_does_not_compile_keeps_the_results_of_the_others(
    dca: RunDca, wheel: Path, made: Made, overlay: Path, tmp_path: Path
) -> None:
    tree = documents.read(fetch.Tree, Path(made.run) / "source.json")
    text = (tree.path("source") / KERNEL).read_text()
    bodies = {
        "crash": text.replace("  column_count[0] =", "  __builtin_trap();\n  column_count[0] ="),
        "none": "no C++",
    }
    words: list[str | Path] = ["smoke", wheel, "--level", "cpu", "--quick", "--json", "--overlay", overlay]
    for name, body in bodies.items():
        file = tmp_path / name / KERNEL
        file.parent.mkdir(parents=True)
        file.write_text(body)
        words += ["--overlay", tmp_path / name]
    same = tmp_path / "same"
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(BACKEND, same)
    cases = ("--case", "conversion/rows", "--case", "decode/dense/two-chunks", "--case", "prefill/sparse/two-chunks")
    done = dca(*words, "--overlay", same, *cases)
    assert done.returncode == 8, done.stderr
    results = {(Path(case.overlay).name, case.name): case for case in report_from(done.stdout).cases}
    assert (
        "SIGILL" in results["crash", "conversion/rows"].detail
        or "SIGTRAP" in results["crash", "conversion/rows"].detail
    )
    assert results["crash", "decode/dense/two-chunks"].passed
    assert not results["crash", "prefill/sparse/two-chunks"].passed
    assert "could not be compiled for the CPU" in results["none", "conversion/compiles"].detail
    assert not results[overlay.name, "decode/dense/two-chunks"].passed
    assert all(case.passed for (name, _), case in results.items() if name == "same")
    assert sum(name == "same" for name, _ in results) == 3
    assert "libcuda" not in done.stderr


@pytest.mark.whole
def test_a_conversion_that_is_another_is_found(dca: RunDca, wheel: Path, made: Made, tmp_path: Path) -> None:
    tree = documents.read(fetch.Tree, Path(made.run) / "source.json")
    text = (tree.path("source") / KERNEL).read_text()
    step = "range_end += BLOCK_SIZE_M;"
    assert step in text
    file = tmp_path / KERNEL
    file.parent.mkdir(parents=True)
    file.write_text(text.replace(step, "range_end += BLOCK_SIZE_M - 1;"))
    done = dca("smoke", wheel, "--level", "cpu", "--overlay", tmp_path, "--quick", "--case", "conversion/random")
    assert done.returncode == 8
    assert "row block" in done.stderr


@pytest.mark.slow
def test_a_source_that_does_not_compile_ends_with_what_to_do(dca: RunDca, wheel: Path, tmp_path: Path) -> None:
    file = tmp_path / KERNEL
    file.parent.mkdir(parents=True)
    file.write_text("this is no C++")
    done = dca("smoke", wheel, "--level", "cpu", "--overlay", tmp_path)
    assert done.returncode == 8
    assert "DCA-803" in done.stderr
    assert "--level static" in done.stderr


@pytest.mark.whole
def test_a_backend_that_does_not_load_fails_as_a_case(dca: RunDca, wheel: Path, tmp_path: Path) -> None:
    file = tmp_path / BACKEND
    file.parent.mkdir(parents=True)
    file.write_text("import nothing_of_that_name\n")
    done = dca("smoke", wheel, "--level", "cpu", "--overlay", tmp_path, "--quick")
    assert done.returncode == 8
    assert "nothing_of_that_name" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("nowhere.whl",), "DCA-204", "not a file"),
        (("{wheel}", "--case", "static/nothing", "--level", "static"), "DCA-201", "no case static/nothing"),
        (("{wheel}", "--overlay", "nowhere"), "DCA-204", "--overlay: nowhere is not a folder"),
        (("{wheel}", "--source", "nowhere"), "DCA-204", "--source: nowhere does not exist"),
        (("{wheel}", "--python", "/etc/passwd"), "DCA-204", "is not a program"),
        (("{wheel}", "--level", "moon"), "DCA-201", "moon"),
        (("{wheel}", "--seed", "-1"), "DCA-201", "-1"),
        (("{wheel}", "--arch", "nine"), "DCA-201", "not a GPU architecture"),
    ],
)
def test_wrong_input_is_told(dca: RunDca, wheel: Path, arguments: tuple[str, ...], code: str, says: str) -> None:
    done = dca("smoke", *(word.replace("{wheel}", str(wheel)) for word in arguments))
    assert done.returncode == int(code[4])
    assert code in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wheel_of_no_known_version_is_told(dca: RunDca, tmp_path: Path) -> None:
    wheel = small_wheel(tmp_path / "vllm-0.11.0-cp38-abi3-linux_x86_64.whl", "0.11.0")
    done = dca("smoke", wheel, "--level", "static")
    assert done.returncode == 8
    assert "DCA-802" in done.stderr
    assert "0.10.2" in done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "numpy-2.3.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        "numpy-0.10.2-py3-none-any.whl",
        "vllm-0.11.0-cp38-abi3-manylinux1_x86_64.whl",
        "vllm-0.10.2rc3-cp38-abi3-manylinux1_x86_64.whl",
        "dca_kernels-0.11.0+dca1.cu130.kernels-cp38-abi3-linux_x86_64.whl",
        "bitsandbytes-0.45.0-py3-none-win_amd64.whl",
    ],
)
def test_a_wheel_of_no_recipe_is_refused_before_it_is_read(name: str, tmp_path: Path) -> None:
    wheel = tmp_path / name
    wheel.write_bytes(b"not even an archive")
    with pytest.raises(DcaError) as refused:
        subject.candidates(wheel, recipes.load_all())
    assert refused.value.code == "DCA-802"
    assert "vllm 0.10.2" in refused.value.why
    with pytest.raises(DcaError) as refused:
        smoke(Request(wheel, "cpu"), recipes.load_all(), Store(tmp_path / "cache"), Silent())
    assert refused.value.code == "DCA-802"


@pytest.mark.parametrize("name", ["vllm-0.10.2+dca9.cu124-cp38-abi3-linux_x86_64.whl", "vllm-0.9.2-py3-none-any.whl"])
def test_a_wheel_of_a_recipe_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not even an archive")
    with pytest.raises(DcaError) as refused:
        smoke(Request(tmp_path / name, "cpu"), recipes.load_all(), Store(tmp_path / "cache"), Silent())
    assert refused.value.code == "DCA-701"


def test_each_run_draws_another_seed() -> None:
    assert len({Request(Path("a.whl"), "cpu").seed for _ in range(9)}) > 1


def test_somebody_elses_wheel_without_the_backend_fails(dca: RunDca, tmp_path: Path) -> None:
    wheel = small_wheel(tmp_path / "vllm-0.10.2-cp38-abi3-linux_x86_64.whl", "0.10.2")
    done = dca("smoke", wheel, "--level", "static")
    assert done.returncode == 8
    assert "static/backend" in done.stderr


@pytest.mark.slow
def test_without_a_wheel_the_newest_of_dist_is_taken(dca: RunDca, tmp_path: Path) -> None:
    done = dca("smoke", "--level", "static", cwd=tmp_path)
    assert done.returncode == 2
    assert "no wheel in dist/" in done.stderr
    (tmp_path / "dist").mkdir()
    for age, version in enumerate(("0.11.0", "0.10.2")):
        wheel = small_wheel(tmp_path / f"dist/vllm-{version}-cp38-abi3-linux_x86_64.whl", version)
        os.utime(wheel, (1_000 + age, 1_000 + age))
    assert "vllm-0.10.2" in dca("smoke", "--level", "static", cwd=tmp_path).stderr


def small_wheel(path: Path, version: str) -> Path:
    """A wheel of nothing but metadata."""
    info = f"vllm-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp38-abi3-linux_x86_64\n",
    }
    write_wheel(path, {name: text.encode() for name, text in files.items()}, f"{info}/RECORD")
    return path


def write_wheel(path: Path, files: dict[str, bytes], record: str) -> None:
    def digest(content: bytes) -> str:
        return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()

    rows = io.StringIO()
    csv.writer(rows, lineterminator="\n").writerows(
        [*((name, digest(content), len(content)) for name, content in files.items()), (record, "", "")]
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, record: rows.getvalue().encode()}.items():
            archive.writestr(name, content)


@pytest.fixture
def forks_wheel() -> Callable[[], Path]:
    """The fork's wheel, which wants its sources to be at hand: DCA_TEST_WHEEL_QWEN_FORK names one."""

    def find() -> Path:
        named = os.environ.get("DCA_TEST_WHEEL_QWEN_FORK")
        if not named:
            pytest.skip("DCA_TEST_WHEEL_QWEN_FORK names no wheel")
        return Path(named)

    return find


@pytest.mark.git
@pytest.mark.slow
def test_the_forks_wheel_with_patch_d1_reverted_turns_red(
    dca: RunDca, forks_wheel: Callable[[], Path], tmp_path: Path
) -> None:
    wheel = forks_wheel()
    source = ("--source", os.environ["DCA_TEST_SOURCE_QWEN_FORK"])
    done = dca("smoke", wheel, "--level", "cpu", "--quick", *source)
    assert done.returncode == 0, done.stderr
    reverted = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}
        record = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
    files[BACKEND] = with_d1(files[BACKEND].decode()).encode()
    write_wheel(reverted, files, record)
    done = dca("smoke", reverted, "--level", "cpu", "--quick", "--json", *source)
    assert done.returncode == 8
    failed = {case.name for case in report_from(done.stdout).cases if not case.passed}
    assert {"decode/dense/two-chunks", "decode/sparse/three-chunks", "decode/batch"} <= failed
    assert not {name for name in failed if name.startswith(("static/", "conversion/", "prefill/dense/one"))}
    shutil.rmtree(tmp_path)


def report_of(*cases: CaseResult) -> str:
    return render(
        Smoke(
            wheel="some.whl",
            sha256="0" * 64,
            version="1",
            recipe="none",
            level="gpu",
            seed=0,
            cases=cases,
            not_proven=("this & that",),
        )
    )


@pytest.mark.parametrize(("visible", "seen"), [(None, "all"), ("1", "1"), ("", "")])
def test_the_gpus_that_are_chosen_are_those_of_the_proof_with_a_stand_in_worker(
    visible: str | None, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "PROOF {\\"seen\\": \\"${CUDA_VISIBLE_DEVICES-all}\\"}"\n')
    python.chmod(0o755)
    env = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert prove(python, {}, tmp_path, Silent(), tmp_path / "log", env=env) == [{"seen": seen}]


def test_the_page_tells_what_failed_and_how_to_repeat_it() -> None:
    page = report_of(
        CaseResult(level="cpu", name="good", proves="all is well", passed=True),
        CaseResult(level="cpu", name="bad", proves="all is well", passed=False, detail="1 < 2", repeat="dca smoke x"),
    )
    assert "1 of 2 cases failed" in page
    assert "1 &lt; 2" in page
    assert "dca smoke x" in page
    assert "this &amp; that" in page
    assert not re.search(r"(src|href)=|https?:|@import|<script", page), "it must need nothing else"


def test_a_known_fault_is_shown_and_condemns_nothing() -> None:
    case = CaseResult(level="gpu", name="a", proves="b", passed=True, figures={KNOWN: "its last row is lost"})
    page = report_of(case)
    assert "All 1 cases passed" in page
    assert ">note<" in page
    assert "its last row is lost" in page
    text = render_text(
        Smoke(wheel="w", sha256="0" * 64, version="1", recipe="none", level="gpu", seed=0, cases=(case,)), verbose=False
    )
    assert "note  a  b; known fault 1\n" in text
    assert text.count("known fault 1  its last row is lost") == 1


def test_a_case_that_could_not_be_tested_is_neither_right_nor_wrong() -> None:
    case = CaseResult(level="kernels", name="a", proves="b", passed=False, tested=False, detail="no PTX (DCA-835)")
    report = Smoke(wheel="w", sha256="0" * 64, version="1", recipe="none", level="kernels", seed=0, cases=(case,))
    assert (report.passed, report.failed, report.untested) == (False, (), (case,))
    page = render(report)
    assert "1 of 1 cases could not be tested" in page
    assert ">??<" in page
    text = render_text(report)
    assert "??    a  no PTX (DCA-835)" in text
    assert "not proven  1 case that could not be tested (??)." in text
    # Its reason stands beside it alone.
    assert text.count("no PTX") == 1


def test_the_page_draws_the_speed_curve() -> None:
    curve = [{"tokens": 1 << n, "dense ms": 4.0**n, "sparse ms": 4.0**n / (n - 14)} for n in (15, 17, 20)]
    page = report_of(CaseResult(level="gpu", name="speed", proves="times", passed=True, figures={"curve": curve}))
    assert page.count("<circle") == 3
    for words in ("32K", "128K", "1024K", "6.00", "1,048,576"):
        assert words in page
    single = report_of(CaseResult(level="gpu", name="s", proves="t", passed=True, figures={"curve": curve[:1]}))
    assert single.count("<circle") == 1


def test_the_page_is_written_for_a_wheel_that_fails_too(dca: RunDca, wheel: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = dca("smoke", wheel, "--level", "static", "--arch", "12.0", "--report", page, "--quiet")
    assert done.returncode == 8
    assert "static/archs" in page.read_text()
    below_a_file = dca("smoke", wheel, "--level", "static", "--report", page / "page.html")
    assert "DCA-204" in below_a_file.stderr
