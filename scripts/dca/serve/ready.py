"""The checks before a server starts: doctor, config check and quick smoke, in this order, up to the first failure."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from packaging.utils import canonicalize_name

from dca import config as configs
from dca import doctor, smoke
from dca.catalogue import recipes
from dca.doctor.probes import Probes
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.foundation.store import Store
from dca.serve import gpus
from dca.serve.server_rules import Subject


def python_of(subject: Subject, python: Path | None, cache: Store) -> Path:
    """The Python of the environment to serve from.

    Args:
        subject: what is to be served.
        python: the Python that the user names.
        cache: the cache to search for an environment when the user names none.

    Raises:
        DcaError: DCA-204 when `python` is not a program, DCA-103 when there is no environment.
    """
    if python is not None:
        program = shutil.which(str(python))
        if program is None:
            raise DcaError("DCA-204", f"--python: {python} is not a program.", remedy="check the path.")
        return Path(program).absolute()
    environment = _looked(subject, None, cache).environment
    if environment is None:
        raise DcaError(
            "DCA-103",
            "no environment is active, and the cache has none.",
            remedy="run make env WHEEL=FILE, then activate the environment or name its Python with --python.",
        )
    return environment[0].absolute()


def _looked(subject: Subject, python: Path | None, cache: Store) -> doctor.Subject:
    folder = subject.file.parent if subject.file is not None else None
    return doctor.Subject(
        purpose="serve",
        recipes=(subject.recipe,),
        network=Probes({}, 0.6),
        cache=cache.root,
        python=python,
        model=folder,
        dual_chunk=subject.published.dual_chunk,
        dtype=subject.dtype,
        env={**os.environ, **subject.env},
    )


def check(
    subject: Subject, python: Path, cache: Store, reporter: Reporter, *, skipped: Sequence[str], wheels: Sequence[Path]
) -> None:
    """Run the checks.

    Args:
        subject: what is to be served, with the settings that are served.
        python: Python of the environment to serve from.
        cache: the cache with the environment for smoke.
        reporter: reports which check is running.
        skipped: names of the checks to omit.
        wheels: wheels to search for the environment's, when the subject names none.

    Raises:
        DcaError: when a check fails: DCA-105 for doctor, a code from DCA-120 on for config check, DCA-801 for smoke;
            DCA-204 when there is no wheel to prove.
    """
    if "doctor" not in skipped:
        reporter.stage("doctor", "this machine, its environment and the model")
        # The plan has already checked the memory, for the length that was asked for.
        left_out = ("network", "model.memory", "model.config", "model.table")
        entries = doctor.chosen("serve", (), left_out, plugin=subject.recipe.recipe.is_plugin)
        report = doctor.examine(_looked(subject, python, cache), entries)
        if report.wrong:
            raise DcaError(
                "DCA-105",
                f"dca doctor found {len(report.wrong)} problem{'s' * (len(report.wrong) > 1)}; nothing was started.",
                why="\n".join(f"{result.code}: {result.found}" for result in report.wrong),
                remedy="\n".join(dict.fromkeys(result.remedy for result in report.wrong)),
            )
    if "config" not in skipped and subject.file is not None:
        reporter.stage("config", configs.readable(subject.file))
        settings = subject.settings
        errors = configs.check(subject.file.parent, ranks=settings.tp, length=settings.length).errors
        if errors:
            raise DcaError(
                errors[0].ending,
                f"{configs.readable(subject.file)} has errors; nothing was started.",
                why="\n".join(finding.why for finding in errors),
                remedy=errors[0].remedy,
            )
    if "smoke" not in skipped and subject.published.dual_chunk:
        _smoke(subject, python, cache, reporter, wheels)


def _smoke(subject: Subject, python: Path, cache: Store, reporter: Reporter, wheels: Sequence[Path]) -> None:
    recipe = subject.recipe.recipe
    wheel = subject.wheel_file or _wheel(python, wheels, recipe.package)
    level: smoke.Level | None = "gpu" if subject.gpus.local else "cpu"
    if recipe.is_plugin:
        # The highest that a plugin has.
        level = None
    request = smoke.Request(
        wheel=wheel,
        level=level,
        quick=True,
        python=python,
        words=(str(wheel), "--quick"),
        visible=subject.env.get(gpus.VISIBLE),
    )
    result = smoke.smoke(request, recipes.load_all(), cache, reporter)
    if result.left_out:
        raise DcaError(
            "DCA-110",
            f"{wheel.name} is not a wheel to serve with; nothing was started.",
            why="\n".join(result.left_out),
            remedy=f"build one: `dca wheel --recipe {subject.engine.recipe}`.",
        )
    failed = [case for case in result.cases if not case.passed]
    if failed:
        raise DcaError(
            "DCA-801",
            f"{len(failed)} of {len(result.cases)} cases of dca smoke failed; nothing was started.",
            why="\n".join(f"{case.name}: {case.detail}" for case in failed[:5]),
            remedy=failed[0].repeat,
        )


def _wheel(python: Path, wheels: Sequence[Path], package: str) -> Path:
    """The wheel to prove: the newest of the version that the environment has.

    Args:
        python: of the environment.
        wheels: to choose from.
        package: the wheel's project.
    """
    name = canonicalize_name(package).replace("-", "_")
    installed = sorted(python.parent.parent.glob(f"lib/python3*/site-packages/{name}-*.dist-info"))
    version = installed[0].name.split("-")[1].removesuffix(".dist") if installed else ""
    fitting = [path for path in wheels if version and path.name.startswith(f"{name}-{version}-")]
    if not fitting:
        raise DcaError(
            "DCA-204",
            f"found no wheel {f'of version {version}' if version else 'for this environment'} to prove.",
            remedy="name it with --wheel, or use --skip smoke if it was proven elsewhere.",
        )
    return max(fitting, key=lambda path: path.stat().st_mtime)
