"""The kept PTX of a wheel: a file beside it with the PTX that ptxas compiled its machine code from.

It is a zip archive: `ptx.json` lists the texts, and `texts/SHA256.ptx` is each of them. A wheel of machine code alone
can be proven with it, on another machine and without another compile.
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from dca.binaries.fatbin import Code
from dca.binaries.limits import MOST_CODE
from dca.catalogue import archs
from dca.foundation import documents, store, zips
from dca.foundation.documents import Document, Value
from dca.foundation.errors import DcaError

SUFFIX = ".ptx.zip"
"""How its name ends; it begins as the wheel's does."""
FILE = "ptx.zip"
"""Its name among the documents of a run."""
_MANIFEST = "ptx.json"
# Names of C++ kernels are long: a module with thousands of them has some megabytes.
_MOST_MANIFEST = 64 << 20
_TIME = (1980, 1, 1, 0, 0, 0)
_LEVEL = 6


class Text(Value):
    """A PTX text.

    Args:
        module: path in the wheel of the module that has its machine code.
        source: that it was compiled from, as build.json names it; the official module if it is from there.
        arch: its target, such as "8.0" or "9.0a"; machine code may be for a later one.
        toolkit: version of CUDA whose compiler wrote it.
        sha256: of the text.
        entries: its entry points, sorted.
    """

    module: str
    source: str
    arch: str
    toolkit: str
    sha256: str
    entries: tuple[str, ...]

    @classmethod
    def of(cls, code: Code, module: str, source: str, toolkit: str) -> Text:
        """The record of a PTX text in a fat binary; the arguments are those of the class."""
        return cls(
            module=module,
            source=source,
            arch=code.arch,
            toolkit=toolkit,
            sha256=store.sha256_bytes(content(code)),
            entries=tuple(sorted(code.kernels)),
        )


class Manifest(Document):
    """What a file of kept PTX contains.

    Args:
        modules: sha256 of the wheel's modules whose PTX it has, by their path in the wheel.
        texts: the PTX texts.
    """

    SCHEMA: ClassVar[str] = "dca.ptx/1"

    modules: dict[str, str]
    texts: tuple[Text, ...]


class KeptPtx(Value):
    """The record of a file of kept PTX, in build.json.

    Args:
        sha256: of the file.
        modules: paths in the wheel of the modules whose PTX it has.
        texts: how many it has.
        archs: their targets.
    """

    sha256: str
    modules: tuple[str, ...]
    texts: int
    archs: tuple[str, ...]


def beside(wheel: Path) -> Path:
    """The path of a wheel's kept PTX."""
    return wheel.with_name(wheel.name.removesuffix(".whl") + SUFFIX)


def content(code: Code) -> bytes:
    """A PTX text without the zeros that end it in a fat binary."""
    return code.content.rstrip(b"\0")


def write(file: Path, modules: Mapping[str, str], texts: Iterable[tuple[Text, bytes]]) -> KeptPtx:
    """Write a file of kept PTX, whose bytes depend on its content alone.

    Args:
        file: its path.
        modules: as in `Manifest`.
        texts: each with its record.
    """
    listed = sorted(texts, key=lambda one: (one[0].module, one[0].source, one[0].arch, one[0].sha256))
    contents = {_name(text): ptx for text, ptx in listed}
    manifest = Manifest(modules=dict(modules), texts=tuple(text for text, _ in listed))
    with store.incoming(file) as part:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
            for name, entry in [(_MANIFEST, documents.dumps(manifest)), *sorted(contents.items())]:
                info = zipfile.ZipInfo(name, _TIME)
                info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o100644 << 16
                archive.writestr(info, entry)
        part.chmod(0o644)
        part.replace(file)
    return KeptPtx(
        sha256=store.sha256_file(file),
        modules=tuple(sorted(modules)),
        texts=len(listed),
        archs=tuple(sorted({text.arch for text, _ in listed}, key=lambda arch: (archs.version(arch), arch))),
    )


