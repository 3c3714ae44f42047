"""What the tests with a real vLLM share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from dca.catalogue import machine
from dca.engines import values
from dca.engines.values import Made
from tests.support import RunDca, real_vllm

Engines = Callable[[str], Made]


@pytest.fixture(scope="session")
def engines(dca: RunDca) -> Engines:
    """The environment of an engine by its name, made once in the cache of the session."""

    @cache
    def make(name: str) -> Made:
        if machine.own_python().version not in SpecifierSet(values.find(name, values.load_all()).python):
            pytest.skip(f"{name} is not for this Python")
        return real_vllm.make_engine(dca, name)

    return make


@pytest.fixture(scope="session")
def tiny_chat(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model that chats."""
    return real_vllm.make_model(engines("vllm-0.32"), tmp_path_factory.mktemp("model"))
