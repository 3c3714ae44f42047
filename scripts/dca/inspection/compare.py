"""Compares a wheel with its plan, module by module."""

from __future__ import annotations

from dca.catalogue.plan import Plan, PlannedModule
from dca.catalogue.recipes import KERNELS
from dca.compile import ops
from dca.inspection.values import InspectedModule, Inspection


def compare(found: Inspection, plan: Plan) -> list[str]:
    """How a wheel differs from its plan; empty when it is what was planned."""
    told = list(found.problems)
    if found.version != plan.version:
        told.append(f"the version is {found.version}, planned was {plan.version}.")
    if found.torch.replace(" ", "") != f"torch=={plan.torch}":
        told.append(f"METADATA requires `{found.torch or 'no torch'}`, planned was torch=={plan.torch}.")
    if not found.dca_backend and plan.profile != KERNELS:
        told.append("the attention backend for dual chunks is not in it.")
    told += _recorded(found, plan)
    for planned in plan.modules:
        module = found.module(planned.path)
        if module is None:
            told.append(f"{planned.path} is missing.")
        else:
            damaged = any(planned.path.rsplit("/", 1)[-1] in problem for problem in found.problems)
            told += _module(module, planned, damaged=damaged)
    planned_paths = {planned.path for planned in plan.modules}
    told += [f"{module.path} was not planned." for module in found.modules if module.path not in planned_paths]
    return list(dict.fromkeys(told))


def _recorded(found: Inspection, plan: Plan) -> list[str]:
    record = found.recorded
    if record is None:
        return ["it has no dca.json, so this tool did not make it."]
    if (record.recipe, record.plan) != (plan.recipe, plan.key):
        return [f"its dca.json is of plan {record.plan} of {record.recipe}, not of {plan.key} of {plan.recipe}."]
    return []


def _module(module: InspectedModule, planned: PlannedModule, *, damaged: bool) -> list[str]:
    told = []
    if planned.origin == "copied" and module.sha256 != planned.sha256:
        told.append(f"{planned.path} is not the official wheel's: sha256 {module.sha256}.")
    if planned.origin == "compiled":
        if planned.official and module.sha256 == planned.official:
            told.append(
                f"{planned.path} was planned to be compiled from source, but is copied from the official wheel."
            )
        told += _archs(module, planned)
    return told + _ops(module, planned, damaged=damaged)


def _archs(module: InspectedModule, planned: PlannedModule) -> list[str]:
    told = []
    for what, has, wanted in (("cubins", module.sass, planned.sass), ("PTX", module.ptx, planned.ptx)):
        if lacking := [arch for arch in wanted if arch not in has]:
            told.append(f"{planned.path} lacks {what} for {', '.join(lacking)} (it has {', '.join(has) or 'none'}).")
        more = [] if planned.at_least else [arch for arch in has if arch not in wanted]
        if more:
            told.append(f"{planned.path} holds {what} for {', '.join(more)}, which was not planned.")
    return told


def _ops(module: InspectedModule, planned: PlannedModule, *, damaged: bool) -> list[str]:
    """Ops that are missing, and schemas that are not the official wheel's; a damaged module has told why already."""
    if module.schemas is None:
        return [f"{planned.path} does not tell its ops."] if planned.ops and not damaged else []
    if module.schemas_from == "strings":
        # Only names can be compared, and an op that upstream defines without a text cannot be seen.
        return []
    digests: dict[str, set[str]] = {}
    for schema in module.schemas:
        digests.setdefault(ops.op_name(schema), set()).add(ops.digest(schema))
    told = [f"{planned.path} does not register {op}." for op in planned.ops if op not in digests]
    told += [
        f"{planned.path} registers {op} with another schema than the official wheel: "
        + "; ".join(schema for schema in module.schemas if ops.op_name(schema) == op)
        + "."
        for op, digest in planned.ops.items()
        if digest and op in digests and digests[op] != {digest}
    ]
    return told
