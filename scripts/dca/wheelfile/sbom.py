"""The bill of materials inside every wheel: what it was built from, as CycloneDX.

It contains no path of the build machine, no date of the build and nothing else that differs between runs, so the same
plan gives the same bytes.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from dca import __version__
from dca.catalogue.plan import Plan
from dca.catalogue.recipes import PLUGIN, FolderSource, Recipe, SdistSource, not_source
from dca.compile.compiling import Build, BuiltModule
from dca.compile.job import Job
from dca.foundation import store
from dca.sources.fetch import Applied, FetchedSource, Tree

if TYPE_CHECKING:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component

# Path below .dist-info. PEP 770 defines the folder, CycloneDX the suffix.
FILE = "sboms/dca.cdx.json"
# Namespace for serial numbers, which are derived from the plan.
NAMESPACE = uuid.UUID("6f0b5d0e-5d5b-5c8a-9a55-0d6f5dca0dca")


def sbom(job: Job, build: Build) -> bytes:
    """The document: CycloneDX 1.6 as JSON (https://cyclonedx.org/docs/1.6/json).

    The wheel depends on its modules, a module on the sources it was compiled from or the wheel it was copied from (and
    on the programs that wrote it with fewer kernels), and a source on the patches and added files.
    """
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.tool import ToolRepository
    from cyclonedx.output.json import JsonV1Dot6

    plan, recipe, tree = job.plan, job.recipe, job.tree
    package = canonicalize_name(recipe.package)
    wheel = _component(
        "wheel",
        _Package(package, plan.version, f"pkg:pypi/{package}"),
        properties={
            "plan": plan.key,
            "recipe": plan.recipe,
            "profile": plan.profile,
            "groups": ",".join(plan.groups),
            "archs": ",".join(plan.archs),
            "dirty": str(plan.dirty).lower(),
            "build-lock": plan.build_lock_digest,
        },
    )
    tool = Component(type=ComponentType.APPLICATION, name="dca-build", version=__version__, bom_ref="tool")
    bom = Bom(
        serial_number=uuid.uuid5(NAMESPACE, plan.key),
        metadata=BomMetaData(component=wheel, tools=ToolRepository(components=[tool]), timestamp=recipe.time),
    )
    sources = {source.name: _source(source, recipe, tree) for source in tree.sources}
    patches = {patch.name: _patch(patch, recipe) for patch in tree.patches if patch.status != "not needed"}
    makers, fixes, device_tools = list(_makers(plan, build)), list(_fixes(build)), list(_device_tools(build))
    official = _official(recipe) if plan.copied else None
    modules = {module.path: _file(module.path, module.sha256, _origin(module)) for module in build.modules}
    modules |= _texts(job)
    engine = _engine(recipe)
    every = [
        *([engine] if engine else []),
        *sources.values(),
        *patches.values(),
        *makers,
        *fixes,
        *device_tools,
        *([official] if official else []),
        *modules.values(),
    ]
    for component in every:
        bom.components.add(component)
    parts = [*modules.values(), *([sources["source"]] if "source" in sources else []), *([engine] if engine else [])]
    bom.register_dependency(wheel, parts)
    for module in build.modules:
        origins = [*sources.values(), *makers] if module.origin == "compiled" else [official] if official else []
        bom.register_dependency(
            modules[module.path], [*origins, *(device_tools if module.rewritten or module.assembled else [])]
        )
    for maker in makers:
        if fixes and maker.bom_ref.value == "toolkit":
            bom.register_dependency(maker, fixes)
    for name, source in sources.items():
        bom.register_dependency(
            source, [patches[patch.name] for patch in tree.patches if _changes(patch, name, patches)]
        )
    text: str = JsonV1Dot6(bom).output_as_string(indent=1)
    return (text + "\n").encode()


def _changes(patch: Applied, source: str, known: dict[str, Component]) -> bool:
    """Whether a patch or added file belongs to a source; those of a companion are in a folder with its name."""
    if patch.name not in known:
        return False
    of = patch.name.partition("/")[0] if patch.status != "added" and "/" in patch.name else "source"
    return of == source


@dataclass(frozen=True)
class _Package:
    """A package that has a package URL.

    Args:
        purl: package URL without the version (https://github.com/package-url/purl-spec).
    """

    name: str
    version: str
    purl: str


def _component(
    ref: str,
    package: _Package,
    *,
    sha256: str = "",
    program: bool = False,
    properties: dict[str, str] | None = None,
) -> Component:
    """A component that has a package URL.

    Args:
        ref: its reference within the document.
        program: whether it is a program that the build runs.
    """
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    bare = PackageURL.from_string(package.purl)
    url = PackageURL(bare.type, bare.namespace, bare.name, package.version, bare.qualifiers)
    return Component(
        type=ComponentType.APPLICATION if program else ComponentType.LIBRARY,
        name=package.name,
        version=package.version,
        purl=url,
        bom_ref=ref,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else [],
        properties=_properties(properties or {}),
    )


def _file(name: str, sha256: str, properties: dict[str, str]) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        type=ComponentType.FILE,
        name=name,
        bom_ref=f"file:{name}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
        properties=_properties(properties),
    )


def _properties(values: dict[str, str]) -> list[Property]:
    from cyclonedx.model import Property

    return [Property(name=f"dca:{name}", value=value) for name, value in values.items() if value]


def _source(fetched: FetchedSource, recipe: Recipe, tree: Tree) -> Component:
    """A source tree, with the public address of its pin even if the build used a local copy."""
    ref = f"source:{fetched.name}"
    facts = {"pin": fetched.pin, "tree": fetched.tree, "patched-tree": tree.patched.get(fetched.name, "")}
    if fetched.pin.startswith("tree:"):
        # Neither a folder with local changes nor a plugin's own has a public address.
        return _component(ref, _Package(fetched.name, fetched.tree, f"pkg:generic/{fetched.name}"), properties=facts)
    origin = recipe.origin(fetched.name)
    assert not isinstance(origin, FolderSource)  # noqa: S101 - its pin is the hash of a tree
    if isinstance(origin, SdistSource):
        return _component(
            ref,
            _Package(fetched.name, origin.version, f"pkg:pypi/{canonicalize_name(origin.package)}"),
            sha256=origin.sha256,
            properties={**facts, "file": origin.file},
        )
    return _component(ref, _Package(fetched.name, origin.commit, _repository(origin.urls[0])), properties=facts)


def _repository(url: str) -> str:
    """The package URL of a git repository."""
    from packageurl import PackageURL

    host, _, path = url.removeprefix("https://").removesuffix(".git").rstrip("/").partition("/")
    owner, _, name = path.rpartition("/")
    if host == "github.com":
        return PackageURL("github", owner, name).to_string()
    return PackageURL("generic", None, name, None, {"vcs_url": f"git+{url}"}).to_string()


def _patch(patch: Applied, recipe: Recipe) -> Component:
    name = patch.name if patch.status == "added" else f"patches/{recipe.name}/{patch.name}"
    return _file(name, patch.sha256, {"patch": patch.status})


def _makers(plan: Plan, build: Build) -> Iterator[Component]:
    """The compilers of the modules, and the torch they were compiled against."""
    if not plan.torch:
        return
    yield _component("torch", _Package("torch", plan.torch, "pkg:pypi/torch"), properties={"cuda": plan.torch_cuda})
    if plan.toolkit:
        yield _component(
            "toolkit",
            _Package("cuda-toolkit", build.toolkit, "pkg:generic/cuda-toolkit"),
            program=True,
            properties={"provider": plan.toolkit.name},
        )
        yield _component("host-compiler", _Package("gcc", build.host_compiler, "pkg:generic/gcc"), program=True)


def _engine(recipe: Recipe) -> Component | None:
    """The released engine that a plugin requires; it is not part of the wheel."""
    if recipe.engine is None:
        return None
    name, version = canonicalize_name(recipe.engine.package), recipe.engine.version
    return _component("engine", _Package(name, version, f"pkg:pypi/{name}"), properties={"engine": "required"})


def _texts(job: Job) -> dict[str, Component]:
    """The PTX of a plugin, which its source has as it is, by path in the wheel."""
    if job.plan.profile != PLUGIN:
        return {}
    name = canonicalize_name(job.recipe.package).replace("-", "_")
    found = store.walk(job.tree.path("source") / name, skip=not_source)
    texts = {f"{name}/{relative}": path for relative, path in found if path.suffix == ".ptx"}
    return {place: _file(place, store.sha256_file(path), {"origin": "source"}) for place, path in texts.items()}


def _origin(module: BuiltModule) -> dict[str, str]:
    """Where a module comes from; for one of the official wheel with fewer kernels, from which file."""
    rewritten, assembled = module.rewritten, module.assembled
    return {
        "origin": module.origin,
        "official-sha256": rewritten.official if rewritten else "",
        "kernels": rewritten.keeps.text if rewritten else "",
        "machine-code": ", ".join(f"{arch} from PTX {ptx}" for arch, ptx in assembled.archs.items())
        if assembled
        else "",
    }


def _device_tools(build: Build) -> Iterator[Component]:
    """What wrote the copied modules with fewer kernels, and machine code that nvcc did not make."""
    versions = {
        (name, version)
        for module in build.modules
        if (made := module.rewritten or module.assembled)
        for name, version in (("ptxas", made.ptxas), ("fatbinary", made.fatbinary))
    }
    for name, version in sorted(versions):
        yield _component(name, _Package(name, version, f"pkg:generic/{name}"), program=True)


def _fixes(build: Build) -> Iterator[Component]:
    """The fixes that were applied to the toolkit's headers before compiling."""
    for fix in build.headers:
        if fix.status == "applied":
            yield _file(f"toolkit/{fix.file}: {fix.name}", fix.sha256, {"toolkit-fix": fix.status})


def _official(recipe: Recipe) -> Component | None:
    wheel = recipe.official_wheel
    if wheel is None:
        return None
    return _component(
        "official-wheel",
        _Package(wheel.file, wheel.version, f"pkg:pypi/{canonicalize_name(wheel.package)}"),
        sha256=wheel.sha256,
        properties={"cuda": wheel.cuda},
    )
