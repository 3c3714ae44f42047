"""Compiles the modules of a plan with the lean CMake project and ninja: patched tree in, extension modules out."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from dca import bindings, data, documents, ops, provide, runner, store
from dca.documents import Document, Value
from dca.environments import TorchFacts
from dca.errors import DcaError
from dca.events import Reporter
from dca.fetch import Tree
from dca.plan import Plan, PlannedModule
from dca.recipes import Group, Recipe

CONFIGURE_SECONDS = 600.0


class CompiledObject(Value):
    """One line of ninja's log: an object, the source it was made from, and how long that took.

    Args:
        source: tree and path, such as source/csrc/sampler.cu; `generated/…` for what dca wrote.
        sha256: of that source.
        seconds: as ninja measured it, in the run that made it.
        command_hash: ninja's own hash of the command line.
    """

    source: str
    sha256: str
    seconds: float
    command_hash: str


class BuiltModule(Value):
    """An extension module that goes into the wheel.

    Args:
        file: where it lies.
        schemas: what it registered when it was loaded.
        objects: what it was linked from; empty for a copied module.
    """

    name: str
    path: str
    origin: str
    file: str
    sha256: str
    schemas: tuple[str, ...]
    objects: tuple[CompiledObject, ...] = ()


class Build(Document):
    """What was compiled, and out of what."""

    SCHEMA: ClassVar[str] = "dca.build/1"

    plan_key: str
    toolkit: str
    host_compiler: str
    torch: str
    modules: tuple[BuiltModule, ...]
    compile_seconds: float
    """Sum over the objects of this build; not the time this run took."""
    objects_compiled_now: int


def compile_modules(
    plan: Plan,
    recipe: Recipe,
    tree: Tree,
    toolkit: Path | None,
    python: Path,
    torch: TorchFacts,
    cache: store.Store,
    reporter: Reporter,
    log: Path,
) -> Build:
    """All modules of the wheel, compiled or copied, each loaded once to see that its ops are there.

    The build folder is kept: a source that did not change is not compiled again, whatever else changed.

    Raises:
        DcaError: DCA-60n.
    """
    built: list[BuiltModule] = []
    now = 0
    if plan.compiled:
        assert toolkit is not None  # noqa: S101 - a plan that compiles has one
        folder = cache.folder("build", build_key(plan, toolkit, torch))
        with cache.lock(
            "build", folder.name, lambda: reporter.note("another run compiles in the same folder; waiting.")
        ):
            now = _ninja(plan, recipe, tree, toolkit, python, torch, folder, reporter, log)
            for module in plan.compiled:
                file = folder / "ninja/modules" / f"{module.name}.abi3.so"
                # The build folder may be used by the next run while this one still packages.
                kept = _keep(file, cache)
                built.append(_built(module, recipe, kept, python, plan, log, _objects(module, folder)))
    built += [_built(module, recipe, tree.official / module.path, python, plan, log, ()) for module in plan.copied]
    return Build(
        plan_key=plan.key,
        toolkit=plan.toolkit.version if plan.toolkit else "",
        host_compiler=plan.host_compiler_version,
        torch=torch.version,
        modules=tuple(built),
        compile_seconds=round(sum(one.seconds for module in built for one in module.objects), 1),
        objects_compiled_now=now,
    )


def build_key(plan: Plan, toolkit: Path, torch: TorchFacts) -> str:
    """Identity of a build folder: everything that would make every object different.

    Sources and groups do not count; ninja compiles what changed of them.
    """
    return documents.digest([
        plan.recipe, str(toolkit), plan.toolkit.version if plan.toolkit else "", plan.host_compiler,
        plan.host_compiler_version, torch.model_dump(mode="json"), plan.archs, plan.ptx,
    ])[:16]  # fmt: skip


def _keep(file: Path, cache: store.Store) -> Path:
    kept = cache.download(store.sha256_file(file), file.name)
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with store.incoming(kept) as part:
            shutil.copyfile(file, part)
            part.chmod(0o644)
            part.replace(kept)
    return kept


def _built(
    module: PlannedModule, recipe: Recipe, file: Path, python: Path, plan: Plan, log: Path,
    objects: tuple[CompiledObject, ...],
) -> BuiltModule:  # fmt: skip
    compiler = plan.host_compiler or str(runner.which("g++"))
    registered = ops.schemas(file, python, compiler, log)
    found = {ops.op_name(schema) for schema in registered}
    wanted = {op for name in module.groups for op in (*recipe.groups[name].ops, *recipe.groups[name].answers)}
    if missing := sorted(wanted - found):
        raise DcaError(
            "DCA-605",
            f"{module.name} was built but lacks {', '.join(missing)}.",
            remedy="a source is missing from the recipe's groups.",
        )
    return BuiltModule(
        name=module.name,
        path=module.path,
        origin=module.origin,
        file=str(file),
        sha256=store.sha256_file(file),
        schemas=registered,
        objects=objects,
    )


def _ninja(
    plan: Plan, recipe: Recipe, tree: Tree, toolkit: Path, python: Path, torch: TorchFacts, folder: Path,
    reporter: Reporter, log: Path,
) -> int:  # fmt: skip
    """Bring the build folder up to date and build; the number of objects compiled in this run."""
    groups = {name: recipe.groups[name] for name in plan.groups}
    _sync_sources(plan, recipe, tree, folder / "src")
    _generate(plan, recipe, groups, folder, toolkit, torch)
    env = provide.compiler_environment(toolkit)
    _configure(plan, toolkit, python, folder, env, reporter, log)
    started = time.time_ns()
    watch = _watch(plan, reporter)
    done = runner.run(
        [python.parent / "ninja", "-C", folder / "ninja", "-j", str(plan.jobs)],
        env={**env, "NINJA_STATUS": "[%f/%t %r] "}, log=log, on_line=watch, on_tick=watch.tick, keep_lines=4000,
    )  # fmt: skip
    if not done.ok:
        raise _failure(done, log)
    return _compiled_since(plan, folder, started)


def _watch(plan: Plan, reporter: Reporter) -> Watcher:
    names = ", ".join(module.name for module in plan.compiled)
    archs = ", ".join(plan.archs)
    reporter.stage("compile", f"{names} for {archs}, {plan.jobs} at a time")
    return Watcher(reporter)


class Watcher:
    """Turns ninja's status lines into progress."""

    _STATUS = re.compile(r"^\[(\d+)/(\d+) \d+\] (.*)")

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._last = (0, 0, "the first objects")

    def __call__(self, line: str) -> None:
        """Read one line of ninja's output."""
        if match := self._STATUS.match(line):
            self._last = (int(match[1]), int(match[2]), match[3].rsplit("/", 1)[-1])
            self.tick()

    def tick(self) -> None:
        """Tell again how far it is: objects take minutes, and silence looks like a hang."""
        self._reporter.progress(*self._last)


