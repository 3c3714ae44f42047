"""Entry point of `dca` and `python -m dca`: isolates the tool from the caller's packages, then runs the command line.

Standard library only until the isolation is done.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path


def ignore_pythonpath() -> None:
    """Remove the folders of PYTHONPATH from the import path, except the one that `dca` itself is imported from.

    An old pydantic or click there would be found before the locked ones in dca's own environment.
    """
    pythonpath = os.environ.get("PYTHONPATH")
    if not pythonpath:
        return
    # An empty entry means the working folder.
    given = {os.path.realpath(folder) for folder in pythonpath.split(os.pathsep)}
    own = {str(Path(__file__).resolve().parent.parent), *map(os.path.realpath, sysconfig.get_paths().values())}
    sys.path[:] = [folder for folder in sys.path if not folder or os.path.realpath(folder) not in given - own]


def main() -> None:
    """Run the command line."""
    ignore_pythonpath()
    try:
        from dca.cli import main as run_command_line
    except KeyboardInterrupt:
        sys.exit(130)
    run_command_line()


if __name__ == "__main__":
    main()
