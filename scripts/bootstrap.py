"""Creates the project's own environment, `.venv`, from locks with hashes.

Standard library only: it runs before anything is installed. It uses uv if that is on PATH; otherwise venv and pip do
the same more slowly. A lock is installed as it is and never resolved again, because a resolver that finds a newer
release of a locked package can fail or choose that one. A stamp is written last, so an interrupted run is repeated,
and with a lock file several runs in one checkout wait for each other.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK_FILE = ROOT / ".venv.lock"
LOCKS = ROOT / "build/locks"
MINIMUM = (3, 10)
REPORT_SECONDS = 8.0
# The system's trusted authorities, as in scripts/dca/foundation/certificates.py.
CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# pip and uv read these from the caller's environment; each would install packages elsewhere or choose others.
REDIRECTING = {"PIP_PREFIX", "PIP_ROOT", "PIP_TARGET", "PIP_USER", "PIP_CONSTRAINT", "UV_CONSTRAINT", "UV_OVERRIDE"}


def fail(what: str, remedy: str) -> None:
    """End with one message and exit code 2."""
    print(f"bootstrap: {what}\n  Next: {remedy}", file=sys.stderr)
    sys.exit(2)


def isolated_environment() -> dict[str, str]:
    """The caller's environment without variables that redirect Python or an installer, and with trusted certificates.

    pip and uv trust a list of authorities of their own, which lacks that of a company's proxy.
    """
    env = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON") and name not in REDIRECTING
    }
    named = next((env[name] for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT") if env.get(name)), None)
    trusted = named or next((path for path in CERTIFICATES if Path(path).is_file()), None)
    return {**({"SSL_CERT_FILE": trusted, "PIP_CERT": trusted} if trusted else {}), **env}


def run(argv: list[str], what: str) -> None:
    """Run one program of the installation; report that it still runs, and its output if it fails.

    Args:
        argv: the program and its arguments.
        what: what it does, for the report.
    """
    started, lines = time.monotonic(), collections.deque[str](maxlen=200)
    # uv and pip leave locks and folders behind.
    with tempfile.TemporaryDirectory(prefix="dca-") as folder:
        env = {**isolated_environment(), "TMPDIR": folder}
        with subprocess.Popen(
            argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            reader = threading.Thread(target=lines.extend, args=(process.stdout or (),), daemon=True)
            reader.start()
            while True:
                reader.join(REPORT_SECONDS)
                if not reader.is_alive():
                    break
                now = lines[-1].strip() if lines else ""
                say(f"{what}, {time.monotonic() - started:.0f} s{': ' * bool(now)}{now[:90]}")
    if process.returncode != 0:
        print("".join(lines), file=sys.stderr)
        fail(
            f"`{' '.join(argv[:4])} …` failed; its output is above.",
            "fix the cause and run the same command again; an incomplete environment is never used.",
        )


def say(text: str) -> None:
    """Report progress."""
    print(f"   bootstrap  {text}", file=sys.stderr, flush=True)


def digest(files: list[Path]) -> str:
    """Hash of everything that determines the content of the environment."""
    combined = hashlib.sha256(f"{sys.version_info[:3]} {ROOT}".encode())
    for file in files:
        combined.update(file.read_bytes())
    return combined.hexdigest()


def python_version(python: Path) -> str:
    """Version of the Python in `.venv`; empty when it does not run."""
    try:
        argv = [str(python), "-I", "-c", "import sys; print(sys.version.split()[0])"]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Wait until no other run changes the environment of this checkout."""
    with LOCK_FILE.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is installing into .venv; waiting.")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def create() -> list[str]:
    """Create `.venv` if it is missing, and return the command that installs into it."""
    python = VENV / "bin/python"
    uv = shutil.which("uv")
    if uv:
        if not python.exists():
            run([uv, "venv", "--clear", "--python", sys.executable, str(VENV)], "creating .venv")
        return [uv, "pip", "install", "--python", str(python)]
    # An environment that uv created has no pip, and uv may have been removed since.
    if not python.exists() or not list(VENV.glob("lib/python*/site-packages/pip")):
        try:
            import ensurepip  # noqa: F401
        except ImportError:
            fail(
                "uv is not on PATH, and this Python has no ensurepip, which venv needs.",
                "install uv, or your system's python3-venv package.",
            )
        run([sys.executable, "-I", "-m", "venv", "--clear", str(VENV)], "creating .venv")
    return [str(python), "-I", "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]


def locked(*, dev: bool) -> list[Path]:
    """The locks that the environment is installed from."""
    return [LOCKS / "tool.txt", *([LOCKS / "dev.txt"] if dev else [])]


def stamp(*, dev: bool) -> Path:
    """The file that says what was installed; written last."""
    return VENV / (".dca-dev" if dev else ".dca-tool")


def current(*, dev: bool) -> bool:
    """Whether `.venv` holds what the locks of today name."""
    written = stamp(dev=dev)
    return (
        written.is_file()
        and written.read_text() == digest([ROOT / "pyproject.toml", *locked(dev=dev)])
        and (VENV / "bin/python").exists()
    )


def install(*, dev: bool) -> None:
    """Create or complete `.venv`."""
    # What the tests need contains what the tool needs: an environment made for them serves both.
    if any(current(dev=whole) for whole in (True, dev)):
        return
    locks = locked(dev=dev)
    if python_version(VENV / "bin/python") != sys.version.split()[0] and VENV.exists():
        # It was made with another Python, or an interrupted run left it broken.
        shutil.rmtree(VENV)
    installer = create()
    requirements = [argument for lock in locks for argument in ("-r", str(lock))]
    names = {line.split("==")[0] for lock in locks for line in lock.read_text().splitlines() if line[:1].isalnum()}
    what = f"installing {len(names)} packages into .venv with {'uv' if 'pip' in installer[1:2] else 'pip'}"
    say(f"{what}.")
    # Neither stamp is true any more while packages change, and both would be believed after a change of branch.
    for whole in (True, False):
        stamp(dev=whole).unlink(missing_ok=True)
    run([*installer, "--no-deps", "--require-hashes", *requirements], what)
    run([*installer, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)], "installing dca into .venv")
    stamp(dev=dev).write_text(digest([ROOT / "pyproject.toml", *locks]))


def main() -> None:
    """Read the arguments, check the Python, and install."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dev", action="store_true", help="also install what tests and checks need")
    arguments = parser.parse_args()
    if sys.version_info < MINIMUM:
        fail(
            f"Python {sys.version.split()[0]} is too old; 3.10 or later is required.",
            "name a newer one: make PYTHON=python3.11 …",
        )
    with only_one():
        install(dev=arguments.dev)


if __name__ == "__main__":
    main()
