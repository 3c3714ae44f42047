"""The cases of a smoke test, which run in the environment of the wheel that they are about.

They import torch, the oracle and the wheel's own vLLM, run on Python 3.9 and later, and know nothing of the rest of
this package: `workers/prove.py` loads them there.
"""
