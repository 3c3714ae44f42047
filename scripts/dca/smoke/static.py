"""The `static` level: what a wheel's files say, without running any of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dca import inspection
from dca.catalogue.recipes import KERNELS, Recipe
from dca.compile import ops
from dca.inspection import INDEX_OP, SPARSE_OP, Inspection
from dca.smoke.values import CaseResult

# What the backend calls; a wheel that has one and lacks the other dies at its first long prompt.
INDEX_OPS = (INDEX_OP, f"{INDEX_OP}_mergehead")
# The case that asks for the GPU archs that are named.
ARCHS = "archs"


def check(inspected: Inspection, recipe: Recipe) -> tuple[CaseResult, ...]:
    """The static cases of an inspected wheel."""
    return tuple(_cases(inspected, recipe))


def _cases(inspected: Inspection, recipe: Recipe) -> Iterator[CaseResult]:
    own = inspected.recorded is not None
    if own or not inspected.problems:
        yield _case("files", "its files and tags are what it says of them", list(inspected.problems))
    else:
        # Others' wheels that work have wrong tags; what that means is for the reader to judge.
        yield _case("files", f"its modules can be read; noticed: {_some(list(inspected.problems))}", [])
    if not inspected.recorded or inspected.recorded.profile != KERNELS:
        parts = {
            "the attention backend is not in it": inspected.dca_backend,
            "the Python around the sparse kernels is not in it": inspected.sparse_functions,
        }
        lacking = [text for text, present in parts.items() if not present]
        yield _case("backend", "the dual chunk attention backend is there", lacking)
    lacking = [f"no module registers {op}" for op in (*INDEX_OPS, SPARSE_OP) if not _holders(inspected, op)]
    holders = {op: next(iter(_holders(inspected, op)), "") for op in (*INDEX_OPS, SPARSE_OP)}
    yield _case("ops", "the index conversion and the sparse attention are registered", lacking, holders)
    archs = {
        module.path: sorted({*module.sass, *(f"{arch}+PTX" for arch in module.ptx)})
        for module in inspected.modules
        if module.registers(INDEX_OP) or module.registers(SPARSE_OP)
    }
    yield _case(ARCHS, _archs(inspected), inspection.unreached(inspected), archs)
    if own and recipe.official_wheel and recipe.official_wheel.schemas:
        yield _schemas(inspected, recipe.official_wheel.schemas)


def _archs(inspected: Inspection) -> str:
    return f"its kernels run on {', '.join(inspected.asked)}" if inspected.asked else "its kernels hold code for GPUs"


def _schemas(inspected: Inspection, official: dict[str, str]) -> CaseResult:
    """Compare the schemas that were recorded when the modules were loaded with the official wheel's."""
    schemas = {ops.op_name(schema): schema for module in inspected.modules for schema in module.schemas or ()}
    wrong = [
        f"{op} is {schemas[op]}"
        for op, digest in official.items()
        if op in schemas and ops.digest(schemas[op]) != digest
    ]
    checked = len(set(official) & set(schemas))
    return _case("schemas", "its ops take what the official wheel's take", wrong, {"ops": checked})


def _holders(inspected: Inspection, op: str) -> list[str]:
    return [module.path for module in inspected.modules if module.registers(op)]


def _case(name: str, proves: str, wrong: list[str], figures: Mapping[str, object] | None = None) -> CaseResult:
    return CaseResult(
        level="static",
        name=f"static/{name}",
        proves=proves,
        passed=not wrong,
        detail=_some(wrong),
        figures=dict(figures or {}),
    )


def _some(sentences: list[str]) -> str:
    """The first of some sentences as one."""
    some = [sentence.rstrip(".") for sentence in sentences[:3]]
    return "; ".join(some + ([f"and {len(sentences) - 3} more"] if len(sentences) > 3 else []))
