"""Inspects one file of compiled code: device code, symbols, ops, and whether torch defines the symbols it requires."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dca.binaries import elf, fatbin
from dca.binaries.fatbin import DeviceCode
from dca.binaries.limits import Work
from dca.binaries.newer import newer
from dca.catalogue.archs import how_reached
from dca.foundation.errors import DcaError
from dca.inspection.kinds import ModuleKind
from dca.inspection.schemas import SchemaSource
from dca.inspection.values import InspectedModule, KernelFamily
from dca.toolchain.environments import TorchFacts


class Stored(NamedTuple):
    """A file of compiled code, or files of GPU code that are told together.

    Args:
        path: in the wheel or folder.
        kind: what it is.
        bytes: its size.
        stored: its compressed size in the wheel.
        sha256: of it; empty for several files.
        files: how many.
    """

    path: str
    kind: ModuleKind
    bytes: int
    stored: int
    sha256: str
    files: int = 1


@dataclass(frozen=True)
class Looker:
    """How to inspect modules.

    Args:
        schemas: finds their ops.
        torch: an environment's torch, to look up symbols in its libraries.
        asked: archs to report for how a module runs on them.
        work: what all of them together may take.
    """

    schemas: SchemaSource
    torch: TorchFacts | None = None
    asked: tuple[str, ...] = ()
    work: Work = field(default_factory=Work)

    def look(self, stored: Stored, file: Path) -> tuple[InspectedModule, list[str]]:
        """Inspect a module; also return its problems.

        Args:
            stored: what is known of it already.
            file: the unpacked module.

        Raises:
            TooLargeError: it is larger than what is read.
        """
        path, problems = stored.path, list[str]()
        code, library = DeviceCode(), elf.NOTHING
        try:
            library = elf.read(file, self.work)
            code = fatbin.read(file, self.work)
        except (elf.ElfError, fatbin.FatbinError) as error:
            problems.append(f"{path}: {error}.")
        problems += [f"{path}: {problem}." for problem in code.problems]
        torch_symbols = elf.torch_symbols(library.undefined, self.work)
        missing = self._missing(file, path, problems) if torch_symbols else ()
        if self.torch and library.cxx11_abi not in (None, self.torch.cxx11_abi):
            own = "new" if library.cxx11_abi else "old"
            problems.append(f"{path} uses the {own} C++ ABI, but torch {self.torch.version} uses the other.")
        registered = None
        if torch_symbols and not problems:
            try:
                registered = self.schemas(file, stored.sha256)
            except DcaError as error:
                problems.append(f"{error.what} {error.why}")
        module = self._module(stored, code).model_copy(
            update={
                "sections": library.sizes,
                "needed": library.needed,
                "machine": library.machine,
                "glibc": library.glibc,
                "glibcxx": library.glibcxx,
                "newer": newer(library.undefined),
                "cxx11_abi": library.cxx11_abi,
                "torch_symbols": len(torch_symbols),
                "stable_abi": bool(torch_symbols) and all(elf.is_stable(name) for name in torch_symbols),
                "missing_symbols": missing,
                "schemas_from": registered[0] if registered else None,
                "schemas": registered[1] if registered else None,
            }
        )
        return module, problems

    def bare(self, stored: Stored, code: DeviceCode) -> tuple[InspectedModule, list[str]]:
        """GPU code in files of its own, and its problems.

        Args:
            stored: what is known of the files.
            code: what is in them.
        """
        return self._module(stored, code), [f"{problem}." for problem in code.problems]

    def _module(self, stored: Stored, code: DeviceCode) -> InspectedModule:
        """A module with its device code, and nothing that host code has."""
        archs = self.asked if code.sass or code.ptx else ()
        return InspectedModule(
            **stored._asdict(),
            sections={},
            sass=code.sass,
            ptx=code.ptx,
            exact=tuple(dict.fromkeys([*code.exact, *code.exact_ptx])),
            exact_sass=code.exact,
            exact_ptx=code.exact_ptx,
            sass_bytes=code.sass_bytes,
            ptx_bytes=code.ptx_bytes,
            ptx_versions=code.ptx_versions,
            relocatable=code.relocatable,
            unread=code.unread,
            code_bytes=code.code_bytes,
            families=tuple(
                KernelFamily(name=family.name, kernels=family.kernels, bytes=family.bytes, archs=family.archs)
                for family in code.families
            ),
            tools=code.tools,
            reached={arch: how_reached(arch, code.exact, code.exact_ptx) for arch in archs},
            needed=(),
            machine="",
            glibc="",
            glibcxx="",
            cxx11_abi=None,
            torch_symbols=0,
            missing_symbols=(),
        )

    def _missing(self, file: Path, path: str, problems: list[str]) -> tuple[str, ...] | None:
        """The torch symbols that torch does not define; None without an installed torch.

        Args:
            file: the unpacked module.
            path: of the module in the wheel.
            problems: of the module; one is added if symbols are missing.
        """
        if self.torch is None:
            return None
        missing = elf.missing_symbols(file, Path(self.torch.libraries))
        if missing:
            some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            problems.append(f"{path} requires symbols that torch {self.torch.version} does not define: {some}.")
        return missing
