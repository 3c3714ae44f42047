"""flash-attention's module with its host code: one head dimension and type, run behind the emulated device."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dca.foundation import runner
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.foundation.store import Store
from tests.emulation import bare, sparse
from tests.emulation.faults import sources

_NAME = "vllm_flash_attn_c"
# As few kernels as there can be.
_DEFINES = [f"-DFLASHATTENTION_DISABLE_{what}" for what in ("DROPOUT", "UNEVEN_K", "ALIBI", "SOFTCAP")]


@dataclass(frozen=True)
class Builder:
    """Compiles a module against an environment's torch.

    Args:
        compiler: of its kernels.
        python: of the environment.
    """

    compiler: sources.Compiler
    python: Path

    @property
    def _packages(self) -> Path:
        (packages,) = self.python.parent.parent.glob("lib/python3*/site-packages")
        return packages

    def _includes(self, tree: Path) -> list[str | Path]:
        """Where headers are. nvcc knows those of CUDA itself."""
        torch = self._packages / "torch/include"
        folders = [tree / "csrc/flash_attn", tree / sources.ATTENTION, self.compiler.cutlass / "include"]
        system = [torch, torch / "torch/csrc/api/include", self.compiler.toolkit / "include"]
        system += [self._packages / "nvidia" / name / "include" for name in ("cublas", "cusparse", "cusolver")]
        return [f"-I{one}" for one in (*folders, sysconfig.get_path("include"), *system)]

    def kernels(self, tree: Path, folder: Path) -> list[Path]:
        """The objects of the sparse kernels of a tree: bfloat16, head dimension 128, causal and not."""
        objects = []
        for kind in ("bf16_causal", "bf16"):
            source = tree / sources.ATTENTION / f"flash_fwd_sparse_hdim128_{kind}_sm80.cu"
            objects.append(folder / f"{kind}.o")
            words: list[str | Path] = ["-gencode", "arch=compute_80,code=compute_80", "-Xcompiler", "-fPIC", "-c", "-w"]
            nvcc = self.compiler.toolkit / "bin/nvcc"
            self._run(
                [
                    nvcc,
                    "--cudart",
                    "shared",
                    *sources.FLAGS,
                    *_DEFINES,
                    *self._includes(tree),
                    *words,
                    source,
                    "-o",
                    objects[-1],
                ]
            )
        return objects

    def module(self, tree: Path, kernels: list[Path], folder: Path) -> Path:
        """The module of a tree's host code and kernels; what it has no kernel for ends in a crash."""
        host, module = folder / "host.o", folder / "module.so"
        flags = ["-std=c++17", "-O0", "-w", "-fPIC", "-c", f"-DTORCH_EXTENSION_NAME={_NAME}", *_DEFINES]
        self._run(["g++", *flags, *self._includes(tree), tree / sources.HOST, "-o", host])
        # Kernels that are not compiled are then null.
        self._run(["objcopy", "--weaken", host])
        libraries = [
            f"-L{self._packages / 'torch/lib'}",
            "-lc10",
            "-lc10_cuda",
            "-ltorch",
            "-ltorch_cpu",
            "-ltorch_cuda",
        ]
        libraries += [f"-L{self._packages / 'nvidia/cuda_runtime/lib'}", "-l:libcudart.so.12"]
        self._run(["g++", "-shared", "-o", module, host, *kernels, *libraries])
        return module

    def proven(self, module: Path, cases: Sequence[str], folder: Path, cache: Store) -> dict[str, dict[str, Any]]:
        """The results of cases of the level `kernels` on a module, see `bare.proven`."""
        only = {"cases": cases, "dtypes": ("bfloat16",), "head_dims": (sparse.DIM,)}
        return bare.proven(module, self.python, folder, Run(cache, Silent(), folder / "log"), only)

    def _run(self, argv: list[str | Path]) -> None:
        done = runner.run(argv, timeout=sources.TIMEOUT)
        assert done.ok, done.text[-3000:]
