"""Names variables of make that no target knows, and those of the environment that are not used: for the Makefile.

Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import sys


def main() -> None:
    """Print to standard error; exit 2 for a variable that no target knows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--known", nargs="*", default=[], help="variables that become options of dca")
    parser.add_argument("--unknown", nargs="*", default=[], help="variables on the command line that no target knows")
    parser.add_argument("--inherited", nargs="*", default=[], help="known ones that only the environment has")
    found = parser.parse_args()
    for name in found.inherited:
        given = shlex.quote(f"{name}={os.environ.get(f'INHERITED_{name}', '')}")
        print(f"make: {given} of the environment is ignored; only the command line of make counts", file=sys.stderr)
    for name in found.unknown:
        known = {one.lower(): one for one in found.known}
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {known[near[0]]}?" if near else f"known are {' '.join(found.known)}."
        print(f"make: no target has a variable {name}; {hint}", file=sys.stderr)
    # A make that started this one may have handed on its own variables.
    sys.exit(2 if found.unknown and os.environ.get("MAKELEVEL") == "1" else 0)


if __name__ == "__main__":
    main()
