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
from in_wheel_env import tiny  # type: ignore[import-not-found]
from in_wheel_env.proof import engine  # type: ignore[import-not-found]

SEED = 1


def main() -> None:
    """Serve the requests, and compare the answers with the oracle's."""
    asked = json.loads(sys.argv[1])
    size, local = asked["chunking"]
    dual = {"chunk_size": size, "local_size": local, "original_max_position_embeddings": asked["original"]}
    model = replace(engine.MODEL, dual=dual, seed=SEED)
    drawn = random.Random(SEED)
    words = [drawn.randrange(3, tiny.VOCABULARY) for _ in range(max(asked["prompts"]))]
    prompts = [words[:length] for length in asked["prompts"]]
    plan = engine.Plan(model, tuple(asked["prompts"]), words=3, at_once=1, settings=asked["settings"])
    with tempfile.TemporaryDirectory() as folder:
        tiny.make(Path(folder), model, asked["family"])
        file = Path(folder) / "config.json"
        config = {**json.loads(file.read_text()), **asked["config"]}
        config["dual_chunk_attention_config"].update(asked["dual"])
        file.write_text(json.dumps(config))
        try:
            answers, _ = engine.served(plan, folder, prompts)
        except Exception as error:
            print("OUTCOME", json.dumps({"error": f"{type(error).__name__}: {error}"}))
            return
        off = max(
            engine.largest(answer[1], engine.oracle_says(folder, model, prompt, answer, plan.attended(len(prompt))))
            for prompt, answer in zip(prompts, answers, strict=True)
        )
    print("OUTCOME", json.dumps({"off": off, "bound": engine.BOUND}))


main()
