"""The `static` level: what a wheel's files say, without running any of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from dca import inspection
from dca.catalogue.recipes import KERNELS, PLUGINS_GROUP, Recipe
from dca.compile import ops
from dca.inspection import INDEX_OP, SPARSE_OP, Inspection
from dca.smoke.values import CaseResult

# The backend calls both; a wheel that lacks one crashes at its first long prompt.
INDEX_OPS = (INDEX_OP, f"{INDEX_OP}_mergehead")
# The case about the requested GPU archs.
ARCHS = "archs"


def check(inspected: Inspection, recipe: Recipe) -> tuple[CaseResult, ...]:
    """The static cases of an inspected wheel."""
    return tuple((_plugin if recipe.is_plugin else _cases)(inspected, recipe))


def left_out(inspected: Inspection, recipe: Recipe) -> tuple[str, ...]:
    """What a wheel lacks by design, in words; empty for one to serve with."""
    groups = inspected.recorded.groups if inspected.recorded else ()
    why = recipe.not_to_serve(groups)
    absent = [op for op in (*INDEX_OPS, SPARSE_OP) if not _promised(op, groups, recipe)]
    return (f"{', '.join(absent)}: the wheel has the group {why}.",) if why and absent else ()


def _promised(op: str, groups: Collection[str], recipe: Recipe) -> bool:
    """Whether a wheel of these groups has an op; a wheel to serve with has all of dual chunk attention's."""
    own = [recipe.groups[name] for name in groups if name in recipe.groups]
    return not recipe.not_to_serve(groups) or any(name.endswith(f"::{op}") for group in own for name in group.ops)


def _cases(inspected: Inspection, recipe: Recipe) -> Iterator[CaseResult]:
    own = inspected.recorded is not None
    groups = inspected.recorded.groups if inspected.recorded else ()
    promised = [op for op in (*INDEX_OPS, SPARSE_OP) if _promised(op, groups, recipe)]
    if own or not inspected.problems:
        yield _case("files", "its files and tags match its own metadata", list(inspected.problems))
    else:
        # Working wheels of other projects may have wrong tags, so this is only reported.
        yield _case("files", f"its modules can be read, with problems: {_some(list(inspected.problems))}", [])
    if not inspected.recorded or inspected.recorded.profile != KERNELS:
        sparse = inspected.sparse_functions or SPARSE_OP not in promised
        parts = {
            "it lacks the attention backend": inspected.dca_backend,
            "it lacks the Python functions for the sparse kernels": sparse,
        }
        lacking = [text for text, present in parts.items() if not present]
        yield _case("backend", "it has the dual chunk attention backend", lacking)
    lacking = [f"no module registers {op}" for op in promised if not _holders(inspected, op)]
    holders = {op: next(iter(_holders(inspected, op)), "") for op in promised}
    what = "the index conversion and sparse attention" if SPARSE_OP in promised else "the index conversion"
    yield _case("ops", f"its modules register {what}", lacking, holders)
    archs = {
        module.path: sorted({*module.sass, *(f"{arch}+PTX" for arch in module.ptx)})
        for module in inspected.modules
        if module.registers(INDEX_OP) or module.registers(SPARSE_OP)
    }
    yield _case(ARCHS, _archs(inspected), inspection.unreached(inspected), archs)
    if own and recipe.official_wheel and recipe.official_wheel.schemas:
        yield _schemas(inspected, recipe.official_wheel.schemas)


def _plugin(inspected: Inspection, recipe: Recipe) -> Iterator[CaseResult]:
    """The cases of a plugin's wheel; RECORD and tags are part of the first."""
    yield _case("files", "its files and tags match its own metadata", list(inspected.problems))
    compiled = [f"{module.path} is compiled code" for module in inspected.modules if not module.is_text]
    compiled += [f"its tag is {tag}" for tag in inspected.tags if not tag.startswith("py3-none-any")]
    yield _case("pure", "it has no compiled code, so that it runs wherever its engine does", compiled)
    wanted = recipe.engine.requirement if recipe.engine else ""
    wrong = [] if inspected.engine == wanted else [f"it requires {inspected.engine or 'no engine'}, not {wanted}"]
    yield _case("engine", f"it requires exactly {wanted}", wrong)
    points = recipe.patches.entry_points.get(PLUGINS_GROUP, {})
    wrong = [
        f"{name} is {inspected.plugins.get(name, 'missing')}"
        for name in points
        if inspected.plugins.get(name) != points[name]
    ]
    wrong += [f"{name} was not planned" for name in inspected.plugins if name not in points]
    yield _case("entry-point", f"the engine loads it: {', '.join(points.values())}", wrong)


def _archs(inspected: Inspection) -> str:
    return f"its kernels run on {', '.join(inspected.asked)}" if inspected.asked else "its kernels hold code for GPUs"


def _schemas(inspected: Inspection, official: dict[str, str]) -> CaseResult:
    """Compare the schemas that the build recorded when it loaded the modules with those of the official wheel."""
    schemas = {ops.op_name(schema): schema for module in inspected.modules for schema in module.schemas or ()}
    wrong = [
        f"{op} is {schemas[op]}"
        for op, digest in official.items()
        if op in schemas and ops.digest(schemas[op]) != digest
    ]
    checked = len(set(official) & set(schemas))
    return _case("schemas", "its ops have the schemas of the official wheel", wrong, {"ops": checked})


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
    """The first of several sentences as one."""
    some = [sentence.rstrip(".") for sentence in sentences[:3]]
    return "; ".join(some + ([f"and {len(sentences) - 3} more"] if len(sentences) > 3 else []))
