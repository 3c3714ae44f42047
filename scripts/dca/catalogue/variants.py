"""Wheels of one version that an installer chooses between by GPU and driver (PEP 817 and 825, which are drafts).

A variant wheel has a label at the end of its name, and says in variant.json for which properties of a machine it is.
An index has them all in one file. Both are written and read by variantlib. Installers ask a provider which properties
the machine has; uv has that of NVIDIA built in, and runs no other code to choose.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from packaging.tags import Tag
from packaging.utils import BuildTag, InvalidWheelFilename, NormalizedName, parse_wheel_filename
from packaging.version import Version
from pydantic import field_validator, model_validator

from dca.catalogue.archs import NOT, how_reached, version
from dca.foundation import documents
from dca.foundation.documents import Value

if TYPE_CHECKING:
    from variantlib.models.variant import VariantDescription
    from variantlib.variants_json import VariantsJson

# The drafts that uv 0.13.9 reads; it says of any other that it is unknown. variantlib writes an older address.
SCHEMA = "https://variants-schema.wheelnext.dev/peps/850/v0.2.0.json"
NAMESPACE = "nvidia"
# Named as in the wheels of torch: an installer without a provider of its own installs this one.
PROVIDER = {
    "requires": ["nvidia-variant-provider>=0.0.1,<1"],
    "plugin-api": "nvidia_variant_provider.plugin:NvidiaVariantPlugin",
}
CUDA, ARCH = "cuda_version_lower_bound", "sm_arch"
# What lets uv choose variants.
PREVIEW = "--preview-features wheel-variants"
NULL = "null"
FILE = "variant.json"
LONGEST = 16
"""Characters of a label."""
_LABEL = re.compile(rf"[0-9a-z._]{{1,{LONGEST}}}")
_NAME, _VALUE = re.compile(r"[a-z0-9_]+"), re.compile(r"[a-z0-9_.]+")


class Variant(Value):
    """What a variant wheel is for.

    Args:
        label: at the end of its name, such as "cu124_sm90"; "null" for a wheel without properties, which an installer
            takes if no other variant fits.
        properties: values by namespace and feature, sorted; a machine needs one value of each feature.
    """

    label: str
    properties: dict[str, dict[str, tuple[str, ...]]]

    @field_validator("label")
    @classmethod
    def _check_label(cls, label: str) -> str:
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{label[:50]!a} is not the label of a variant")
        return label

    @model_validator(mode="after")
    def _check(self) -> Variant:
        for namespace, features in self.properties.items():
            for feature, values in features.items():
                right = _NAME.fullmatch(namespace) and _NAME.fullmatch(feature) and all(map(_VALUE.fullmatch, values))
                if not right or not values or list(values) != sorted(set(values)):
                    raise ValueError(f"{namespace[:50]!a} :: {feature[:50]!a} is not a property of a variant")
            if not features:
                raise ValueError(f"{namespace[:50]!a} has no features")
        if (self.label == NULL) is not (not self.properties):
            raise ValueError(f"the label {NULL} is for variants without properties")
        return self

    def text(self) -> str:
        """The properties in words."""
        said = [
            f"{namespace} :: {feature} :: {' or '.join(values)}"
            for namespace, features in sorted(self.properties.items())
            for feature, values in sorted(features.items())
        ]
        return ", ".join(said) or "any machine for which there is no other variant"


class WheelName(NamedTuple):
    """The parts of a wheel's file name.

    Args:
        project: its canonical name.
        version: of it.
        build: its build number.
        tags: of it.
        label: of its variant; empty for a plain wheel.
    """

    project: NormalizedName
    version: Version
    build: BuildTag
    tags: frozenset[Tag]
    label: str


def wheel_name(name: str) -> WheelName:
    """The parts of a wheel's file name.

    Raises:
        InvalidWheelFilename: it is not the name of a wheel.
    """
    from variantlib.constants import VALIDATION_WHEEL_NAME_REGEX

    match = VALIDATION_WHEEL_NAME_REGEX.fullmatch(name)
    label = (match["variant_label"] if match else None) or ""
    if label and not _LABEL.fullmatch(label):
        raise InvalidWheelFilename(f"Invalid wheel filename (its variant's label is too long): {name!r}")
    return WheelName(*parse_wheel_filename(f"{match['base_wheel_name']}.whl" if label and match else name), label)


def plain_name(name: str) -> str:
    """The name of a wheel without its label."""
    label = wheel_name(name).label
    return f"{name.removesuffix('.whl').removesuffix(f'-{label}')}.whl" if label else name


def variants_file(project: str, version: str) -> str:
    """The name of the file with all variants of a version, in the form of the wheels' own names."""
    return f"{project.replace('-', '_')}-{version}-variants.json"


