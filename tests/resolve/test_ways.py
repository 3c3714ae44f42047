"""What a refusal says: the nearest recipe, and the ways out of it, each of which leads to a plan."""

from __future__ import annotations

import dataclasses
import re
import shlex

import pytest
from hypothesis import given, settings

from dca.catalogue import recipes
from dca.catalogue.machine import Compiler, Gpu
from dca.catalogue.plan import Cannot, LocalTree, Plan, Request
from dca.catalogue.toolkits import FoundToolkit
from dca.foundation.errors import DcaError
from dca.pipeline import gather
from dca.resolve import World, resolve
from tests.resolve.test_resolve import (
    CUDA13,
    DEBIAN,
    FORK,
    NAMES,
    PYTHON,
    TRIXIE,
    UPSTREAM,
    machine,
    reach,
    requests,
    world,
    worlds,
)
from tests.support import examples

A100, T400 = Gpu(name="NVIDIA A100", arch="8.0"), Gpu(name="NVIDIA T400", arch="7.5")
GCC13 = Compiler(path="/usr/bin/g++", major=13, version="13.2.0")
GCC14 = Compiler(path="/usr/bin/g++", major=14, version="14.2.0")


def kit(version: str, origin: str = "nvcc on PATH") -> FoundToolkit:
    return FoundToolkit(path=f"/cuda-{version}", version=version, origin=origin)


def cannot(request: Request, seen: World) -> Cannot:
    outcome = resolve(request, seen)
    assert isinstance(outcome, Cannot), outcome.version
    return outcome


def error(request: Request, seen: World) -> DcaError:
    return gather.refusal(request, cannot(request, seen))


INDEX_ALONE = reach(apt=False)
LOCAL = {
    name: LocalTree(path="/src", kind="git") for name in ("source", "flash-attention", "flash-attention/csrc/cutlass")
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "seen", "nearest", "code", "says", "way"),
    [
        pytest.param(
            Request(), world(reached=INDEX_ALONE), UPSTREAM, "DCA-302", "no CUDA toolkit", "--prebuilt all", id="index"
        ),
        pytest.param(
            Request(cuda="12.1"),
            world(machine(toolkits=()), INDEX_ALONE),
            UPSTREAM,
            "DCA-302",
            "no mirror",
            "--prebuilt all",
            id="index alone and a CUDA version",
        ),
        pytest.param(
            Request(), world(machine(gpus=(A100, T400))), UPSTREAM, "DCA-305", "7.5", "--arch 8.0 ", id="two GPUs"
        ),
        pytest.param(
            Request(archs=("7.0", "8.6", "9.0")),
            world(),
            UPSTREAM,
            "DCA-305",
            "7.0",
            "--arch 8.6,9.0 ",
            id="three archs",
        ),
        pytest.param(
            Request(cuda="12.1", strict_cuda=True),
            world(machine(toolkits=(kit("12.1.105"),), compilers=(GCC13,), installer=TRIXIE), reach(git=True)),
            FORK,
            "DCA-308",
            "it needs gcc 12 or older; installed g++: 13.2.0.",
            "apt install g++-12",
            id="a strict CUDA 12.1 and g++ 13",
        ),
        pytest.param(
            Request(cuda="12.1"),
            world(
                machine(toolkits=(kit("12.1.105"),), compilers=(GCC13,), installer=TRIXIE), reach(git=True, apt=False)
            ),
            FORK,
            "DCA-308",
            "it needs gcc 12 or older; installed g++: 13.2.0.",
            "apt install g++-12",
            id="CUDA 12.1 and g++ 13",
        ),
        pytest.param(
            Request(source="/src"),
            world(
                machine(toolkits=(kit("12.3.107"),), compilers=(GCC14,), installer=TRIXIE),
                reach(apt=False, local=LOCAL),
            ),
            FORK,
            "DCA-308",
            "installed g++: 14.2.0",
            "apt install g++-12",
            id="a local fork and g++ 14",
        ),
        pytest.param(
            Request(), world(machine(compilers=())), UPSTREAM, "DCA-308", "g++: none", "--prebuilt all", id="no g++"
        ),
        pytest.param(
            Request(cuda="13.1"),
            world(),
            UPSTREAM,
            "DCA-303",
            "A driver of CUDA 13.1 runs what CUDA 12.x compiles",
            "leave --cuda out: CUDA 12.4 compiles",
            id="what nvidia-smi of a new driver prints",
        ),
        pytest.param(
            Request(toolkit="/cuda-12.2.140"),
            world(machine(toolkits=(kit("12.2.140", "--toolkit"),))),
            UPSTREAM,
            "DCA-302",
            "supports only",
            "leave --toolkit out",
            id="a toolkit outside of the range",
        ),
        pytest.param(
            Request(),
            world(machine(toolkits=(kit("12.2.140"),)), INDEX_ALONE),
            UPSTREAM,
            "DCA-302",
            "supports only",
            "--try-toolkit",
            id="only a toolkit outside of the range",
        ),
        pytest.param(
            Request(archs=("9.0",), driver="550.54", prebuilt_whole=True),
            world(),
            UPSTREAM,
            "DCA-313",
            "_vllm_fa2_C has only PTX of CUDA 12.8 for 9.0",
            "leave --prebuilt-whole out",
            id="PTX that the driver does not compile",
        ),
        pytest.param(
            Request(recipe="vllm-0.9.2", groups=("fp8",)),
            world(),
            "vllm-0.9.2",
            "DCA-309",
            "has no group `fp8`",
            "leave --with fp8 out",
            id="a group of another recipe",
        ),
        pytest.param(
            Request(),
            world(machine(python=PYTHON.model_copy(update={"headers": False}), installer=DEBIAN)),
            UPSTREAM,
            "DCA-306",
            "no headers",
            "apt install python3.11-dev",
            id="no headers",
        ),
        pytest.param(
            Request(),
            world(reached=reach(index=False)),
            UPSTREAM,
            "DCA-300",
            "the package index cannot be reached",
            "check the network",
            id="no index",
        ),
    ],
)
def test_a_refusal_names_the_nearest_recipe_its_reason_and_the_way(
    request_: Request, seen: World, nearest: str, code: str, says: str, way: str
) -> None:
    outcome, told = cannot(request_, seen), error(request_, seen)
    assert (outcome.nearest, told.code) == (nearest, code)
    # The nearest recipe's reasons come first, and the ways before anything else that can be done.
    assert says in told.why.split("\n")[0]
    assert way in told.remedy
    assert tuple(told.remedy.split("\n")[: len(outcome.ways)]) == outcome.ways


