"""Prints the pins of NVIDIA's archives for a toolkit file, read from a manifest of NVIDIA, so that no hash is typed.

To add a CUDA version, copy the file of a similar one, change its name, and run this with `--label RELEASE --write`: it
sets the version, the size of the download and the table `[redist]`, with the components that the file already names.
Without `--write` nothing is written.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path

from dca.catalogue.toolkits import Component, Redist, ToolkitSource
from dca.foundation import data, datafile, store
from dca.foundation.errors import DcaError
from dca.foundation.secrets import redact
from dca.sources import index
from dca.toolchain import redist

# The component whose version is the toolkit's.
COMPILER = "cuda_nvcc"


def read(place: str) -> bytes:
    """A manifest's content, from a file or a URL.

    Raises:
        DcaError: DCA-201, DCA-204 or DCA-402.
    """
    import requests

    if "://" not in place:
        if not (path := Path(place)).is_file():
            raise DcaError("DCA-204", f"{place} does not exist.", remedy="check the path.")
        return path.read_bytes()
    try:
        with index.session() as http:
            answer = http.get(redist.checked(place).rstrip("/"), timeout=index.TIMEOUT)
            answer.raise_for_status()
    except requests.RequestException as error:
        raise index.unreachable(redact(place), error) from None
    return answer.content


def pins(content: bytes, label: str, names: list[str], platform: str, url: str | tuple[str, ...]) -> Redist:
    """The pins of one release.

    Args:
        content: of the manifest.
        label: the release that the manifest must describe.
        names: the components to take.
        platform: as the manifest calls it ("linux-x86_64").
        url: the folder of the manifest, or several in the order in which they are tried.
    """
    manifest = json.loads(content)
    # Manifests before 12.2 do not name their release.
    if (actual := manifest.get("release_label", label)) != label:
        sys.exit(f"the manifest is that of CUDA {actual}, not {label}.")
    if missing := [name for name in names if platform not in manifest.get(name, {})]:
        sys.exit(f"the manifest of CUDA {label} has no {', '.join(missing)} for {platform}.")
    components = [
        Component(
            name=name,
            version=manifest[name]["version"],
            relative_path=manifest[name][platform]["relative_path"],
            sha256=manifest[name][platform]["sha256"],
            size=int(manifest[name][platform]["size"]),
        )
        for name in names
    ]
    return Redist(
        url=url,
        label=label,
        manifest=f"redistrib_{label}.json",
        sha256=store.sha256_bytes(content),
        components=tuple(components),
    )


def table(pinned: Redist) -> str:
    """The TOML of a toolkit file's `[redist]`."""
    lines = ["[redist]", *(f"{key} = {json.dumps(getattr(pinned, key))}" for key in ("url", "label", "manifest"))]
    lines.append(f'sha256 = "{pinned.sha256}"')
    for component in pinned.components:
        lines += ["", "[[redist.components]]", *(f"{key} = {json.dumps(value)}" for key, value in component)]
    return "\n".join([*lines, ""])


def version(pinned: Redist) -> str:
    """The version of a release's nvcc."""
    return next(component.version for component in pinned.components if component.name == COMPILER)


def megabytes(pinned: Redist) -> int:
    """Size of the whole download, in MB, rounded up."""
    return math.ceil(sum(component.size for component in pinned.components) / 1e6)


def renewed(text: str, pinned: Redist) -> str:
    """A toolkit file's text with another release's pins; everything else is unchanged."""
    text = re.sub(r"(?m)^version = .*$", f'version = "{version(pinned)}"', text, count=1)
    text = re.sub(r"(?m)^download_mb = .*$", f"download_mb = {megabytes(pinned)}", text, count=1)
    # From its header to the last key of its last component; a later comment belongs to what follows.
    whole = r"(?ms)^\[redist\]\n.*^\[\[redist\.components\]\]\n(?:\w+ = [^\n]*\n)+"
    return re.sub(whole, lambda _: table(pinned), text, count=1)


def main() -> None:
    """Print, or write, the pins of one toolkit file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("toolkit", help="name of a file in build/toolkits that has a [redist]")
    parser.add_argument("--label", help="release, such as 12.6.3; by default that of the file")
    parser.add_argument(
        "--manifest", metavar="FILE|URL", help="manifest of that release; by default NVIDIA's server is asked"
    )
    parser.add_argument(
        "--component", action="append", help="component to take instead of those in the file; can be repeated"
    )
    parser.add_argument("--write", action="store_true", help="write the pins into the file")
    arguments = parser.parse_args()
    path = data.toolkits_folder() / f"{arguments.toolkit}.toml"
    try:
        source = datafile.load(ToolkitSource, path)
        if source.redist is None:
            sys.exit(f"{arguments.toolkit} has no table [redist]: add one first.")
        label = arguments.label or source.redist.label
        place = arguments.manifest or f"{redist.endpoint(source.redist)}redistrib_{label}.json"
        names = arguments.component or [component.name for component in source.redist.components]
        pinned = pins(read(place), label, names, f"linux-{source.machine}", source.redist.url)
        if label == source.redist.label and pinned.sha256 != source.redist.sha256:
            sys.exit(
                f"the manifest of CUDA {label} is not the pinned one: sha256 {pinned.sha256},\n"
                f"pinned {source.redist.sha256}. A release's manifest never changes; try another copy of it."
            )
        if arguments.write:
            store.write_bytes(path, renewed(path.read_text(encoding="utf-8"), pinned).encode())
            datafile.load(ToolkitSource, path)
    except DcaError as error:
        sys.exit(str(error))
    if arguments.write:
        print(f"{path}: CUDA {version(pinned)}, {megabytes(pinned)} MB; sha256 of the manifest {pinned.sha256}")
    else:
        print(f'version = "{version(pinned)}"\ndownload_mb = {megabytes(pinned)}\n\n{table(pinned)}', end="")


if __name__ == "__main__":
    main()
