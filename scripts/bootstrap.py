"""Makes the project's own environment, `.venv`, from a lock with hashes.

Standard library only: it runs before anything is installed. uv is used where it is on PATH; otherwise venv and pip
do the same work more slowly. A stamp is written last, so an interrupted run is simply repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
MINIMUM = (3, 10)


def fail(what: str, remedy: str) -> None:
    """End with one message and exit code 2."""
    print(f"bootstrap: {what}\n  Next: {remedy}", file=sys.stderr)
    sys.exit(2)


def run(argv: list[str]) -> None:
    """Run one program of the installation; its own output explains a failure."""
    if subprocess.run(argv, cwd=ROOT, check=False).returncode != 0:
        fail(
            f"`{' '.join(argv[:4])} …` failed; its message stands above.",
            "mend the cause and run make again; nothing half-made is used.",
        )


def digest(files: list[Path]) -> str:
    """Hash of everything that the environment is made from."""
    seen = hashlib.sha256(f"{sys.version_info[:3]} {ROOT}".encode())
    for file in files:
        seen.update(file.read_bytes())
    return seen.hexdigest()


def made_with(python: Path) -> str:
    """The version of the Python in `.venv`; nothing when it does not run."""
    try:
        argv = [str(python), "-c", "import sys; print(sys.version.split()[0])"]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def main() -> None:
    """Make or complete `.venv` for the groups asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dev", action="store_true", help="also what the tests need")
    dev = parser.parse_args().dev
    if sys.version_info < MINIMUM:
        fail(
            f"Python {sys.version.split()[0]} is too old; 3.10 or later is needed.",
            "name another one: make PYTHON=python3.11 …",
        )
    locks = [ROOT / "build/locks/tool.txt", *([ROOT / "build/locks/dev.txt"] if dev else [])]
    stamp = VENV / (".dca-dev" if dev else ".dca-tool")
    wanted = digest([ROOT / "pyproject.toml", *locks])
    python = VENV / "bin/python"
    if stamp.is_file() and stamp.read_text() == wanted and python.exists():
        return
    if made_with(python) != sys.version.split()[0] and VENV.exists():
        # Another Python was asked for, or an interrupted run left nothing that works.
        shutil.rmtree(VENV)
    requirements = [argument for lock in locks for argument in ("-r", str(lock))]
    uv = shutil.which("uv")
    if uv:
        install = [uv, "pip", "install", "--quiet", "--python", str(python)]
        if not python.exists():
            run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(VENV)])
    else:
        install = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        if not python.exists():
            try:
                import ensurepip  # noqa: F401
            except ImportError:
                fail(
                    "this Python has neither uv nor the venv module's ensurepip.",
                    "install uv, or your system's python3-venv package.",
                )
            run([sys.executable, "-m", "venv", "--clear", str(VENV)])
    run([*install, "--require-hashes", *requirements])
    run([*install, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)])
    stamp.write_text(wanted)


if __name__ == "__main__":
    main()
