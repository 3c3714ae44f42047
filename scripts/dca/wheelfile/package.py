"""Makes the wheel from upstream's Python and metadata, the modules, and this tool's record of the contents."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import shutil
import zipfile
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from dca import __version__
from dca.catalogue import variants
from dca.catalogue.machine import find_uv
from dca.catalogue.plan import Plan
from dca.catalogue.recipes import KERNELS, PLUGIN, Recipe, not_source
from dca.compile.compiling import Build
from dca.compile.job import Job
from dca.foundation import data, documents, environment, runner, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.foundation.run import Run
from dca.sources.fetch import Tree
from dca.toolchain.environments import uv_environment
from dca.wheelfile import sbom
from dca.wheelfile.platform_tag import platform_tag

# Built against the limited API of Python 3.8, as upstream's own wheels are.
PYTHON_TAG = "cp38-abi3"
# A plugin without compiled modules.
PURE_TAG = "py3-none-any"
SETUP_SECONDS = 900.0
_COMPRESSION = 6


def package(job: Job, build: Build, out: Path, run: Run) -> Path:
    """Write the wheel of a plan to `out`, completely or not at all.

    Raises:
        DcaError: DCA-703 if upstream's setup.py fails.
    """
    plan, recipe = job.plan, job.recipe
    run.reporter.stage("package", f"{recipe.package} {plan.version}")
    with store.scratch(run.cache.open().root) as scratch:
        if plan.profile == PLUGIN:
            files = _plugin_files(job)
        elif plan.profile == KERNELS:
            files = _bare_files(plan, recipe)
        else:
            files = _files(_pure_wheel(job, scratch, run), job)
        modules = [Path(module.file) for module in build.modules]
        tag = f"{PYTHON_TAG}-{platform_tag(modules)}" if modules else PURE_TAG
        files |= _own_files(job, build, tag)
        name = file_name(plan, recipe, tag)
        out.mkdir(parents=True, exist_ok=True)
        target = out / name
        with store.incoming(target) as part:
            _write(part, files, recipe, run.reporter)
            part.chmod(0o644)
            part.replace(target)
    return target


def file_name(plan: Plan, recipe: Recipe, tag: str) -> str:
    """The name of a plan's wheel.

    Args:
        plan: of the wheel.
        recipe: of the plan, as its profile sees it.
        tag: of Python, ABI and platform.
    """
    label = f"-{plan.variant.label}" if plan.variant else ""
    return f"{canonicalize_name(recipe.package).replace('-', '_')}-{plan.version}-{tag}{label}.whl"


def _pure_wheel(job: Job, scratch: Path, run: Run) -> Path:
    """The wheel that upstream's setup.py makes of its Python code; setup.py chooses the files and writes METADATA.

    It is kept: the same sources are packaged once.
    """
    source = scratch / "source"
    # setup.py writes into its own folder, but the patched tree must not change.
    shutil.copytree(
        job.tree.path("source"), source, symlinks=True, ignore=shutil.ignore_patterns("csrc", "tests", ".git")
    )
    _place_companions(job, source)
    # Everything that the wheel depends on.
    inputs = [store.tree_hash(source), job.plan.version, job.recipe.time.isoformat(), job.python.parent.parent.name]
    folder = run.cache.folder("pure", documents.digest(inputs)[:16])
    for kept in folder.glob("*.whl"):
        if store.has_hash(kept, kept.stem):
            return kept
    env = uv_environment(run.cache) | {
        "VLLM_TARGET_DEVICE": "empty",
        "SETUPTOOLS_SCM_PRETEND_VERSION": job.plan.version,
        "SOURCE_DATE_EPOCH": str(int(job.recipe.time.timestamp())),
        # setup.py reads the configuration of distutils in the home folder.
        "HOME": str(scratch),
        "PATH": f"{job.python.parent}:{environment.of().get('PATH', '')}",
    }
    done = runner.run(
        [
            find_uv(),
            "build",
            "--wheel",
            "--no-build-isolation",
            "--offline",
            "--no-config",
            "--python",
            job.python,
            "--out-dir",
            scratch / "pure",
            source,
        ],
        cwd=scratch,
        env=env,
        log=run.log,
        timeout=SETUP_SECONDS,
    )
    wheels = list((scratch / "pure").glob("*.whl"))
    if not done.ok or len(wheels) != 1:
        raise DcaError(
            "DCA-703",
            "upstream's setup.py failed to build the Python part of the wheel.",
            why="\n".join(done.tail[-6:]),
            output=done.tail,
            remedy=f"see {run.log}.",
        )
    target = folder / f"{store.sha256_file(wheels[0])}.whl"
    folder.mkdir(parents=True, exist_ok=True)
    return wheels[0].replace(target)


def _place_companions(job: Job, source: Path) -> None:
    """Place each companion's Python code beside its module, from the same origin as the module."""
    tree = job.tree
    for name, companion in job.recipe.companions.items():
        if companion.python is None:
            continue
        copied = [path for path in companion.stand_in if path in tree.members]
        target = source / companion.python.to
        if copied:
            # Replace the folder: files of another version must not remain.
            if target.exists():
                shutil.rmtree(target)
            for path in copied:
                if not path.endswith(".so"):
                    (source / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(tree.official / path, source / path)
        elif job.plan.source(name) is not None:
            if target.exists():
                shutil.rmtree(target)
            shutil.copytree(
                tree.path(name) / companion.python.from_,
                target,
                ignore=shutil.ignore_patterns("*.toml", "__pycache__"),
            )
        else:
            continue
        if companion.python.guard:
            module, _, function = companion.python.guard.partition(":")
            with (target / "__init__.py").open("a", encoding="utf-8") as package:
                package.write(f"\n\n# Added by dca.\nfrom {module} import {function}\n\n{function}(__name__)\n")


def _info(plan: Plan, recipe: Recipe) -> str:
    """The name of the wheel's .dist-info folder."""
    return f"{canonicalize_name(recipe.package).replace('-', '_')}-{plan.version}.dist-info"


def _files(pure: Path, job: Job) -> dict[str, bytes | Path]:
    """Upstream's part of the wheel by path: Python code and metadata."""
    plan, recipe, tree = job.plan, job.recipe, job.tree
    info = _info(plan, recipe)
    files: dict[str, bytes | Path] = {}
    with zipfile.ZipFile(pure) as wheel:
        for name in wheel.namelist():
            if name.endswith("/"):
                continue
            top, _, rest = name.partition("/")
            if not top.endswith(".dist-info"):
                files[name] = wheel.read(name)
            elif rest == "METADATA":
                assert recipe.requirements is not None  # noqa: S101 - only a plugin has none
                requirements = cuda_requirements(tree.path("source") / recipe.requirements, recipe)
                files[f"{info}/METADATA"] = metadata(wheel.read(name).decode(), plan.version, requirements)
            elif rest not in ("RECORD", "WHEEL"):
                files[f"{info}/{rest}"] = wheel.read(name)
    points = files.get(f"{info}/entry_points.txt", b"")
    assert isinstance(points, bytes)  # noqa: S101 - read above
    files[f"{info}/entry_points.txt"] = entry_points(points.decode(), recipe.patches.entry_points)
    return files


def _bare_files(plan: Plan, recipe: Recipe) -> dict[str, bytes | Path]:
    """The Python part of a wheel of bare kernels: this tool's loader and metadata."""
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {canonicalize_name(recipe.package)}",
        f"Version: {plan.version}",
        f"Summary: The dual chunk attention kernels of {plan.title}, without the engine",
        f"Requires-Python: {recipe.python}",
        # Extension modules load only with the torch release that they were compiled against.
        f"Requires-Dist: torch=={plan.torch}",
    ]
    return {
        f"{recipe.package}/__init__.py": (data.IN_WHEEL_ENV / "loader.py").read_bytes(),
        f"{_info(plan, recipe)}/METADATA": ("\n".join(lines) + "\n").encode(),
    }


