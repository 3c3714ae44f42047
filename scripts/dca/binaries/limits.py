"""What reading an untrusted file may take, whatever the file claims of itself."""

from __future__ import annotations

MOST_TABLE = 40 << 20
"""Bytes of a table (symbols, names, section headers) that are read into memory; cubins have up to 29 MB of names."""
MOST_TEXT = 80 << 20
"""Characters of all names that are read from one file. They can be more than its tables have: names can overlap."""
LONGEST_NAME = 1 << 16
MOST_SECTIONS = 100_000
MOST_UNDEFINED = 100_000
MOST_KERNELS = 200_000
MOST_CODE = 64 << 20
"""Bytes of one cubin or PTX text, uncompressed."""
MOST_UNITS = 60_000_000


class TooLargeError(ValueError):
    """A file, or something in it, is larger than what is read; it may be a good one."""


class Work:
    """The work that may be done for one file, or for all files of one inspection.

    A unit is about a microsecond. Units and not seconds are counted, so that a file always gives the same result.
    """

    def __init__(self, units: int = MOST_UNITS) -> None:
        self._left = units

    def spend(self, units: int) -> None:
        """Count work that is about to be done.

        Raises:
            TooLargeError: it is more than what is left.
        """
        self._left -= units
        if self._left < 0:
            raise TooLargeError("reading it would take too long")
