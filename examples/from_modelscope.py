"""Take a model from ModelScope: download it first, then load the folder.

    uv pip install modelscope
    python examples/from_modelscope.py Qwen/Qwen2.5-7B-Instruct-1M --into /models

`VLLM_USE_MODELSCOPE=True vllm serve Qwen/...` works too, but then the sparse table of a 1M model is looked for on the
other hub: where that one cannot be reached, it hangs or runs dense. A folder has everything beside its config.json.
From the other hub: `huggingface-cli download Qwen/... --local-dir DIR`.
"""

import argparse
from pathlib import Path


def download(name: str, into: Path) -> Path:
    """A model's folder, downloaded where it is not there yet; what is whole is not loaded again."""
    from modelscope import snapshot_download

    return Path(snapshot_download(name, local_dir=str(into / name.rpartition("/")[2])))


def main() -> None:
    """Download, and ask once."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("name", help="on ModelScope")
    given.add_argument("--into", type=Path, default=Path("models"), help="the folder of model folders")
    given.add_argument("--length", type=int, default=32768)
    asked = given.parse_args()

    folder = download(asked.name, asked.into)
    print(f"{folder}: serve it with `vllm serve {folder}`, or check it with `dca config check {folder}`")
    from vllm import LLM, SamplingParams

    llm = LLM(model=str(folder), max_model_len=asked.length, enforce_eager=True)
    sampling = SamplingParams(temperature=0.7, top_p=0.8, repetition_penalty=1.05, max_tokens=256)
    (output,) = llm.chat([{"role": "user", "content": "Where do you come from?"}], sampling)
    print(output.outputs[0].text)


if __name__ == "__main__":
    main()
