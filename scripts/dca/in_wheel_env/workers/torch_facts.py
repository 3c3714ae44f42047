"""Worker in the build environment: prints one line of JSON about the torch there."""

import json
import pathlib
import sysconfig

import torch

site = pathlib.Path(torch.__file__).parent.parent
# Headers of the CUDA math libraries, which torch's headers include. Never those of its runtime, whose CUDA version is
# torch's and may differ from that of nvcc.
MATH = ("cublas", "cusparse", "cusolver", "cufft", "curand", "cuda_nvrtc", "nvtx")
# Since CUDA 13 all of them are in one folder, together with the runtime's. There is only one such folder so far, and a
# recipe with it compiles with that CUDA line only.
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