def _plugin_files(job: Job) -> dict[str, bytes | Path]:
    """A plugin's package, with the PTX of its kernels, and metadata that require exactly its engine.

    Raises:
        DcaError: DCA-703 if its source has no such package.
    """
    plan, recipe = job.plan, job.recipe
    name, root = canonicalize_name(recipe.package).replace("-", "_"), job.tree.path("source")
    files: dict[str, bytes | Path] = {
        f"{name}/{relative}": path
        for relative, path in store.walk(root / name, skip=not_source)
        if path.suffix in (".py", ".ptx") or path.name == "py.typed"
    }
    if f"{name}/__init__.py" not in files:
        raise DcaError(
            "DCA-703", f"the source of {recipe.name} has no package `{name}`.", remedy="correct the recipe's `package`."
        )
    info = _info(plan, recipe)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {canonicalize_name(recipe.package)}",
        f"Version: {plan.version}",
        f"Summary: {plan.title}",
        "License: Apache-2.0",
        f"Requires-Python: {recipe.python}",
        f"Requires-Dist: {plan.engine}",
    ]
    files[f"{info}/METADATA"] = ("\n".join(lines) + "\n").encode()
    files[f"{info}/entry_points.txt"] = entry_points("", recipe.patches.entry_points)
    return files


def _own_files(job: Job, build: Build, tag: str) -> dict[str, bytes | Path]:
    """The files that this tool adds to every wheel: the modules and their description."""
    info = _info(job.plan, job.recipe)
    files: dict[str, bytes | Path] = {module.path: Path(module.file) for module in build.modules}
    files[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: dca {__version__}\n"
        f"Root-Is-Purelib: {str(tag == PURE_TAG).lower()}\nTag: {tag}\n\n"
    ).encode()
    files[f"{info}/dca.json"] = documents.canonical(record_of_contents(job.plan, job.tree, build))
    files[f"{info}/{sbom.FILE}"] = sbom.sbom(job, build)
    if job.plan.variant:
        files[f"{info}/{variants.FILE}"] = variants.written([job.plan.variant])
    return files


