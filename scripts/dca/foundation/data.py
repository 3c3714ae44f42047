"""Finds the data: `build/` and `patches/` of a checkout, or the copies in an installed package."""

from __future__ import annotations

from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
# Code that runs in the environment of a wheel or a build, where neither dca nor its packages are installed.
IN_WHEEL_ENV = PACKAGE / "in_wheel_env"


@cache
def data_root() -> Path:
    """The folder that holds `build/` and `patches/`."""
    checkout = PACKAGE.parent.parent
    if (checkout / "build" / "recipes").is_dir() and (checkout / "scripts" / "dca") == PACKAGE:
        return checkout
    return PACKAGE / "_data"


def recipes_folder() -> Path:
    """One TOML file per recipe."""
    return data_root() / "build" / "recipes"


def source_folder(path: str) -> Path:
    """The source of a plugin, which travels with this tool.

    Args:
        path: below `build/`.
    """
    return data_root() / "build" / path


def toolkits_folder() -> Path:
    """One TOML file per source of CUDA toolkits."""
    return data_root() / "build" / "toolkits"


def models_folder() -> Path:
    """One TOML file per model."""
    return data_root() / "build" / "models"


def classes_file() -> Path:
    """What models' classes take for what a config.json does not state."""
    return data_root() / "build" / "classes" / "classes.toml"


def registries_file() -> Path:
    """The classes of models that each release of vLLM has."""
    return data_root() / "build" / "classes" / "registries.toml"


def gpus_file() -> Path:
    """The known GPUs, and the memory that a server uses beside what is calculated."""
    return data_root() / "build" / "gpus" / "gpus.toml"


def engine_memory_file() -> Path:
    """What each version of the engine counts, keeps and chooses by itself."""
    return data_root() / "build" / "gpus" / "engines.toml"


def torch_file() -> Path:
    """The known releases of torch."""
    return data_root() / "build" / "torch" / "releases.toml"


def kernel_faults_file() -> Path:
    """The known faults of kernels that no GPU notices."""
    return data_root() / "build" / "kernels" / "faults.toml"


def serving_folder() -> Path:
    """One TOML file per recipe: how its engine is started."""
    return data_root() / "build" / "serving"


def readers_folder() -> Path:
    """One TOML file per reader of a model's config.json."""
    return data_root() / "build" / "readers"


def reader_lock(reader: str) -> Path:
    """The packages that are added to the environment in which a reader runs."""
    return data_root() / "build" / "locks" / "readers" / f"{reader}.txt"


def engines_folder() -> Path:
    """One TOML file per engine that runs on a CPU."""
    return data_root() / "build" / "engines"


def engine_lock(engine: str) -> Path:
    """The packages of the environment in which an engine runs on a CPU."""
    return data_root() / "build" / "locks" / "engines" / f"{engine}.txt"


def ruler_file() -> Path:
    """What is known of the benchmark RULER."""
    return data_root() / "build" / "ruler" / "ruler.toml"


def ruler_lock() -> Path:
    """The packages of the environment in which RULER's tasks run."""
    return data_root() / "build" / "locks" / "ruler" / "run.txt"


def caches_folder() -> Path:
    """One TOML file per compiler cache."""
    return data_root() / "build" / "caches"


def cache_lock(name: str) -> Path:
    """The package that a compiler cache is installed from."""
    return data_root() / "build" / "locks" / "caches" / f"{name}.txt"


def stable_folder() -> Path:
    """What compiles a kernel for torch's stable ABI."""
    return data_root() / "build" / "stable"


def locks_folder(recipe: str) -> Path:
    """The locks of one recipe: `run.txt`, `build.txt`, and `kernels.txt` where it offers bare kernels."""
    return data_root() / "build" / "locks" / recipe


def build_lock(recipe: str, profile: str) -> Path:
    """The packages that a recipe is built with."""
    return locks_folder(recipe) / ("kernels.txt" if profile == "kernels" else "build.txt")


def run_lock(recipe: str, profile: str) -> Path:
    """The packages that its wheel runs with."""
    return locks_folder(recipe) / ("kernels.txt" if profile == "kernels" else "run.txt")


def lean_folder() -> Path:
    """The CMake project of the lean profile."""
    return data_root() / "build" / "lean"


def patches_folder(recipe: str) -> Path:
    """The patch series of one recipe."""
    return data_root() / "patches" / recipe


def failures_folder() -> Path:
    """Known failures, and the causes and remedies of this tool's own codes: one TOML file per stage."""
    return data_root() / "build" / "failures"
