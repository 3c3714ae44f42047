"""Looks into one extension module: device code, symbols, ops, and whether the torch at hand has what it wants."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dca.binaries import elf, fatbin
from dca.catalogue.archs import how_reached
from dca.foundation.errors import DcaError
from dca.inspection.schemas import SchemaSource
from dca.inspection.values import InspectedModule, KernelFamily
from dca.toolchain.environments import TorchFacts


@dataclass(frozen=True)
class Looker:
    """How modules are looked into.

    Args:
        schemas: where their ops are found.
        torch: an environment's torch, whose libraries are asked for symbols.
        asked: archs for each of which it is found out how a module runs there.
    """

    schemas: SchemaSource
    torch: TorchFacts | None = None
    asked: tuple[str, ...] = ()

    def look(self, path: str, file: Path, sha256: str, stored: int) -> tuple[InspectedModule, list[str]]:
        """A module, and what is wrong with it.

        Args:
            path: in the wheel.
            file: where it was unpacked.
            sha256: of the file.
            stored: bytes that it takes in the wheel.
        """
        problems: list[str] = []
        code, library = fatbin.DeviceCode(), elf.NOTHING
        try:
            library = elf.read(file)
            code = fatbin.read(file)
        except (elf.ElfError, fatbin.FatbinError) as error:
            problems.append(f"{path}: {error}.")
        problems += [f"{path}: {problem}." for problem in code.problems]
        torch_symbols = elf.torch_symbols(library.undefined)
        missing = self._missing(file, path, problems) if torch_symbols else ()
        if self.torch and library.cxx11_abi not in (None, self.torch.cxx11_abi):
            own = "new" if library.cxx11_abi else "old"
            problems.append(f"{path} uses the {own} C++ ABI, torch {self.torch.version} the other.")
        registered = None
        if torch_symbols and not problems:
            try:
                registered = self.schemas(file, sha256)
            except DcaError as error:
                problems.append(f"{error.what} {error.why}")
        archs = self.asked if code.sass or code.ptx else ()
        module = InspectedModule(
            path=path,
            bytes=file.stat().st_size,
            stored=stored,
            sha256=sha256,
            sections=library.sizes,
            sass=code.sass,
            ptx=code.ptx,
            exact=tuple(dict.fromkeys([*code.exact, *code.exact_ptx])),
            sass_bytes=code.sass_bytes,
            ptx_bytes=code.ptx_bytes,
            code_bytes=code.code_bytes,
            families=tuple(
                KernelFamily(name=family.name, kernels=family.kernels, bytes=family.bytes, archs=family.archs)
                for family in code.families
            ),
            tools=code.tools,
            reached={arch: how_reached(arch, code.exact, code.exact_ptx) for arch in archs},
            needed=library.needed,
            machine=library.machine,
            glibc=library.glibc,
            glibcxx=library.glibcxx,
            cxx11_abi=library.cxx11_abi,
            torch_symbols=len(torch_symbols),
            missing_symbols=missing,
            schemas_from=registered[0] if registered else None,
            schemas=registered[1] if registered else None,
        )
        return module, problems

    def _missing(self, file: Path, path: str, problems: list[str]) -> tuple[str, ...] | None:
        """The torch symbols that torch does not have; None when there is no torch to ask.

        Args:
            file: where the module was unpacked.
            path: of it in the wheel.
            problems: of the module; one is added when any symbol is missing.
        """
        if self.torch is None:
            return None
        missing = elf.missing_symbols(file, Path(self.torch.libraries))
        if missing:
            some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            problems.append(f"{path} wants symbols that torch {self.torch.version} does not have: {some}.")
        return missing
