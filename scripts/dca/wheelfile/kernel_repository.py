"""Writes kernel repositories, as the kernels library loads them from a folder or from a hub; nothing is uploaded."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from dca.catalogue.kernel_layout import BUILDS, METADATA, Backend, Digest, Metadata
from dca.foundation import data, documents, store
from dca.foundation.errors import DcaError

HUB = data.IN_WHEEL_ENV / "hub"
MODES = {True: 0o755, False: 0o644}
"""Modes of modules and of other files."""


class Kind(NamedTuple):
    """A repository.

    Args:
        name: of the kernel.
        python: its code, in `HUB`.
        license: by its identifier on the hub.
        about: what it is, as a paragraph.
    """

    name: str
    python: str
    license: str
    about: str


ATTENTION = Kind(
    "dca-attention",
    "attention.py",
    "bsd-3-clause",
    "FlashAttention-2 with the sparse kernels of dual chunk attention. It is compiled against torch's C++, so each "
    "variant fits one release of torch.",
)
INDEX = Kind(
    "dca-index",
    "index.py",
    "apache-2.0",
    "The index conversion of dual chunk attention, from vertical and slash lines to blocks and columns. It is compiled "
    "for torch's stable ABI, so a variant fits a release of torch and all later ones.",
)
# 0 is for kernels that are not recommended for production yet: no GPU has run them in this form.
VERSION = 0


class Variant(NamedTuple):
    """A module that goes into a repository.

    Args:
        name: of its folder.
        namespace: of its ops, which is the kernel's id too.
        content: its bytes.
        archs: that it runs on.
        origin: what it was made from, as a sentence.
    """

    name: str
    namespace: str
    content: bytes
    archs: tuple[str, ...]
    origin: str


def python_files(kind: Kind) -> dict[str, bytes]:
    """The Python part of a variant by path: its own code, what loads the module, and a folder for old releases."""
    return {
        "__init__.py": (HUB / kind.python).read_bytes(),
        "_ops.py": (HUB / "_ops.py").read_bytes(),
        f"{kind.name.replace('-', '_')}/__init__.py": (HUB / "compatible.py").read_bytes(),
    }


def write(root: Path, kind: Kind, variant: Variant) -> Path:
    """Add a variant to the repository `root`/NAME, or replace it there; other variants stay.

    Returns:
        The repository.

    Raises:
        DcaError: DCA-207 if something else has that name.
    """
    repository = root / kind.name
    _check_ours(repository, kind)
    library = f"{variant.namespace}.abi3.so"
    files = {**python_files(kind), library: variant.content}
    about = Metadata(
        name=kind.name,
        id=variant.namespace,
        version=VERSION,
        license=kind.license,
        python_depends=(),
        backend=Backend(type="cuda", archs=variant.archs),
        digest=Digest.of(files),
    )
    with store.incoming_folder(repository / BUILDS / variant.name) as part:
        for name, content in {**files, METADATA: documents.canonical(about.document())}.items():
            store.write_bytes(part / name, content, mode=MODES[name == library])
    store.write_bytes(repository / "README.md", _card(kind, variant).encode())
    return repository


def _check_ours(repository: Path, kind: Kind) -> None:
    """Look whether a folder is such a repository already, or free."""
    if not repository.exists() or (repository.is_dir() and not any(repository.iterdir())):
        return
    if any(_name(file) == kind.name for file in (repository / BUILDS).glob(f"*/{METADATA}")):
        return
    raise DcaError(
        "DCA-207",
        f"{repository} exists, and is no repository of {kind.name}.",
        remedy="name another folder with --to DIR.",
    )


def _name(file: Path) -> str:
    """The kernel's name in a metadata.json; empty if it has none."""
    try:
        return Metadata.model_validate_json(file.read_bytes()).name
    except (OSError, ValidationError):
        return ""


def _card(kind: Kind, variant: Variant) -> str:
    return "\n".join(
        [
            "---",
            f"license: {kind.license}",
            "tags:",
            "- kernels",
            "---",
            "",
            f"# {kind.name}",
            "",
            kind.about,
            "",
            variant.origin,
            "",
            "Written by `dca kernels`; kernel-builder was not run. No GPU has run these kernels in this form: they are",
            "proven on an emulated CUDA device alone. Add the texts of the licenses before you hand it on.",
            "",
            "```python",
            "from pathlib import Path",
            "from kernels import get_local_kernel",
            "",
            f'kernel = get_local_kernel(Path("{kind.name}"))',
            "```",
            "",
        ]
    )
