"""The one kind of error that users see: a stable code, what happened, why, and what to do next.

The first digit of a code is the exit code of the command, so `DCA-304` always ends with exit 3.
"""

from __future__ import annotations

import errno
from enum import IntEnum

from dca.foundation.secrets import hide


class ExitCode(IntEnum):
    """What a command's exit status means; the same for every command (DESIGN section 3)."""

    OK = 0
    CHECK_FAILED = 1
    USAGE = 2
    NO_PLAN = 3
    SOURCE = 4
    PATCH = 5
    COMPILE = 6
    WHEEL = 7
    SMOKE = 8
    PUBLISH = 9
    INTERRUPTED = 130


# Every code the tool can print, with what it stands for. A test finds any code that is used and not listed here.
CODES: dict[str, str] = {
    "DCA-101": "the disk is full",
    "DCA-102": "the operating system refused to read or write a file",
    "DCA-103": "a program that is needed is not installed",
    "DCA-104": "a document on disk is not what this version of the tool writes",
    "DCA-105": "something that was checked is not as the work needs it",
    "DCA-106": "a log holds a failure that is not known",
    "DCA-107": "a conda environment could not be made",
    "DCA-110": "the wheel does not serve the model, or not on the GPU architecture asked for",
    "DCA-111": "a wheel is not what its evidence says, or is not signed as it must be",
    "DCA-120": "rope_scaling names no type, or two different ones",
    "DCA-121": "a key of rope_scaling is one that a reader ignores, lacks or does not know",
    "DCA-122": "an integer stands where readers want a float, or the other way round",
    "DCA-123": "factor x original length, or max_position_embeddings beside it, is not the length that readers want",
    "DCA-124": "dual chunk attention has no sparse table, so it stops or runs dense",
    "DCA-125": "the sparse table has the wrong layers, heads or entries",
    "DCA-126": "rope_theta is lost, or not the model's",
    "DCA-127": "the context length is above the rows of the rotary table, or above what the model was made for",
    "DCA-128": "YaRN and dual chunk attention are set together",
    "DCA-129": "a chunk is not divisible by the KV cache's page size",
    "DCA-130": "a sliding window is in use",
    "DCA-131": "the heads do not allow the tensor-parallel size",
    "DCA-132": "layers or heads are not the model's, or contradict each other",
    "DCA-133": "the numbers of dual_chunk_attention_config are not usable, or not the model's",
    "DCA-134": "a reader that was named stops at dual_chunk_attention_config",
    "DCA-135": "the file begins with a byte-order mark, which readers refuse",
    "DCA-136": "rope_scaling and rope_parameters say different things",
    "DCA-150": "the model does not fit into the GPUs' memory as asked",
    "DCA-151": "quantized weights cannot be divided over so many GPUs",
    "DCA-152": "the GPU does not have the dtype, or no kernels for the quantized weights",
    "DCA-153": "the kernels of dual chunk attention do not run on the GPU, or not in the dtype",
    "DCA-154": "dual chunk attention does not bear a setting of the server",
    "DCA-155": "an environment variable chooses another backend or engine for the server, or lifts its limit",
    "DCA-156": "a step has more tokens than the sparse kernel's lists can hold",
    "DCA-157": "the weights are not quantized as asked",
    "DCA-158": "the engine has no dual chunk attention for the model's class",
    "DCA-159": "the server ended with an error",
    "DCA-160": "a server does not answer, or does not let the client in",
    "DCA-161": "a server does not keep to the protocol, or to its deadline",
    "DCA-162": "a server does not take a prompt of the length asked for",
    "DCA-163": "a served model does not answer with what it was asked for",
    "DCA-201": "a command-line value is wrong",
    "DCA-202": "a data file (recipe, toolkit) has a wrong key or value",
    "DCA-203": "there is no recipe, toolkit or group of that name",
    "DCA-204": "a file or folder named on the command line does not exist or is of the wrong kind",
    "DCA-205": "a file is not a model's config.json",
    "DCA-206": "a config.json, or another file of a model, is not JSON that can be edited without loss",
    "DCA-207": "a file or folder cannot be changed as asked: its kind, its permissions, or one is there already",
    "DCA-208": "what the config.json says does not allow the setting",
    "DCA-209": "there is nothing to undo, or the file has been changed since",
    "DCA-210": "another run is changing the folder",
    "DCA-211": "there is no reader of that name, or it cannot be installed",
    "DCA-212": "no one config.json is right for all the readers named",
    "DCA-213": "a sparse table cannot be used for the model",
    "DCA-214": "the model is not known, or its numbers are not",
    "DCA-220": "a file is not a key to sign or to check with",
    "DCA-221": "there is no identity to sign with",
    "DCA-222": "a file is not a Sigstore trust configuration",
    "DCA-300": "no plan is possible: no recipe can be built as asked",
    "DCA-301": "the recipe's source cannot be reached",
    "DCA-302": "no toolkit for the CUDA version asked for",
    "DCA-303": "the recipe does not support the CUDA version asked for",
    "DCA-304": "the toolkit's nvcc does not know the GPU architecture",
    "DCA-305": "the profile does not offer the GPU architecture",
    "DCA-306": "Python is outside the recipe's range",
    "DCA-307": "the lock's transformers is outside the range that works",
    "DCA-308": "no host compiler that the toolkit accepts",
    "DCA-309": "the recipe does not have the profile or group",
    "DCA-310": "the machine is not one that wheels can be built on",
    "DCA-312": "the profile does not serve the model",
    "DCA-401": "a download did not have the pinned hash",
    "DCA-402": "a URL or index could not be reached",
    "DCA-403": "the index does not have the pinned file",
    "DCA-404": "an archive holds a path that leaves its folder",
    "DCA-405": "a git repository could not be read, or does not have the pinned commit",
    "DCA-406": "a wheel on the index lacks a member that is pinned",
    "DCA-407": "an environment could not be made",
    "DCA-408": "a toolkit could not be unpacked",
    "DCA-409": "something is not in the cache, and may not be fetched",
    "DCA-410": "a file is not a bundle, is damaged, or does not hold what the build needs",
    "DCA-501": "a patch does not apply",
    "DCA-502": "a patch is not one that this tool applies (its path, mode or form)",
    "DCA-601": "the toolkit could not compile and link a small kernel",
    "DCA-602": "CMake could not configure the build",
    "DCA-603": "a compiler failed",
    "DCA-604": "upstream's bindings lack an op that the recipe names",
    "DCA-605": "a module was linked but does not load, or lacks an op",
    "DCA-606": "a compiler had too little memory",
    "DCA-701": "the wheel is not a valid wheel",
    "DCA-702": "the wheel is not what was planned",
    "DCA-703": "upstream's setup.py could not make the Python part of the wheel",
    "DCA-801": "the wheel does not compute what it should",
    "DCA-802": "the wheel, or this machine, is not one that can be proven as asked",
    "DCA-803": "the index conversion could not be compiled for the CPU",
    "DCA-804": "the cases could not be run to their end",
    "DCA-901": "the wheel is one that is not published",
    "DCA-902": "the name of the wheel is taken by other bytes",
    "DCA-903": "the index has no such wheel",
    "DCA-904": "the folder or bucket is not an index of this tool, or has a symbolic link that is not followed",
    "DCA-905": "the repository did not take the wheel",
    "DCA-906": "somebody else changed the index meanwhile",
    "DCA-907": "the evidence does not belong to the wheel",
    "DCA-908": "a record of the index is damaged",
}