def _name(text: Text) -> str:
    return f"texts/{text.sha256}.ptx"


@dataclass(frozen=True)
class Kept:
    """A file of kept PTX.

    Args:
        file: its path.
        manifest: what it contains.
    """

    file: Path
    manifest: Manifest

    def find(self, module: str | Path, entry: str, arch: str, lists: Collection[frozenset[str]] = ()) -> bytes | None:
        """The PTX of a kernel, for a GPU architecture; None if the module is not one of the wheel's, or has none.

        Args:
            module: path of the module in the wheel, or where it is installed; that file must be the wheel's.
            entry: name of the kernel.
            arch: such as "8.0"; the newest PTX that can be compiled for it is taken.
            lists: the kernels of each cubin with this one, of its fat binary, where that is known: sources may each
                have a kernel of one name. A text has the same kernels as a cubin that was compiled from it.

        Raises:
            DcaError: DCA-839 if the file is damaged or belongs to another wheel, or has several such kernels.
        """
        path = self._module(module)
        texts = [text for text in self.manifest.texts if text.module == path and entry in text.entries]
        if lists:
            texts = [text for text in texts if frozenset(text.entries) in lists]
        newest = archs.compilable(arch, {text.arch for text in texts})
        found = {text.sha256: text for text in texts if text.arch == newest}
        if len(found) > 1:
            sources = ", ".join(sorted(text.source for text in found.values()))
            raise _unusable(self.file, f"{path} has several kernels {entry}: in {sources}")
        return next((self.read(text) for text in found.values()), None)

    def read(self, text: Text) -> bytes:
        """A text of the manifest.

        Raises:
            DcaError: DCA-839 if the file is damaged.
        """
        try:
            with zips.opened(self.file) as archive:
                ptx = zips.read(archive, _name(text), MOST_CODE)
        except (*zips.UNREADABLE, KeyError, OSError, ValueError) as error:
            raise _unusable(self.file, str(error)) from None
        if store.sha256_bytes(ptx) != text.sha256:
            raise _unusable(self.file, f"{_name(text)} has another hash than its name says")
        return ptx

    def _module(self, module: str | Path) -> str:
        """The path in the wheel of a module; "" if its PTX is not here.

        Raises:
            DcaError: DCA-839 if it is a file that is not the wheel's.
        """
        parts = PurePosixPath(module).parts
        for path, sha256 in self.manifest.modules.items():
            own = PurePosixPath(path).parts
            if parts[-len(own) :] == own:
                if len(parts) > len(own) and _sha256(Path(module)) != sha256:
                    raise _unusable(self.file, f"it belongs to another wheel than {module}")
                return path
        return ""


@functools.cache
def _sha256(module: Path) -> str:
    return store.sha256_file(module)


def read(file: Path) -> Kept:
    """The kept PTX in a file.

    Raises:
        DcaError: DCA-839 if it is missing, damaged or something else.
    """
    try:
        with zips.opened(file) as archive:
            manifest = documents.parse(Manifest, zips.read(archive, _MANIFEST, _MOST_MANIFEST), file)
            names = set(archive.namelist())
    except DcaError as error:
        raise _unusable(file, error.why) from None
    except FileNotFoundError:
        raise _unusable(file, "there is no such file") from None
    except (*zips.UNREADABLE, KeyError, OSError, ValueError) as error:
        raise _unusable(file, str(error)) from None
    if missing := [text for text in manifest.texts if _name(text) not in names]:
        raise _unusable(file, f"it lacks {_name(missing[0])}, which its list names")
    return Kept(file, manifest)


def _unusable(file: Path, why: str) -> DcaError:
    return DcaError(
        "DCA-839",
        f"the kept PTX in {file} cannot be used.",
        why=f"{why}.",
        remedy=f"take the file {SUFFIX} from beside the wheel; or make it: the `dca wheel` that built the wheel, or "
        "`dca verify WHEEL --rebuild`, writes it beside the same bytes.",
    )
