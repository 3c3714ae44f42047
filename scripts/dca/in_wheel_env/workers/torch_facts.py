"""Worker in the build environment: prints one line of JSON about the torch there."""

import json
import pathlib
import sysconfig

import torch

site = pathlib.Path(torch.__file__).parent.parent
# Headers of the CUDA math libraries that torch's headers include. Never its runtime's: those are of torch's own CUDA
# version, and must not get under another version's nvcc.
MATH = ("cublas", "cusparse", "cusolver", "cufft", "curand", "cuda_nvrtc", "nvtx")
# From CUDA 13 on all of them lie in one folder, the runtime's too. There is only one line of them so far, and a recipe
# names it as the only one that it compiles with.
TOGETHER = ("cu13",)
includes = [site / "torch/include", site / "torch/include/torch/csrc/api/include"]
includes += [site / "nvidia" / name / "include" for name in (*MATH, *TOGETHER)]
print(
    json.dumps(
        {
            "version": torch.__version__,
            "cuda": torch.version.cuda or "",
            "cxx11_abi": bool(torch.compiled_with_cxx11_abi()),
            "includes": [str(path) for path in includes if path.is_dir()],
            "libraries": str(site / "torch/lib"),
            "python_include": sysconfig.get_path("include"),
        }
    )
)