@pytest.mark.parametrize(("processor", "system"), [("ppc64le", "Linux"), ("arm64", "Darwin"), ("aarch64", "Darwin")])
def test_another_kind_of_machine_is_the_only_reason(processor: str, system: str) -> None:
    seen = world(machine(processor=processor, system=system, compilers=(), toolkits=()), reach(apt=False))
    told = error(Request(cuda="12.1"), seen)
    assert told.code == "DCA-310"
    assert told.why == f"wheels are built on Linux x86_64 or aarch64; this machine is {system} {processor}."
    assert "toolkit" not in told.remedy


@pytest.mark.parametrize("profile", ["lean", "full"])
def test_a_torch_without_cuda_for_the_processor_is_the_only_reason_and_each_way_out_of_it_is_one(profile: str) -> None:
    everything = recipes.load_all()
    seen = world(machine(processor="aarch64", compilers=(), toolkits=()), reach(apt=False, index=False), everything)
    told = error(Request(cuda="12.1", recipe=UPSTREAM, profile=profile), seen)
    assert (told.code, told.why.count("\n")) == ("DCA-310", 0)
    assert told.why.startswith("for aarch64 the package index has torch 2.8.0 only without CUDA.")
    assert "pip install vllm==0.10.2" in told.remedy
    able = world(machine(processor="aarch64", toolkits=()), reach(git=True), everything)
    ways = re.findall(r"--recipe (\S+)(?: --profile (\S+))? builds", told.remedy)
    assert len(ways) == 2
    for name, wanted in ways:
        assert isinstance(resolve(Request(recipe=name, profile=wanted or "lean"), able), Plan)


def test_a_torch_that_nobody_has_looked_at_is_not_believed_to_have_cuda_on_another_processor() -> None:
    request = Request(recipe=UPSTREAM, profile="kernels")
    seen = world(machine(processor="aarch64", toolkits=()), reach(git=True))
    assert isinstance(resolve(request, seen), Plan)
    assert error(request, dataclasses.replace(seen, torch=())).code == "DCA-310"


def test_the_reason_against_every_recipe_is_said_once_and_of_others_the_first_sentence() -> None:
    told = error(Request(), world(machine(toolkits=(CUDA13,)), INDEX_ALONE))
    lines = told.why.split("\n")
    assert [line.partition(":")[0] for line in lines] == [UPSTREAM, *(name for name in NAMES if name != UPSTREAM)]
    # Of toolkits that could be downloaded, only those that suit the recipe are mentioned.
    assert "12.1.105" not in lines[0]
    assert all(len(line) < 200 for line in lines[1:])


@pytest.mark.slow
@given(requests, worlds)
@settings(max_examples=examples(100), deadline=None)
def test_every_option_that_a_way_names_leads_to_a_plan(request: Request, seen: World) -> None:
    outcome = resolve(request, seen)
    if isinstance(outcome, Plan):
        return
    assert outcome.nearest in {over.name for over in outcome.passed_over}
    for way in outcome.ways:
        assert isinstance(resolve(_followed(request, way), seen), Plan), way


def _followed(request: Request, way: str) -> Request:
    """The request of somebody who does what a way says."""
    changes: dict[str, object] = {}
    for part in re.split(r", and (?=leave --|--)", way.removesuffix(".")):
        words = shlex.split(part.replace("'", ""))
        without: dict[str, dict[str, object]] = {
            "--strict-cuda": {"strict_cuda": False},
            "--toolkit": {"toolkit": None},
            "--cuda": {"cuda": None, "strict_cuda": False},
            "--python": {"python": None},
            "--with": {"groups": tuple(group for group in request.groups if group != words[2])},
            "--prebuilt": {"prebuilt": tuple(name for name in request.prebuilt if name != words[2])},
            "--prebuilt-whole": {"prebuilt_whole": False},
        }
        given: dict[str, dict[str, object]] = {
            "--arch": {"archs": tuple(words[1].split(","))},
            "--prebuilt": {"prebuilt": ("all",), "toolkit": None},
            "--try-toolkit": {"try_toolkit": True},
            "--recipe": {"recipe": words[1]},
        }
        changes |= without[words[1]] if words[0] == "leave" else given[words[0]]
    return request.model_copy(update=changes)