class DcaError(Exception):
    """An error with a code.

    Args:
        code: one of `CODES`.
        what: what happened, one sentence.
        why: the reason, or the program's own words.
        remedy: what to do next.
        answered: whether the command has already printed its result as JSON, with what is wrong in it.
        output: last lines of the program that failed, if the error is about one; what the catalogue of known failures
            says of them is printed with the error.
    """

    def __init__(
        self,
        code: str,
        what: str,
        *,
        why: str = "",
        remedy: str = "",
        answered: bool = False,
        output: tuple[str, ...] = (),
    ) -> None:
        if code not in CODES:
            raise ValueError(f"unknown error code {code}")
        super().__init__(what)
        self.code = code
        # It may quote a program, or a URL that the user gave.
        self.what = hide(what)
        self.why = hide(why)
        self.remedy = remedy
        self.answered = answered
        self.output = output

    @property
    def exit_code(self) -> ExitCode:
        """The exit status of the command that ends with this error."""
        return ExitCode(int(self.code[4]))

    def __str__(self) -> str:
        lines = [f"{self.code}: {self.what}"]
        if self.why:
            lines.append("  Why:  " + self.why.replace("\n", "\n        "))
        if self.remedy:
            lines.append("  Next: " + self.remedy.replace("\n", "\n        "))
        return "\n".join(lines)


class Interrupted(BaseException):
    """SIGTERM or SIGHUP arrived. Like KeyboardInterrupt it passes `except Exception`."""


def from_os_error(error: OSError) -> DcaError:
    """The user's view of an operating-system error."""
    name = error.filename if isinstance(error.filename, str) else ""
    where = f" at {name}" if name else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(where.strip(), error.strerror or "")
    return DcaError("DCA-102", f"{error.strerror or error}{where}.", remedy="check the path and its permissions.")


def disk_full(where: str, why: str = "") -> DcaError:
    """The error for a disk without room, whoever noticed it."""
    return DcaError(
        "DCA-101",
        f"the disk is full{' ' + where if where else ''}.",
        why=why,
        remedy="free some space, or put the cache elsewhere with --cache-dir (DCA_CACHE_DIR); "
        "then run the same command again: what was finished is kept.",
    )
