"""The cases of the level `kernels` on a module of flash-attention alone, behind the emulated device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dca.foundation import store
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.smoke import emulated, prove
from tests.support import SHARE

# Loads a module beside it. The index conversion, of another module, is a stand-in that nothing calls.
_LOADER = """
import pathlib, torch

OPS = torch.library.Library("_C", "DEF")

def load():
    def registered():
        return {schema.name for schema in torch._C._jit_get_all_schemas()}

    before = registered()
    for name in ("convert_vertical_slash_indexes", "convert_vertical_slash_indexes_mergehead"):
        OPS.define(name + "() -> ()")
    torch.ops.load_library(str(pathlib.Path(__file__).with_name("module.so")))
    return tuple(sorted(registered() - before))
"""


def proven(
    module: Path,
    python: Path,
    folder: Path,
    run: Run,
    only: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """The results of the level's cases by their names, as `dca smoke` gets them of a wheel.

    Args:
        module: with the ops of flash-attention.
        python: of an environment with its torch.
        folder: a scratch folder.
        run: whose cache keeps what is compiled.
        only: the "cases" that are run, and the "dtypes" and "head_dims" that the module has kernels for; else all.
    """
    site = folder / "site"
    store.write_bytes(site / "dca_kernels" / "__init__.py", _LOADER.encode())
    (site / "dca_kernels" / "module.so").symlink_to(module)
    request = {
        "wheel": str(site),
        "driver": None,
        "threads": 1,
        "quick": SHARE < 1,
        "case_seconds": 3600,
        "seed": 1,
        "modules": None,
        "variants": [{"name": "", "oracle": None, "overlay": None, "kernel": ""}],
        "level": "kernels",
        **{name: list((only or {}).get(name, ())) for name in ("cases", "dtypes", "head_dims")},
    }
    env = emulated.variables(emulated.EmulatedGpu("8.0", None), python, folder, run)
    lines = prove(python, request, folder, Silent(), run.log, env=env)
    return {line["case"]: line for line in lines if "case" in line}
