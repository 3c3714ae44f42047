"""The cases of level `static` on made-up inspections: what is wrong, and what a wheel lacks by design."""

from __future__ import annotations

import pytest

from dca.catalogue import recipes
from dca.catalogue.model_needs import Coverage
from dca.inspection import INDEX_OP, SPARSE_OP, Inspection
from dca.inspection.values import InspectedModule, Recorded
from dca.smoke import static

RECIPE = recipes.find("vllm-0.10.2", recipes.load_all()).recipe
INDEX = (INDEX_OP, f"{INDEX_OP}_mergehead")


def inspected(groups: tuple[str, ...], ops: tuple[str, ...], *, sparse_functions: bool = True) -> Inspection:
    recorded = Recorded.model_construct(
        recipe=RECIPE.name, profile="lean", groups=groups, serves=Coverage(), origins={}, hashes={}
    )
    module = InspectedModule.model_construct(
        path="vllm/_C.abi3.so", sass={"8.0": 1}, ptx={}, reached={}, schemas=tuple(f"_C::{op}() -> ()" for op in ops)
    )
    return Inspection.model_construct(
        asked=("8.0",),
        modules=(module,),
        dca_backend=True,
        sparse_functions=sparse_functions,
        recorded=recorded,
        problems=(),
    )


def failures(wheel: Inspection) -> list[str]:
    """The failed cases; the made-up ops do not have the schemas of real ones."""
    failed = [case.name for case in static.check(wheel, RECIPE) if not case.passed]
    return [name for name in failed if name != "static/schemas"]


@pytest.mark.parametrize(
    ("groups", "ops", "failed", "left_out"),
    [
        (("index-only",), INDEX, [], SPARSE_OP),
        # What the group promises is still required.
        (("index-only",), INDEX[:1], ["static/ops"], SPARSE_OP),
        (("index-only",), (), ["static/ops"], SPARSE_OP),
        # A wheel to serve with leaves nothing of dual chunk attention out by design.
        (RECIPE.lean.groups, (*INDEX, SPARSE_OP), [], ""),
        (RECIPE.lean.groups, INDEX, ["static/ops"], ""),
        ((), INDEX, ["static/ops"], ""),
    ],
)
def test_what_a_wheel_lacks_by_design_is_not_what_is_wrong(
    groups: tuple[str, ...], ops: tuple[str, ...], failed: list[str], left_out: str
) -> None:
    wheel = inspected(groups, ops)
    assert failures(wheel) == failed
    texts = static.left_out(wheel, RECIPE)
    assert bool(texts) == bool(left_out)
    assert all(left_out in text and "not a wheel to serve with" in text for text in texts)


@pytest.mark.parametrize(("groups", "failed"), [(("index-only",), []), (RECIPE.lean.groups, ["static/backend"])])
def test_the_python_of_the_sparse_kernels_belongs_to_the_kernels(groups: tuple[str, ...], failed: list[str]) -> None:
    wheel = inspected(groups, (*INDEX, SPARSE_OP), sparse_functions=False)
    assert failures(wheel) == failed