def _failure(done: runner.Completed, log: Path) -> DcaError:
    """The error for a failed compile: the first failed edge and the compiler's own words."""
    lines = list(done.tail)
    failed = next((number for number, line in enumerate(lines) if line.startswith("FAILED: ")), None)
    if failed is None:
        return DcaError("DCA-603", "ninja failed.", why="\n".join(lines[-6:]), remedy=f"see {log}.")
    errors = [
        line for line in lines[failed:] if re.search(r"\b(error|fatal|cannot find|undefined|Killed|signal)\b", line)
    ][:4]
    what = lines[failed].split("/")[-1].strip()
    return DcaError(
        "DCA-603",
        f"compiling {what} failed.",
        why="\n".join(errors or lines[failed + 2 : failed + 8]),
        remedy=f"the whole output is in {log}; the next run goes on with what is missing.",
    )


def _sync_sources(plan: Plan, recipe: Recipe, tree: Tree, target: Path) -> None:
    """Copy the parts of the trees that are compiled to their fixed place, touching only what differs.

    Objects depend on these copies, so a patch of Python, or a new folder for the tree, compiles nothing again.
    """
    wanted: set[str] = set()
    for module in plan.compiled:
        described = recipe.modules[module.name]
        paths = [
            *described.includes,
            *described.sources,
            *([described.bindings] if described.bindings else []),
        ]
        paths += [source for name in module.groups for source in recipe.groups[name].sources]
        root = tree.path(described.tree)
        for top in sorted({path.split("/")[0] for path in paths}):
            if not (root / top).is_dir():
                raise DcaError(
                    "DCA-604",
                    f"the source has no folder {top}.",
                    remedy="it is not the source of the recipe.",
                )
            for relative, path in store.walk(root / top):
                name = f"{described.tree}/{top}/{relative}"
                if name not in wanted and path.is_file():
                    store.write_if_changed(target / name, path.read_bytes())
                wanted.add(name)
    if target.is_dir():
        for relative, path in list(store.walk(target)):
            if relative not in wanted:
                path.unlink()


