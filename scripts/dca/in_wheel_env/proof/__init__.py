"""The cases of a smoke test, which run in the environment of the wheel under test.

They import torch, the oracle and the wheel's own vLLM, run on Python 3.9 and later, and import nothing else of this
package: `workers/prove.py` loads them there.
"""
