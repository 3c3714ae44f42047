"""Worker in any environment: prints one line of JSON about the packages there, without importing any of them.

`record` is the text of dca.json, which only a wheel of this tool has.
"""

import importlib.metadata
import importlib.util
import json
import pathlib
import platform
import re

packages: "dict[str, str]" = {}
record = None
for distribution in importlib.metadata.distributions():
    # A partly removed package has a folder without METADATA, and a METADATA may be damaged.
    try:
        name, version = distribution.metadata["Name"], distribution.version
        described = distribution.read_text("dca.json")
    except (AttributeError, KeyError, TypeError, ValueError, OSError):
        continue
    # Python imports the first one on the path.
    key = re.sub(r"[-_.]+", "-", name or "").lower()
    if key and version and key not in packages:
        packages[key] = version
        record = record or described

# torch's CUDA version is in a file; importing torch takes seconds.
cuda = ""
torch = importlib.util.find_spec("torch")
if torch is not None and torch.submodule_search_locations:
    try:
        folder = pathlib.Path(next(iter(torch.submodule_search_locations)))
        text = (folder / "version.py").read_text(encoding="utf-8")
        line = re.search(r"^cuda(?:: [^=]+)? = '([^']*)'", text, re.MULTILINE)
        cuda = line.group(1) if line else ""
    except OSError:
        pass
print(json.dumps({"python": platform.python_version(), "packages": packages, "torch_cuda": cuda, "record": record}))