def record_of_contents(plan: Plan, tree: Tree, build: Build) -> dict[str, object]:
    """The content of `.dist-info/dca.json`: what the wheel was built from, without paths of the build machine."""
    return {
        "schema": "dca.contents/5",
        "tool": __version__,
        "plan": plan.key,
        "recipe": plan.recipe,
        "version": plan.version,
        **({"engine": plan.engine} if plan.engine else {}),
        "profile": plan.profile,
        "groups": list(plan.groups),
        "archs": list(plan.archs),
        "serves": plan.serves.model_dump(mode="json"),
        "left_out": plan.left_out.model_dump(mode="json"),
        "cuda": plan.cuda,
        "toolkit": build.toolkit,
        "host_compiler": build.host_compiler,
        "torch": {"version": plan.torch, "cuda": plan.torch_cuda},
        "sources": [{"name": source.name, "pin": source.pin, "tree": source.tree} for source in tree.sources],
        "patched": tree.patched,
        "patches": [patch.model_dump(mode="json") for patch in tree.patches],
        "modules": [
            {
                "path": module.path,
                "origin": module.origin,
                "sha256": module.sha256,
                "schemas": sorted(module.schemas),
                "sources": {name: sha256 for compiled in module.objects for name, sha256 in compiled.sources.items()},
                **({"rewritten": module.rewritten.model_dump(mode="json")} if module.rewritten else {}),
                **({"assembled": module.assembled.model_dump(mode="json")} if module.assembled else {}),
            }
            for module in build.modules
        ],
    }


