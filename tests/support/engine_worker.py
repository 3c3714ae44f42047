"""Serves a tiny model with settings that a guard refuses, and prints what came of it, as JSON.

Runs in the environment of a wheel, on an emulated GPU. Argument: a `Harm` of tests.patches.test_guards_in_an_engine.
"""

import json
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts/dca"))
from in_wheel_env import oracle  # type: ignore[import-not-found]
from in_wheel_env.proof import engine, whole_model  # type: ignore[import-not-found]

SEED = 1


def main() -> None:
    """Serve the requests, and compare the answers with the oracle's."""
    asked = json.loads(sys.argv[1])
    attention = replace(
        engine.MODEL.attention, original=asked["original"], chunking=oracle.Chunking(*asked["chunking"])
    )
    model = replace(engine.MODEL, attention=attention, family=asked["family"])
    drawn = random.Random(SEED)
    words = [drawn.randrange(3, model.vocabulary) for _ in range(max(asked["prompts"]))]
    prompts = [words[:length] for length in asked["prompts"]]
    plan = engine.Plan(model, tuple(asked["prompts"]), words=3, at_once=1, settings=asked["settings"])
    with tempfile.TemporaryDirectory() as folder:
        weights = model.write(Path(folder), SEED)
        file = Path(folder) / "config.json"
        config = {**json.loads(file.read_text()), **asked["config"]}
        config["dual_chunk_attention_config"].update(asked["dual"])
        file.write_text(json.dumps(config))
        try:
            answers, _ = engine.served(plan, folder, prompts)
        except Exception as error:
            print("OUTCOME", json.dumps({"error": f"{type(error).__name__}: {error}"}))
            return
    off = 0.0
    for prompt, (chosen, scores) in zip(prompts, answers, strict=True):
        want = whole_model.forward(model, weights, [*prompt, *chosen][:-1], len(prompt))[len(prompt) - 1 :]
        off = max(off, engine.largest(scores, want))
    print("OUTCOME", json.dumps({"off": off, "bound": engine.BOUND}))


main()