def of_build(cuda: str, archs: Sequence[str], ptx: Sequence[str], oldest: str) -> Variant:
    """The variant that a build for GPUs is.

    Args:
        cuda: line that compiled it.
        archs: GPU archs with machine code.
        ptx: GPU archs with PTX.
        oldest: CUDA version of the oldest driver that runs it on all of them.
    """
    from variantlib.models.variant import VariantDescription, VariantProperty

    # A machine needs one of them. Of several wheels that its driver runs, the one of the newest CUDA that it supports
    # is then preferred.
    bounds = {oldest, cuda} if Version(cuda) > Version(oldest) else {oldest}
    codes = [f"{_digits(arch)}_real" for arch in archs] + [f"{_digits(arch)}_virtual" for arch in ptx]
    line, names = f"cu{_digits(cuda)}", [f"sm{_digits(arch)}" for arch in sorted(archs, key=version)]
    names += [f"ptx{_digits(arch)}" for arch in sorted(ptx, key=version)]
    properties = {NAMESPACE: {CUDA: tuple(sorted(bounds)), ARCH: tuple(sorted(codes))}}
    label = f"{line}_{'.'.join(names)}"
    if len(label) > LONGEST:
        told = [
            VariantProperty(NAMESPACE, feature, value)
            for feature, some in properties[NAMESPACE].items()
            for value in some
        ]
        label = f"{line}_{VariantDescription(told).hexdigest}"
    return Variant(label=label, properties=properties)


PLAIN = Variant(label=NULL, properties={})
"""The variant of a wheel that needs no GPU of its own."""


def overclaimed(archs: Iterable[str], sass: Sequence[str], ptx: Sequence[str], known: Iterable[str]) -> list[str]:
    """GPU archs that installers give machine code to which they cannot run: later ones of the same major version.

    Args:
        archs: that the variant names.
        sass: exact archs of a module's machine code.
        ptx: exact archs of its PTX.
        known: GPU archs that there are.
    """
    named = [version(arch) for arch in archs]
    return [
        other
        for other in known
        if any(own[0] == version(other)[0] and own <= version(other) for own in named)
        and how_reached(other, sass, ptx) == NOT
    ]


def written(variants: Iterable[Variant]) -> bytes:
    """The file of all variants of a version; of one variant, its variant.json.

    Raises:
        ValueError: two have the same label and differ.
    """
    from variantlib.errors import ValidationError
    from variantlib.variants_json import VariantsJson

    document = _empty()
    for variant in variants:
        other: VariantsJson = _empty()
        other.variants = {variant.label: _described(variant)}
        try:
            document.merge(other)
        except ValidationError as error:
            raise ValueError(str(error)) from None
    content: dict[str, Any] = json.loads(VariantsJson.to_str(document))
    return documents.canonical(content | {"$schema": SCHEMA})


def read(content: bytes, label: str) -> Variant:
    """A wheel's variant.json.

    Args:
        content: of it.
        label: in the wheel's name.

    Raises:
        ValueError: it is not the description of that variant.
    """
    from variantlib.errors import ValidationError
    from variantlib.variant_dist_info import VariantDistInfo

    try:
        described = VariantDistInfo(content.decode(), label).variant_desc.to_dict()
    except (ValidationError, ValueError, TypeError, KeyError, AttributeError, AssertionError, RecursionError) as error:
        raise ValueError(f"{FILE} does not describe the variant {label}: {str(error)[:300]!a}") from None
    properties = {
        str(namespace): {str(feature): tuple(sorted(values)) for feature, values in features.items()}
        for namespace, features in described.items()
    }
    return Variant(label=label, properties=properties)


def _empty() -> VariantsJson:
    from variantlib.models.variant_info import ProviderInfo, VariantInfo
    from variantlib.variants_json import VariantsJson

    provider = ProviderInfo(requires=list(PROVIDER["requires"]), plugin_api=str(PROVIDER["plugin-api"]))
    return VariantsJson(VariantInfo(namespace_priorities=[NAMESPACE], providers={NAMESPACE: provider}))


def _described(variant: Variant) -> VariantDescription:
    from variantlib.models.variant import VariantDescription

    return VariantDescription.from_dict(
        {
            namespace: {feature: list(values) for feature, values in features.items()}
            for namespace, features in variant.properties.items()
        },
        variant.label,
    )


def _digits(number: str) -> str:
    return number.rstrip("af").replace(".", "")
