"""The program that the emulated device asks for kernels.

It reads requests from standard input, each three lines: the module's path, the address of the fat binary in it that has
the kernel (0 for a file that is no library), and the kernel's name. It answers each on standard output with "found" or
"failed", a number of bytes, and that many bytes: a shared object's path, or a message.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import BinaryIO

from dca.catalogue import kept_ptx
from dca.emulation import images, kernels
from dca.foundation.errors import DcaError, from_os_error
from dca.foundation.store import Store


class Translator:
    """Answers requests; the code of a fat binary is read once.

    Args:
        cache: keeps the kernels.
        arch: the device's compute capability.
        ptx: a file of kept PTX, or a folder of such files, for modules that have machine code alone.
    """

    def __init__(self, cache: Store, arch: str, ptx: Path | None) -> None:
        self._cache, self._arch, self._ptx = cache, arch, ptx
        self._images: dict[tuple[Path, int], images.Image] = {}

    @functools.cached_property
    def _kept(self) -> list[kept_ptx.Kept]:
        if self._ptx is None:
            return []
        files = sorted(self._ptx.glob(f"*{kept_ptx.SUFFIX}")) if self._ptx.is_dir() else [self._ptx]
        return [kept_ptx.read(file) for file in files]

    def _text(self, module: Path, address: int, entry: str) -> str:
        """The PTX of a kernel: that of its fat binary, else what was kept.

        Raises:
            DcaError: DCA-835 when there is none, DCA-836 or DCA-839 when something is damaged.
        """
        if (module, address) not in self._images:
            self._images[module, address] = images.read(module, address)
        image = self._images[module, address]
        try:
            return image.ptx(entry, self._arch)
        except DcaError as error:
            lists = image.lists(entry) if error.code == "DCA-835" else ()
            found = (kept.find(module, entry, self._arch, lists) for kept in self._kept if lists)
            text = next((text for text in found if text is not None), None)
            if text is None:
                raise
            return text.decode("utf-8", "replace")

    def answer(self, module: Path, address: int, entry: str) -> tuple[str, str]:
        """The state and the text of an answer."""
        try:
            return "found", str(kernels.compiled(self._cache, self._text(module, address, entry), entry))
        except DcaError as error:
            return "failed", str(error)
        except OSError as error:
            return "failed", str(from_os_error(error))


def serve(requests: BinaryIO, answers: BinaryIO, translator: Translator) -> None:
    """Answer requests until there are no more."""
    while (module := requests.readline()) and (address := requests.readline()) and (entry := requests.readline()):
        name = entry[:-1].decode("utf-8", "replace")
        state, text = translator.answer(Path(os.fsdecode(module[:-1])), int(address), name)
        content = os.fsencode(text)
        answers.write(f"{state}\n{len(content)}\n".encode() + content)
        answers.flush()


def main() -> None:
    """Serve the device that started this program."""
    cache, ptx = Store(Path(os.environ["DCA_CACHE_DIR"])).open(), os.environ.get("DCA_EMULATION_PTX")
    with os.fdopen(os.dup(1), "wb") as answers:
        # What anything else prints must not mix with the answers.
        os.dup2(2, 1)
        translator = Translator(cache, os.environ.get("DCA_EMULATION_ARCH") or "8.0", Path(ptx) if ptx else None)
        serve(sys.stdin.buffer, answers, translator)


if __name__ == "__main__":
    main()
