"""Compares a wheel with its plan, module by module."""

from __future__ import annotations

from dca.catalogue.plan import Plan, PlannedModule
from dca.catalogue.recipes import KERNELS, PLUGIN
from dca.compile import ops
from dca.inspection.values import InspectedModule, Inspection, Recorded


def compare(inspection: Inspection, plan: Plan) -> list[str]:
    """The differences between a wheel and its plan; empty if there are none."""
    differences = list(inspection.problems)
    if inspection.version != plan.version:
        differences.append(f"the version is {inspection.version}, but {plan.version} was planned.")
    if inspection.variant != plan.variant:
        has, planned_as = (variant.label if variant else "none" for variant in (inspection.variant, plan.variant))
        differences.append(f"its variant is {has}, but {planned_as} was planned, or for other machines.")
    planned_torch = f"torch=={plan.torch}" if plan.torch else ""
    if inspection.torch.replace(" ", "") != planned_torch:
        required = inspection.torch or "no torch"
        differences.append(f"METADATA requires `{required}`, but {planned_torch or 'no torch'} was planned.")
    if inspection.engine != plan.engine:
        required = inspection.engine or "no engine"
        differences.append(f"METADATA requires `{required}`, but {plan.engine or 'no engine'} was planned.")
    if not inspection.dca_backend and plan.profile not in (KERNELS, PLUGIN):
        differences.append("the backend for dual chunk attention is missing.")
    differences += _recorded(inspection, plan)
    for planned in plan.modules:
        module = inspection.module(planned.path)
        if module is None:
            differences.append(f"{planned.path} is missing.")
        else:
            if module.machine not in ("", plan.processor):
                differences.append(
                    f"{planned.path} is compiled for {module.machine}, but {plan.processor} was planned."
                )
            damaged = any(planned.path.rsplit("/", 1)[-1] in problem for problem in inspection.problems)
            differences += _code(module, planned, inspection.recorded) + _ops(module, planned, damaged=damaged)
    planned_paths = {planned.path for planned in plan.modules}
    differences += [
        f"{module.path} was not planned."
        for module in inspection.modules
        if module.path not in planned_paths and not (module.is_text and plan.profile == PLUGIN)
    ]
    return list(dict.fromkeys(differences))


def _recorded(inspection: Inspection, plan: Plan) -> list[str]:
    record = inspection.recorded
    if record is None:
        return ["it has no dca.json, so this tool did not build it."]
    if (record.recipe, record.plan) != (plan.recipe, plan.key):
        return [f"its dca.json names plan {record.plan} of {record.recipe}, not {plan.key} of {plan.recipe}."]
    return []


def _code(module: InspectedModule, planned: PlannedModule, record: Recorded | None) -> list[str]:
    """Whether a module comes from where the plan takes it, and has code for the planned archs."""
    made = record.rewritten.get(planned.path) if record else None
    if planned.origin == "compiled":
        copies = {module.sha256, made.official if made else ""}
        text = f"{planned.path} was planned to be compiled from source, but is copied from the official wheel."
        return ([text] if planned.official in copies - {""} else []) + _archs(module, planned)
    if module.sha256 == planned.sha256:
        return []
    if planned.keeps is None or made is None or (made.official, made.keeps) != (planned.sha256, planned.keeps):
        return [f"{planned.path} is not the official wheel's: sha256 {module.sha256}."]
    return _archs(module, planned)


def _archs(module: InspectedModule, planned: PlannedModule) -> list[str]:
    differences = []
    for what, has, archs in (("cubins", module.sass, planned.sass), ("PTX", module.ptx, planned.ptx)):
        if lacking := [arch for arch in archs if arch not in has]:
            differences.append(
                f"{planned.path} lacks {what} for {', '.join(lacking)} (it has {', '.join(has) or 'none'})."
            )
        more = [] if planned.at_least else [arch for arch in has if arch not in archs]
        if more:
            differences.append(f"{planned.path} has {what} for {', '.join(more)}, which was not planned.")
    return differences


def _ops(module: InspectedModule, planned: PlannedModule, *, damaged: bool) -> list[str]:
    """Missing ops, and schemas that differ from the official wheel's; a damaged module is reported elsewhere."""
    if module.schemas is None:
        return [f"the ops of {planned.path} could not be read."] if planned.ops and not damaged else []
    if module.schemas_from == "strings":
        # The texts contain neither namespaces nor the ops that upstream defines without a text.
        return []
    digests: dict[str, set[str]] = {}
    for schema in module.schemas:
        digests.setdefault(ops.op_name(schema), set()).add(ops.digest(schema))
    differences = [f"{planned.path} does not register {op}." for op in planned.ops if op not in digests]
    differences += [
        f"{planned.path} registers {op} with another schema than the official wheel: "
        + "; ".join(schema for schema in module.schemas if ops.op_name(schema) == op)
        + "."
        for op, digest in planned.ops.items()
        if digest and op in digests and digests[op] != {digest}
    ]
    return differences
