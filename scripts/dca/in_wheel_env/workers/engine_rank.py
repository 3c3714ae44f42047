"""Worker in a wheel's environment: one rank of an engine with several, on an emulated GPU of its own.

Arguments: the folder of the model, which has the prompts in it, and the file for the answers. The variables are those
of torch's launcher.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

# Behind all packages: the folder has other modules, with names that a package may have too.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from in_wheel_env.proof import engine  # type: ignore[import-not-found]


def main(folder: str, result: Path) -> None:
    """Serve, and write the answers."""
    from vllm.platforms import current_platform

    # NCCL needs GPUs.
    type(current_platform).dist_backend = "gloo"
    prompts = json.loads(Path(folder, "prompts.json").read_text())
    answers, seen = engine.served(engine.RANKS, folder, prompts)
    result.write_text(json.dumps({"answers": answers, "steps": seen.steps, "counts": seen.counts}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
