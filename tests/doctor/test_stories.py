"""What people set out to do before they serve, asked of stand-in machines, data and the catalogue."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from dca.catalogue import logs, recipes
from dca.catalogue.recipes import GitSource
from dca.foundation import data
from tests.support.machines import Machine

CLONE = """Cloning into 'vllm'...
git@github.com: Permission denied (publickey).
fatal: Could not read from remote repository.

Please make sure you have the correct access rights
and the repository exists.
"""


@pytest.mark.parametrize(
    ("transformers", "number", "wrong"),
    [
        ("4.48.2", "3.9.21", set()),
        ("4.36.2", "3.12.4", {"python.transformers"}),
        ("4.48.2", "3.13.1", {"python.version"}),
        ("4.48.2", "3.8.20", {"python.version"}),
    ],
)
def test_story_a2_what_the_documents_ask_for_is_checked_on_a_stand_in_machine(
    machine: Machine, transformers: str, number: str, wrong: set[str]
) -> None:
    machine.recipe("qwen-fork")
    machine.more = {"python": machine.python({"transformers": transformers, "torch": "2.5.1"}, number=number)}
    results = machine.report("python.transformers", "python.version", purpose="serve").results
    assert {one.code for one in results if one.status == "wrong"} == wrong


def test_story_a3_the_forks_branch_is_taken_without_a_key_and_the_documents_clone_is_explained() -> None:
    source = recipes.find("qwen-fork", recipes.load_all()).recipe.source
    assert isinstance(source, GitSource)
    assert source.branch == "dev/dual-chunk-attn"
    assert source.pin.startswith("commit:")
    assert all(url.startswith("https://github.com/") for url in source.urls)
    (found,) = logs.explain_lines(CLONE.splitlines())
    assert found.id == "git-unreachable"
    assert "https://github.com/" in found.remedy


def test_story_c1_torch_is_the_one_that_the_wheel_was_built_for() -> None:
    for loaded in recipes.load_all():
        pins = [
            Requirement(line.partition("\\")[0].strip())
            for line in (data.locks_folder(loaded.recipe.name) / "run.txt").read_text().splitlines()
            if line.startswith("torch==")
        ]
        assert pins
        assert all(str(pin.specifier).split("+")[0] == f"=={loaded.recipe.torch.version}" for pin in pins)