def _generate(
    plan: Plan, recipe: Recipe, groups: dict[str, Group], folder: Path, toolkit: Path, torch: TorchFacts
) -> None:
    """Write what CMake reads: the module list, the registrations, the stubs."""
    generated, src = folder / "generated", folder / "src"
    headers = [toolkit / name for name in ("include", "targets/x86_64-linux/include")]
    libraries = [toolkit / name for name in ("lib64", "lib", "targets/x86_64-linux/lib")]
    lines = ["# Generated by dca from the plan."]
    for module in plan.compiled:
        described = recipe.modules[module.name]
        own = {name: groups[name] for name in module.groups}
        sources = [src / described.tree / path for path in described.sources]
        sources += [src / described.tree / path for group in own.values() for path in group.sources]
        # Groups may share a source.
        sources = list(dict.fromkeys(sources))
        missing = [path for path in sources if not path.is_file()]
        if missing:
            raise DcaError(
                "DCA-604",
                f"the source has no {missing[0].relative_to(src)}.",
                remedy="it is not the source of the recipe, or the recipe's group is wrong.",
            )
        if described.bindings:
            upstream = (src / described.tree / described.bindings).read_text(encoding="utf-8")
            text = bindings.generate(upstream, module.name, own, described.undefined)
            path = generated / f"{module.name}_bindings.cpp"
            store.write_if_changed(path, text.encode())
            sources.append(path)
        if described.stubs:
            compiled = {dimension for group in own.values() for dimension in group.head_dims}
            path = generated / f"{module.name}_stubs.cpp"
            store.write_if_changed(path, bindings.stubs(described.path, described.stubs, compiled).encode())
            sources.append(path)
        defines = [*described.defines, *(one for group in own.values() for one in group.defines)]
        lines += [
            _set(f"DCA_{module.name}_SOURCES", sources),
            _set(f"DCA_{module.name}_INCLUDES", [src / described.tree / path for path in described.includes]),
            _set(f"DCA_{module.name}_DEFINES", defines),
            _set(f"DCA_{module.name}_CUDA_FLAGS", [*_gencode(module), *described.cuda_flags]),
            _set(f"DCA_{module.name}_DRIVER", ["ON" if any(group.driver for group in own.values()) else "OFF"]),
        ]
    store.write_if_changed(generated / "driver.cpp", b"// Nothing: only the library's name counts.\n")
    lines += [
        _set("DCA_NAMES", [module.name for module in plan.compiled]),
        _set("DCA_DRIVER_SOURCE", [generated / "driver.cpp"]),
        _set("DCA_DEFINES", [f"_GLIBCXX_USE_CXX11_ABI={int(torch.cxx11_abi)}"]),
        _set("DCA_CUDA_FLAGS", ["--expt-relaxed-constexpr", "--expt-extended-lambda"]),
        _set("DCA_SYSTEM_INCLUDES", [*torch.includes, torch.python_include]),
        _set("DCA_TOOLKIT_INCLUDES", [path for path in headers if path.is_dir()]),
        _set("DCA_LINK_DIRECTORIES", [torch.libraries, *(path for path in libraries if path.is_dir())]),
    ]
    store.write_if_changed(generated / "modules.cmake", ("\n".join(lines) + "\n").encode())


def _gencode(module: PlannedModule) -> list[str]:
    # CMake removes repeated options, and `-gencode` is repeated; the joined spelling is not.
    flags = provide.gencode(module.sass, module.ptx)
    return [
        f"{flag}={value}".replace("-gencode=", "--generate-code=")
        for flag, value in zip(flags[::2], flags[1::2], strict=True)
    ]


