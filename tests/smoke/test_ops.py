"""The ops around attention: each that a recipe builds is compared with a reference, or its reason is written down."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from dca.catalogue import recipes
from tests.support import ROOT

KNOWN = """
import json
from in_wheel_env.proof import ops
print(json.dumps([sorted({*ops.REFERENCES, *ops.ELSEWHERE}), sorted(ops.WITHOUT)]))
"""


def test_every_op_of_a_recipe_is_compared_or_its_reason_is_documented(
    build_python: Path, all_recipes: tuple[recipes.Loaded, ...]
) -> None:
    done = subprocess.run(
        [build_python, "-c", KNOWN], cwd=ROOT / "scripts/dca", capture_output=True, text=True, check=True
    )
    compared, without = map(set, json.loads(done.stdout))
    groups = (group for loaded in all_recipes for group in loaded.recipe.groups.values())
    built = {op.rpartition("::")[2] for group in groups for op in group.ops}

    assert built - compared - without == set()
    assert without <= built - compared
    docs = (ROOT / "docs/smoke.md").read_text()
    assert {name for name in without if f"`{name}`" not in docs} == set()
