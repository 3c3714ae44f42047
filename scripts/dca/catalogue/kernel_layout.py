"""The layout of kernel repositories, as the kernels library 0.17.2 reads it (huggingface.co/docs/kernels)."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints

from dca.catalogue import targets
from dca.foundation import store
from dca.foundation.documents import Value

BUILDS, METADATA, SIGNATURE = "build", "metadata.json", "metadata.json.sigstore"
# Framework, release, C++ ABI, CUDA.
VARIANT = re.compile(
    r"(?:torch(?P<major>\d)(?P<minor>\d+)(?:-cxx(?P<abi>11|98))?|torch-stable-abi(?P<stable_major>\d)(?P<stable_minor>\d+))"
    r"-(?P<backend>[a-z]+(?P<backend_version>\d*))-(?P<machine>\w+)-(?P<system>\w+)"
)
KernelName = Annotated[str, StringConstraints(pattern=r"^[a-z][-a-z0-9]*[a-z0-9]$")]
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$")]


class Lenient(Value):
    """A part of metadata that may have keys of later releases of the library."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Backend(Lenient):
    """What a variant runs on.

    Args:
        type: "cuda", for example.
        archs: compute capabilities, such as "8.0", "9.0a" or "8.0+PTX"; None where they say nothing.
    """

    type: str
    archs: tuple[str, ...] | None = None


class Digest(Lenient):
    """Hashes of a variant's files.

    Args:
        algorithm: "sha256" or "sha512".
        files: the hashes in base64, by path.
    """

    algorithm: Annotated[str, StringConstraints(pattern=r"^sha(256|512)$")]
    files: dict[str, str]

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> Digest:
        """The hashes of files."""
        return cls(algorithm="sha256", files={name: _hash("sha256", files[name]) for name in sorted(files)})

    def differences(self, folder: Path) -> list[str]:
        """How the files of a variant differ from the hashes."""
        present = {
            name: path
            for name, path in store.walk(folder, skip=lambda name: "__pycache__" in name or name.endswith(".pyc"))
            if path.is_file() and name not in (METADATA, SIGNATURE)
        }
        found = [f"{name} is missing" for name in sorted(self.files.keys() - present.keys())]
        found += [f"{name} is not in the digest" for name in sorted(present.keys() - self.files.keys())]
        found += [
            f"{name} has another hash than the digest says"
            for name in sorted(present.keys() & self.files.keys())
            if _hash(self.algorithm, present[name].read_bytes()) != self.files[name]
        ]
        return found


class Metadata(Lenient):
    """The metadata.json of a variant.

    Args:
        name: of the kernel.
        id: name of the imported module, which is also the namespace of its ops.
        version: major version of the kernel's API; 0 for one that is not recommended for production yet.
        license: by its identifier on the hub.
        python_depends: packages that it needs, of those that the library knows.
        backend: what it runs on.
        digest: hashes of its files.
    """

    name: KernelName
    id: Identifier
    version: Annotated[int, Field(ge=0, strict=True)]
    license: str
    python_depends: tuple[str, ...] = Field(validation_alias="python-depends", serialization_alias="python-depends")
    backend: Backend
    digest: Digest | None = None

    @property
    def module(self) -> str:
        """The kernel's name in Python."""
        return self.name.replace("-", "_")

    def document(self) -> dict[str, Any]:
        """What is written."""
        return self.model_dump(mode="json", by_alias=True)


def torch_variant(torch: str, cxx11_abi: bool, cuda: str, processor: str = targets.FIRST) -> str:
    """The folder of a module that uses torch's C++, which fits one release of torch.

    Args:
        torch: its version, such as "2.8.0".
        cxx11_abi: whether it has the new C++ ABI.
        cuda: version of CUDA, such as "12.8".
        processor: that it runs on, as `uname -m` prints it.
    """
    return f"torch{_two(torch)}-cxx{'11' if cxx11_abi else '98'}-cu{_two(cuda)}-{processor}-linux"


def stable_variant(torch: str, cuda: str, processor: str = targets.FIRST) -> str:
    """The folder of a module of torch's stable ABI, which fits a release of torch and all later ones."""
    return f"torch-stable-abi{_two(torch)}-cu{_two(cuda)}-{processor}-linux"


def _two(version: str) -> str:
    return "".join(version.split("+")[0].split(".")[:2])


def _hash(algorithm: str, content: bytes) -> str:
    return base64.b64encode(hashlib.new(algorithm, content).digest()).decode()
