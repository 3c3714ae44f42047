"""Use a model from ModelScope: download it first, then load the folder.

    uv pip install modelscope
    python examples/from_modelscope.py Qwen/Qwen2.5-7B-Instruct-1M --into /models

`VLLM_USE_MODELSCOPE=True vllm serve Qwen/...` works too, but vLLM then searches Hugging Face for the sparse table of a
1M model; without access to it, vLLM hangs or runs dense attention. A downloaded folder contains the table.
From Hugging Face: `huggingface-cli download Qwen/... --local-dir DIR`.
"""

import argparse
from pathlib import Path


def download(name: str, into: Path) -> Path:
    """Download a model into a folder; complete files are not downloaded again."""
    from modelscope import snapshot_download

    return Path(snapshot_download(name, local_dir=str(into / name.rpartition("/")[2])))


def main() -> None:
    """Download the model, load it, and ask one question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the model's name on ModelScope")
    parser.add_argument("--into", type=Path, default=Path("models"), help="folder to download into")
    parser.add_argument("--length", type=int, default=32768, help="prompt and answer together, in tokens")
    args = parser.parse_args()

    folder = download(args.name, args.into)
    print(f"{folder}: serve it with `vllm serve {folder}`, or check it with `dca config check {folder}`")
    from vllm import LLM, SamplingParams

    llm = LLM(model=str(folder), max_model_len=args.length, enforce_eager=True)
    sampling = SamplingParams(temperature=0.7, top_p=0.8, repetition_penalty=1.05, max_tokens=256)
    (output,) = llm.chat([{"role": "user", "content": "Where do you come from?"}], sampling)
    print(output.outputs[0].text)


if __name__ == "__main__":
    main()
