"""A kernel that ends its process, or never returns, is a failed case; the other cases and variants still run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.smoke import prove

# What the index conversion does in the place of its work, and how its case fails.
FAULTS = {
    "segfault": ("*(volatile int *)16 = 1;", "it crashed with SIGSEGV (Segmentation fault)"),
    "exception": ('throw std::runtime_error("no such device");', "what():  no such device"),
    "exit": ("exit(0);", "it ended its process with status 0"),
    "status": ("_exit(3);", "it ended its process with status 3"),
    "endless": ("for (volatile int i = 0;; i = i) {}", "it did not end within 2 s"),
    "nothing": ("", "row blocks were not written"),
}
KERNEL = """
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <unistd.h>
#include <cstdint>
extern "C" void convert(int*, int*, int*, int*, int*, int*, int*, int*, int*, int*, int64_t, int64_t, int64_t, int64_t,
                        int64_t, int causal) { %s }
"""
CASES = ("conversion/random", "conversion/borders", "oracle/known")


def library(folder: Path, name: str, body: str) -> str:
    source = folder / f"{name}.cpp"
    source.write_text(KERNEL % body)
    file = source.with_suffix(".so")
    subprocess.run(["g++", "-O1", "-shared", "-fPIC", source, "-o", file], check=True)
    return str(file)


def proven(
    python: Path, folder: Path, kernels: dict[str, str], *, first: bool = False, case_seconds: float = 60
) -> list[dict[str, Any]]:
    variants = [{"name": name, "oracle": None, "overlay": None, "kernel": file} for name, file in kernels.items()]
    request = {
        "wheel": "",
        "driver": None,
        "threads": 1,
        "rows": 100,
        "sampled": 2,
        "case_seconds": case_seconds,
        "seed": 1,
        "modules": None,
        "variants": variants,
        "cases": CASES,
        "first": first,
    }
    return prove(
        python, request, folder, Silent(), folder / "log", env={"DCA_EMULATION_FINDINGS": str(folder / "found")}
    )


@pytest.mark.long
@pytest.mark.slow
def test_a_crash_is_a_failed_case_in_its_own_words(build_python: Path, tmp_path: Path) -> None:
    kernels = {name: library(tmp_path, name, body) for name, (body, _) in FAULTS.items()}
    # One that is not even a library.
    (tmp_path / "none.so").write_text("this is no library")
    endless = {"endless": kernels.pop("endless")}
    lines = proven(build_python, tmp_path, {**kernels, "unloadable": str(tmp_path / "none.so")})
    lines += proven(build_python, tmp_path, endless, case_seconds=2)
    for name, (_, words) in FAULTS.items():
        of_variant = {line["case"]: line for line in lines if line.get("variant") == name}
        assert list(of_variant) == ["oracle/known", "conversion/random", "conversion/borders"]
        assert of_variant["oracle/known"]["passed"] is True
        for case in ("conversion/random", "conversion/borders"):
            assert of_variant[case]["passed"] is False
            assert words in of_variant[case]["detail"]
            assert of_variant[case]["seed"] == 1
    assert [line["broken"] for line in lines if line.get("variant") == "unloadable"]
    ended = proven(build_python, tmp_path, {name: kernels[name] for name in ("segfault", "nothing")}, first=True)
    told = [(line["variant"], line["case"]) for line in ended if "case" in line]
    assert told == [(name, case) for name in ("segfault", "nothing") for case in ("oracle/known", "conversion/random")]


@pytest.mark.long
@pytest.mark.slow
def test_what_an_emulated_gpu_finds_fails_the_case_that_ran(build_python: Path, tmp_path: Path) -> None:
    finding = {"kind": "race", "kernel": "convert", "text": "two warps write one place", "block": [1, 0, 0], "warp": 2}
    finding |= {"lane": 3, "ptx_line": 40, "source": "a.cu:7"}
    line = json.dumps(json.dumps(finding) + "\n")
    body = f'FILE *to = fopen(getenv("DCA_EMULATION_FINDINGS"), "a"); fputs({line}, to); fclose(to);'
    results = {
        line["case"]: line for line in proven(build_python, tmp_path, {"": library(tmp_path, "racing", body)})[1:]
    }
    assert results["oracle/known"]["passed"]
    detail = results["conversion/random"]["detail"]
    assert detail == ("convert: two warps write one place (race; block (1, 0, 0), warp 2, lane 3, PTX line 40, a.cu:7)")
    assert not results["conversion/random"]["passed"]


END = {"kind": "end", "code": "DCA-835", "text": "the kernel one cannot be emulated.\n  Why:  no PTX\n  Next: give it"}
KNOWN_FAULT = {"kind": "known", "kernel": "one", "text": "it writes behind its end."}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "then", "tested", "detail"),
    [
        ([END | {"why": ""}], "_exit(8);", False, "the kernel one cannot be emulated. no PTX (DCA-835)"),
        pytest.param(
            [KNOWN_FAULT, END | {"why": "x"}],
            "_exit(8);",
            False,
            "one cannot be emulated. no PTX x (DCA-835)",
            marks=pytest.mark.long,
        ),
        ([END | {"code": "DCA-837", "why": ""}], "_exit(8);", True, "cannot be emulated. no PTX (DCA-837)"),
        pytest.param([KNOWN_FAULT], "_exit(3);", True, "it ended its process with status 3", marks=pytest.mark.long),
    ],
)
def test_a_case_that_the_emulated_gpu_cannot_run_is_told_from_one_that_fails(
    build_python: Path, tmp_path: Path, lines: list[dict[str, str]], then: str, tested: bool, detail: str
) -> None:
    text = json.dumps("".join(json.dumps(line) + "\n" for line in lines))
    body = f'FILE *to = fopen(getenv("DCA_EMULATION_FINDINGS"), "a"); fputs({text}, to); fclose(to); {then}'
    kernel = library(tmp_path, "ending", body)
    results = [line for line in proven(build_python, tmp_path, {"": kernel}, first=True) if "case" in line]
    assert detail in results[1]["detail"]
    assert (results[1]["passed"], results[1].get("tested", True)) == (False, tested)
    # The first failed case ends a variant, and one that could not be tested does not.
    assert [line["case"] for line in results[2:]] == ([] if tested else ["conversion/borders"])


@pytest.mark.long
@pytest.mark.slow
def test_a_process_that_is_killed_from_outside_is_no_finding(build_python: Path, tmp_path: Path) -> None:
    kernel = library(
        tmp_path, "killed", 'fputs("libcuda.so.1: cannot open shared object file\\n", stderr); raise(SIGKILL);'
    )
    with pytest.raises(DcaError) as error:
        proven(build_python, tmp_path, {"": kernel})
    assert error.value.code == "DCA-804"
    assert "SIGKILL killed the process of a case" in error.value.why
    assert "libcuda" not in "\n".join(error.value.output)
