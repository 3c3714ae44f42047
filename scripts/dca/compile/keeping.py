"""Keeps the PTX that ptxas compiles, without another compile and without a byte more in the wheel.

nvcc embeds that PTX when it is told to, so an object from a compiler cache has it too. The script tells nvcc, and
sets the PTX aside in the object (`binaries.objects`), where the linker leaves it out.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from dca.binaries import objects
from dca.binaries.elf import ElfError
from dca.binaries.fatbin import Code, FatbinError
from dca.catalogue import kept_ptx
from dca.catalogue.kept_ptx import Text
from dca.foundation import data
from dca.foundation.errors import DcaError

Texts = list[tuple[Text, bytes]]
"""PTX texts, each with its record."""

SCRIPT = r"""#!/bin/sh
# Written by dca. Has nvcc embed the PTX that ptxas compiles, and sets it aside in the object: it is not linked.
asked="$* " object= numbers= before=
# Relocatable code is linked by nvcc, which needs its PTX where it is.
case " $asked" in *' -dc '* | *' --device-c '* | *' -rdc=true '* | *'relocatable-device-code=true '*) exec "$@" ;; esac
for word do
  shift
  [ "$before" != -o ] || object=$word
  before=$word
  case $word in *arch=compute_*,code=sm_* | *arch=compute_*,code='['sm_*)
    number=${word##*arch=compute_} number=${number%%,*}
    # PTX that the command asks for is linked too.
    case $asked in *"code=compute_$number"[\ ,]* | *[[,]"compute_$number"[],\ ]*) ;; *)
      codes=${word##*code=} codes=${codes#'['} codes=${codes%']'}
      word="${word%code=*}code=[$codes,compute_$number]"
      asked="$asked$word " numbers="$numbers $number"
    esac
  esac
  set -- "$@" "$word"
done
"$@" || exit
[ ! -f "$object" ] || exec PROGRAM "$object" $numbers
"""
"""What `script` returns, without the program that it runs."""
_PROGRAM = "import sys; sys.path[:0] = sys.argv[1:2]; from dca.binaries import objects; objects.main(sys.argv[2:])"


def script() -> bytes:
    """The program that starts nvcc; the paths of this tool in it are no part of ninja's commands."""
    program = shlex.join([sys.executable, "-I", "-S", "-c", _PROGRAM, str(data.PACKAGE.parent)])
    return SCRIPT.replace("PROGRAM", program).encode()


def of_objects(files: Iterable[tuple[Path, str]], module: str, toolkit: str) -> Texts:
    """The PTX that is set aside in the objects of a module.

    Args:
        files: the object files, each with its source.
        module: its path in the wheel.
        toolkit: version of the CUDA toolkit that compiled them.

    Raises:
        DcaError: DCA-608 if an object has none.
    """
    found: Texts = []
    for file, source in files:
        try:
            codes = objects.texts(file)
        except (ElfError, FatbinError, OSError) as error:
            codes, why = None, str(error)
        else:
            why = f"it has no section {objects.SECTION}"
        if codes is None:
            raise DcaError(
                "DCA-608",
                f"the PTX of {source} was not kept in {file.name}.",
                why=f"{why}.",
                remedy=f"delete {file} and run the command again.",
            )
        found += records(codes, module, source, toolkit)
    return found


def records(codes: Iterable[Code], module: str, source: str, toolkit: str) -> Texts:
    """PTX texts with their records; the arguments are those of `Text`."""
    return [(Text.of(code, module, source, toolkit), kept_ptx.content(code)) for code in codes]