def _set(name: str, values: Iterable[object]) -> str:
    """A CMake `set` whose values hold any character that a path can."""
    return f"set({name}" + "".join(f"\n  [==[{value}]==]" for value in values) + ")"


def _configure(
    plan: Plan, toolkit: Path, python: Path, folder: Path, env: dict[str, str], reporter: Reporter, log: Path
) -> None:
    cmake, ninja = python.parent / "cmake", python.parent / "ninja"
    arguments: list[str | Path] = [
        "-S", data.lean_folder(), "-B", folder / "ninja", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DDCA_MODULES={folder / 'generated/modules.cmake'}",
        f"-DCMAKE_CXX_COMPILER={plan.host_compiler}", f"-DCMAKE_CUDA_HOST_COMPILER={plan.host_compiler}",
        f"-DCMAKE_CUDA_COMPILER={toolkit / 'bin/nvcc'}", f"-DCUDAToolkit_ROOT={toolkit}",
        # CMake looks at the compiler before it knows of the shared runtime, and there is no static one.
        "-DCMAKE_CUDA_FLAGS=--cudart=shared",
        "-DCMAKE_CUDA_ARCHITECTURES=OFF", "-DCMAKE_CUDA_RUNTIME_LIBRARY=Shared", "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O2 -DNDEBUG", "-DCMAKE_CUDA_FLAGS_RELEASE=-O2 -DNDEBUG",
    ]  # fmt: skip
    stamp = folder / "configured"
    identity = documents.digest([[str(one) for one in arguments], store.tree_hash(data.lean_folder())]).encode()
    if (folder / "ninja/build.ninja").is_file() and stamp.is_file() and stamp.read_bytes() == identity:
        return
    reporter.stage("configure", f"CMake with nvcc {plan.cuda}")
    stamp.unlink(missing_ok=True)
    # CMake refuses a folder that another checkout of this tool configured; what ninja made there is as good as ever.
    (folder / "ninja/CMakeCache.txt").unlink(missing_ok=True)
    done = runner.run([cmake, *arguments], env=env, log=log, timeout=CONFIGURE_SECONDS)
    if not done.ok:
        errors = [line for line in done.tail if "Error" in line or "error" in line] or list(done.tail[-8:])
        raise DcaError(
            "DCA-602", "CMake could not configure the build.", why="\n".join(errors[:6]), remedy=f"see {log}."
        )
    store.write_bytes(stamp, identity)


def _ninja_log(folder: Path) -> list[tuple[str, list[str]]]:
    """(output, fields) of ninja's log, the last line of each output."""
    path = folder / "ninja/.ninja_log"
    found: dict[str, list[str]] = {}
    if path.is_file():
        for line in path.read_text(errors="surrogateescape").splitlines():
            fields = line.split("\t")
            if len(fields) == 5:
                found[fields[3]] = fields
    return sorted(found.items())


def _compiled_since(plan: Plan, folder: Path, started: int) -> int:
    """How many of the plan's objects are newer than a moment, in nanoseconds."""
    prefixes = tuple(f"CMakeFiles/{module.name}.dir/" for module in plan.compiled)
    objects = [folder / "ninja" / output for output, _ in _ninja_log(folder) if output.startswith(prefixes)]
    return sum(path.is_file() and path.stat().st_mtime_ns >= started for path in objects)


def _objects(module: PlannedModule, folder: Path) -> tuple[CompiledObject, ...]:
    """The module's lines of ninja's log, each with the source that it was made from as CMake names it."""
    logged = dict(_ninja_log(folder))
    found = []
    for entry in json.loads((folder / "ninja/compile_commands.json").read_text()):
        output, source = entry["output"], Path(entry["file"])
        if not output.startswith(f"CMakeFiles/{module.name}.dir/") or output not in logged:
            continue
        fields = logged[output]
        name = source.relative_to(folder).as_posix().removeprefix("src/")
        found.append(CompiledObject(
            source=name, sha256=store.sha256_file(source),
            seconds=round((int(fields[1]) - int(fields[0])) / 1000, 2), command_hash=fields[4],
        ))  # fmt: skip
    return tuple(sorted(found, key=lambda one: one.source))
