"""Reads what machines a variant wheel is for, and checks that its code is what it says."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator

from dca.catalogue import variants
from dca.catalogue.variants import Variant
from dca.foundation import zips
from dca.inspection.values import InspectedModule, Recorded


def look(archive: zipfile.ZipFile, info: str, label: str) -> tuple[Variant | None, list[str]]:
    """The variant that a wheel is, and what is wrong with its description.

    Args:
        archive: the wheel.
        info: its .dist-info folder.
        label: in its name; empty for a plain wheel.
    """
    try:
        content = zips.read(archive, f"{info}/{variants.FILE}")
    except KeyError:
        return None, [f"its name ends with the label {label}, but it has no {variants.FILE}."] if label else []
    except zips.UNREADABLE:
        # Reported with the other files.
        return None, []
    if not label:
        return None, [f"it has a {variants.FILE}, but no label in its name: installers do not know it as a variant."]
    try:
        return variants.read(content, label), []
    except ValueError as error:
        return None, [f"{error}."]


def check(variant: Variant, record: Recorded | None, modules: list[InspectedModule]) -> Iterator[str]:
    """What a wheel's variant says of its GPU code that is not so.

    Args:
        variant: of the wheel.
        record: the wheel's own; None if this tool did not build it.
        modules: of the wheel.
    """
    codes = variant.properties.get(variants.NAMESPACE, {}).get(variants.ARCH, ())
    named = {code.removesuffix("_real") for code in codes if code.endswith("_real")}
    device = [module for module in modules if module.sass or module.ptx]
    has = {arch.rstrip("af").replace(".", "") for module in device for arch in module.sass}
    if lacking := sorted(named - has) if device else []:
        yield f"{variants.FILE} says it has code for sm_{', sm_'.join(lacking)}, but no module has."
    if record is None or not record.cuda:
        return
    built = {arch.rstrip("af").replace(".", "") for arch in record.archs}
    if named != built:
        yield (
            f"{variants.FILE} is for sm_{', sm_'.join(sorted(named)) or 'none'}, but dca.json says it was built for "
            f"sm_{', sm_'.join(sorted(built)) or 'none'}."
        )
    line = f"cu{record.cuda.replace('.', '')}_"
    if not variant.label.startswith(line):
        yield f"its label is {variant.label}, but dca.json says it was built with CUDA {record.cuda}."
