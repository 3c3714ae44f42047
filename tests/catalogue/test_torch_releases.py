"""The releases of torch, and what a version says of CUDA and the C++ ABI."""

from __future__ import annotations

import pytest

from dca.catalogue import torch_releases
from dca.catalogue.recipes import Loaded
from dca.foundation.errors import DcaError


@pytest.mark.parametrize(
    ("text", "cuda", "abi"),
    [
        ("2.8", "12.8", True),
        ("2.8.0", "12.8", True),
        ("2.8.0+cu129", "12.9", True),
        ("2.5.1", "12.4", False),
        ("2.6.0+cu124", "12.4", False),
        ("2.6.0+cu126", "12.6", None),
        ("2.8.0+cpu", "", True),
        ("2.6.0+cpu", "", None),
        ("1.13", "", None),
        ("9.9", "", None),
    ],
)
def test_a_version_says_cuda_and_abi_as_far_as_they_are_known(text: str, cuda: str, abi: bool | None) -> None:
    torch = torch_releases.parse(text)
    assert (torch.cuda, torch.cxx11_abi) == (cuda, abi)


@pytest.mark.parametrize("text", ["", "new", "2.8+"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(DcaError, match="is not a version"):
        torch_releases.parse(text)


def test_the_table_agrees_with_the_recipes(all_recipes: tuple[Loaded, ...]) -> None:
    for loaded in all_recipes:
        torch = torch_releases.parse(loaded.recipe.torch.version)
        assert (torch.cuda, torch.cxx11_abi) == (loaded.recipe.torch.cuda, loaded.recipe.torch.cxx11_abi)
