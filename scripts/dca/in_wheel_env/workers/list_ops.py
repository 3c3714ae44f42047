"""Worker in the build environment: loads one extension module and prints the schemas it registered, as JSON.

Arguments: the module, and a stand-in for the driver's library, used where there is no driver.
"""

import ctypes
import json
import sys

import torch

module, stand_in = sys.argv[1:]
try:
    ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
except OSError:
    ctypes.CDLL(stand_in, mode=ctypes.RTLD_GLOBAL)
known = {str(schema) for schema in torch._C._jit_get_all_schemas()}
torch.ops.load_library(module)
new = sorted({str(schema) for schema in torch._C._jit_get_all_schemas()} - known)
print(json.dumps(new))
