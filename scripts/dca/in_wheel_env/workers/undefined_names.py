"""Worker in the build environment: prints the names that neither this Python nor some libraries define, as JSON.

None if one of the libraries is not there. Argument: a JSON file with the `names`, and the `libraries` to load.
"""

import ctypes
import json
import pathlib
import sys

question = json.loads(pathlib.Path(sys.argv[1]).read_text())
try:
    loaded = [ctypes.CDLL(library) for library in (None, *question["libraries"])]
except OSError:
    print("[]")
else:
    print(json.dumps([name for name in question["names"] if not any(hasattr(library, name) for library in loaded)]))
