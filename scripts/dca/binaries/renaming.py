"""Gives a linked extension module another name for the namespace of its ops, of the same length.

A compiler puts the name into the module twice: as text, and, since it makes a short string from it, as numbers that
instructions store. Text and the first number begin with the same eight bytes, by which they are found; the eighth is
left, because a second number may begin with it. Whether the ops are then registered under the other name only loading
the module tells.
"""

from __future__ import annotations

import io
import re

from dca.binaries import elf
from dca.binaries.elf import ElfError

WIDTH = 7
"""Bytes of a name that are replaced."""
_NUMBER = 8
_SECTIONS = re.compile(r"\.text|\.rodata(\..*)?")
# The text, and the code of a registration and of its twin for a device.
_MOST = 4


def renamed(content: bytes, name: str, start: str) -> bytes:
    """A module whose ops have another namespace.

    Args:
        content: of the module.
        name: the namespace.
        start: the `WIDTH` characters that the other one begins with; the rest of it is the rest of `name`.

    Raises:
        ElfError: the module is damaged, the name is too short, or it occurs in more or in fewer places than one that a
            compiler puts there.
    """
    old, new = name.encode()[:_NUMBER], start.encode()
    if len(old) < _NUMBER or len(new) != WIDTH:
        raise ElfError(f"the namespace {name} has less than {_NUMBER} characters")
    image = elf.Image(io.BytesIO(content))
    places = [
        section.offset + match.start()
        for section in image.sections
        if _SECTIONS.fullmatch(section.name)
        for match in re.finditer(re.escape(old), content[section.offset : section.offset + section.size])
    ]
    if not 1 <= len(places) <= _MOST:
        raise ElfError(f"the namespace {name} is in {len(places)} places of its code and texts")
    changed = bytearray(content)
    for place in places:
        changed[place : place + WIDTH] = new
    return bytes(changed)