def cuda_requirements(path: Path, recipe: Recipe) -> list[Requirement]:
    """Upstream's CUDA requirements, torch pinned to the version of the build, and the recipe's upper bounds.

    Included files are not read: setup.py has already put their requirements into METADATA.
    """
    requirements: list[Requirement] = []
    for raw in path.read_text().splitlines():
        line = raw.split(" #")[0].strip()
        if line and not line.startswith(("#", "-")):
            try:
                requirements.append(Requirement(line))
            except InvalidRequirement as error:
                raise DcaError(
                    "DCA-703",
                    f"{path.name} contains `{line}`, which is not a valid requirement.",
                    why=str(error),
                    remedy="adapt the recipe.",
                ) from None
    pinned = Requirement(f"torch=={recipe.torch.version}")
    others = [requirement for requirement in requirements if canonicalize_name(requirement.name) != "torch"]
    return [pinned, *others, *(Requirement(cap) for cap in recipe.caps)]


def metadata(text: str, version: str, requirements: list[Requirement]) -> bytes:
    """METADATA with the version and the added requirements, else unchanged."""
    head, separator, body = text.partition("\n\n")
    lines = [f"Version: {version}" if line.startswith("Version:") else line for line in head.split("\n")]
    lines = [line for line in lines if not _requires_torch(line)]
    added = [f"Requires-Dist: {requirement}" for requirement in requirements]
    last = max(
        (n for n, line in enumerate(lines) if line.startswith("Requires-Dist:") and "extra ==" not in line),
        default=len(lines) - 1,
    )
    lines[last + 1 : last + 1] = added
    return ("\n".join(lines) + separator + body).encode()


def _requires_torch(line: str) -> bool:
    return re.match(r"Requires-Dist:\s*torch(?![A-Za-z0-9._-])", line, re.IGNORECASE) is not None


def entry_points(text: str, added: dict[str, dict[str, str]]) -> bytes:
    """entry_points.txt with the recipe's entry points added to upstream's."""
    sections: dict[str, list[str]] = {}
    current = ""
    for line in text.splitlines():
        if match := re.match(r"\[(.+)\]$", line.strip()):
            current = match[1]
            sections.setdefault(current, [])
        elif line.strip():
            sections[current].append(line.strip())
    for group, points in added.items():
        sections.setdefault(group, []).extend(f"{name} = {value}" for name, value in points.items())
    return "\n".join(f"[{name}]\n" + "\n".join(lines) + "\n" for name, lines in sorted(sections.items())).encode()


def _write(part: Path, files: dict[str, bytes | Path], recipe: Recipe, reporter: Reporter) -> None:
    """Write a zip file with sorted entries, the same time and modes for all, and RECORD last."""
    info = next(name.split("/")[0] for name in files if name.endswith(".dist-info/METADATA"))
    rows: list[tuple[str, str, str]] = []
    total = sum(value.stat().st_size if isinstance(value, Path) else len(value) for value in files.values())
    done = 0
    # The wheel specification recommends .dist-info at the end.
    order = sorted(files, key=lambda name: (name.startswith(f"{info}/"), name))
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=_COMPRESSION) as wheel:
        for name in order:
            content = files[name]
            seen, size = hashlib.sha256(), 0
            with _open(content) as source, wheel.open(_entry(name, recipe), "w", force_zip64=False) as target:
                while block := source.read(1 << 20):
                    seen.update(block)
                    size += len(block)
                    target.write(block)
                    done += len(block)
                    reporter.progress(done, total, name.rsplit("/", 1)[-1])
            rows.append((name, f"sha256={_unpadded(seen.digest())}", str(size)))
        rows.append((f"{info}/RECORD", "", ""))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        wheel.writestr(_entry(f"{info}/RECORD", recipe), text.getvalue())


def _entry(name: str, recipe: Recipe) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, recipe.time.timetuple()[:6])
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.create_system = 3
    entry.external_attr = (0o100755 if name.endswith(".so") else 0o100644) << 16
    return entry


def _open(content: bytes | Path) -> io.BufferedReader | io.BytesIO:
    return content.open("rb") if isinstance(content, Path) else io.BytesIO(content)


def _unpadded(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
