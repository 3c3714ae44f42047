"""The `static` level: what a wheel's files say, without running any of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from dca import inspection, ops
from dca.inspection import INDEX_OP, SPARSE_OP, Inspection
from dca.recipes import Recipe
from dca.smoke.values import CaseResult

# What the backend calls; a wheel that has one and lacks the other dies at its first long prompt.
INDEX_OPS = (INDEX_OP, f"{INDEX_OP}_mergehead")


def check(found: Inspection, recipe: Recipe) -> tuple[CaseResult, ...]:
    """The static cases of an inspected wheel."""
    return tuple(_cases(found, recipe))


def _cases(found: Inspection, recipe: Recipe) -> Iterator[CaseResult]:
    own = found.recorded is not None
    yield _case(
        "files",
        "its files are what RECORD and its own record say",
        list(found.problems) if own else [],
        {} if own or not found.problems else {"noticed": list(found.problems)},
    )
    lacking = []
    if not found.dca_backend:
        lacking.append("the attention backend is not in it")
    if not found.sparse_functions:
        lacking.append("the Python around the sparse kernels is not in it")
    yield _case("backend", "the dual chunk attention backend is there", lacking)
    lacking = [f"no module registers {op}" for op in (*INDEX_OPS, SPARSE_OP) if not _holders(found, op)]
    told = {op: next(iter(_holders(found, op)), "") for op in (*INDEX_OPS, SPARSE_OP)}
    yield _case("ops", "the index conversion and the sparse attention are registered", lacking, told)
    archs = {
        module.path: sorted({*module.sass, *(f"{arch}+PTX" for arch in module.ptx)})
        for module in found.modules
        if module.registers(INDEX_OP) or module.registers(SPARSE_OP)
    }
    yield _case("archs", _archs(found), inspection.unreached(found), archs)
    if own and recipe.official_wheel and recipe.official_wheel.schemas:
        yield _schemas(found, recipe.official_wheel.schemas)


def _archs(found: Inspection) -> str:
    return f"its kernels run on {', '.join(found.asked)}" if found.asked else "its kernels hold code for GPUs"


def _schemas(found: Inspection, official: dict[str, str]) -> CaseResult:
    """Compare the schemas that were recorded when the modules were loaded with the official wheel's."""
    schemas = {ops.op_name(schema): schema for module in found.modules for schema in module.schemas or ()}
    wrong = [
        f"{op} is {schemas[op]}"
        for op, digest in official.items()
        if op in schemas and ops.digest(schemas[op]) != digest
    ]
    checked = len(set(official) & set(schemas))
    return _case("schemas", "its ops take what the official wheel's take", wrong, {"ops": checked})


def _holders(found: Inspection, op: str) -> list[str]:
    return [module.path for module in found.modules if module.registers(op)]


def _case(name: str, proves: str, wrong: list[str], figures: Mapping[str, object] | None = None) -> CaseResult:
    some = wrong[:3] + ([f"and {len(wrong) - 3} more"] if len(wrong) > 3 else [])
    return CaseResult(
        level="static",
        name=f"static/{name}",
        proves=proves,
        passed=not wrong,
        detail=re.sub(r"\.;", ";", "; ".join(some)).rstrip("."),
        figures=dict(figures or {}),
    )
