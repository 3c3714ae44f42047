"""The program that the emulated device asks for kernels.

It reads requests from standard input, by their first line:

- "kernel", then as lines the module's path, the address of the fat binary in it that has the kernel (0 for a file that
  is no library) and the kernel's name: the answer is the path of a shared object.
- "contains", then the same: the answer is "yes" if the fat binary has the kernel.
- "launch", then a number of bytes, a launch of so many bytes as JSON, and the contents of its buffers: it is recorded;
  the answer is "enough" if no more launches of its kernel are wanted.
- "finish": what was recorded is summed up for the user.

It answers each on standard output with "found" or "failed", a number of bytes, and that many bytes: the answer, or a
message.
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dca.catalogue import kept_ptx
from dca.emulation import images, kernels
from dca.emulation.images import Place
from dca.emulation.recording import Recorder, Told, Wish
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
        self._images: dict[Place, images.Image] = {}

    @functools.cached_property
    def _kept(self) -> list[kept_ptx.Kept]:
        if self._ptx is None:
            return []
        files = sorted(self._ptx.glob(f"*{kept_ptx.SUFFIX}")) if self._ptx.is_dir() else [self._ptx]
        return [kept_ptx.read(file) for file in files]

    def _image(self, place: Place) -> images.Image:
        if place not in self._images:
            self._images[place] = images.read(*place)
        return self._images[place]

    def text(self, place: Place, entry: str) -> str:
        """The PTX of a kernel: that of its fat binary, else what was kept.

        Raises:
            DcaError: DCA-835 when there is none, DCA-836 or DCA-839 when something is damaged.
        """
        image = self._image(place)
        try:
            return image.ptx(entry, self._arch)
        except DcaError as error:
            lists = image.lists(entry) if error.code == "DCA-835" else ()
            found = (kept.find(place.module, entry, self._arch, lists) for kept in self._kept if lists)
            text = next((text for text in found if text is not None), None)
            if text is None:
                raise
            return text.decode("utf-8", "replace")

    def kernel(self, place: Place, entry: str) -> Path:
        """The shared object of a kernel.

        Raises:
            DcaError: as `text`, and of translating and compiling it.
        """
        return kernels.compiled(self._cache, self.text(place, entry), entry)

    def contains(self, place: Place, entry: str) -> bool:
        """Whether a fat binary has a kernel.

        Raises:
            DcaError: DCA-836 when it is damaged.
        """
        return any(entry in code.kernels for code in self._image(place).codes)


@dataclass(frozen=True)
class Server:
    """Answers requests.

    Args:
        requests: where they come from.
        translator: of kernels.
        recorder: of launches, where that is asked for.
    """

    requests: BinaryIO
    translator: Translator
    recorder: Recorder | None

    def answer(self, asked: bytes) -> tuple[str, str]:
        """The state and the text of the answer to the request with this first line."""
        try:
            return "found", self._answer(asked.strip().decode("ascii", "replace"))
        except DcaError as error:
            return "failed", str(error)
        except OSError as error:
            return "failed", str(from_os_error(error))

    def _line(self) -> bytes:
        return self.requests.readline()[:-1]

    def _answer(self, asked: str) -> str:
        if asked in ("kernel", "contains"):
            place = Place(Path(os.fsdecode(self._line())), int(self._line()))
            entry = self._line().decode("utf-8", "replace")
            if asked == "kernel":
                return str(self.translator.kernel(place, entry))
            return "yes" if self.translator.contains(place, entry) else "no"
        if self.recorder is None:
            raise ValueError(f"{asked} is not asked for without a recording")
        if asked == "launch":
            told = Told.model_validate_json(self.requests.read(int(self._line())))
            follow = [one.bytes for one in told.buffers for sent in (one.before, one.after) if sent]
            return self.recorder.add(told, [self.requests.read(size) for size in follow])
        say(self.recorder.finish())
        return ""


def say(text: str) -> None:
    """Print to where the program that runs behind the device prints its errors."""
    print(text, file=sys.stderr, flush=True)


def serve(server: Server, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    while asked := server.requests.readline():
        state, text = server.answer(asked)
        content = os.fsencode(text)
        answers.write(f"{state}\n{len(content)}\n".encode() + content)
        answers.flush()


def main() -> None:
    """Serve the device that started this program."""
    cache, ptx = Store(Path(os.environ["DCA_CACHE_DIR"])).open(), os.environ.get("DCA_EMULATION_PTX")
    with os.fdopen(os.dup(1), "wb") as answers:
        # What anything else prints must not mix with the answers.
        os.dup2(2, 1)
        arch = os.environ.get("DCA_EMULATION_ARCH") or "8.0"
        translator = Translator(cache, arch, Path(ptx) if ptx else None)
        recorder = None
        if folder := os.environ.get("DCA_EMULATION_RECORD"):
            wish = Wish(Path(folder), int(os.environ["DCA_EMULATION_RECORD_LIMIT"]))
            recorder = Recorder(wish, arch, translator.text, say)
        serve(Server(sys.stdin.buffer, translator, recorder), answers)


if __name__ == "__main__":
    main()
