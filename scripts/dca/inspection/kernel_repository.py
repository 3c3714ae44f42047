"""Checks a folder against the rules of kernel repositories: layout, metadata, digest, and what modules may require.

The rules are those of the kernels library and of its builder's ABI check, which this does not replace: it reads what
is in the folder, and runs nothing of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from dca.binaries import elf
from dca.binaries.elf import ElfError
from dca.binaries.limits import TooLargeError, Work
from dca.binaries.newer import OLDEST
from dca.catalogue.kernel_layout import BUILDS, METADATA, VARIANT, Metadata
from dca.inspection.values import InspectedModule

MOST_METADATA = 4 << 20
# Variants of Python alone, and those of another framework.
_OTHERS = re.compile(r"torch-[a-z]+|tvm-ffi\d+-[a-z]+\d*-\w+-\w+")
# What a module may be linked with: the C and C++ libraries, torch, and the CUDA libraries that torch requires.
_LIBRARIES = re.compile(
    r"lib(?:c|m|dl|rt|pthread|gcc_s|stdc\+\+)\.so\.\d+|ld-linux-[\w-]+\.so\.\d+"
    r"|lib(?:c10|c10_cuda|torch|torch_cpu|torch_cuda|torch_python)\.so"
    r"|libcuda\.so\.1|lib(?:cudart|cublas|cublasLt|cudnn\w*|cufft|curand|cusolver|cusparse|nvrtc|nvJitLink|nccl)\.so\.\d+"
)
_PYTHON = re.compile(r"_?Py[A-Z_]\w*")
# Functions and data of Python's limited API that extension modules use, all in it since Python 3.2 (docs.python.org,
# "Stable ABI"); not all of it: a symbol that is not here is told, and can still be one.
_LIMITED = re.compile(
    r"PyModule_(?:Create2|AddObject|AddIntConstant|AddStringConstant|GetDict|GetName|GetState)"
    r"|PyArg_(?:ParseTuple|ParseTupleAndKeywords|UnpackTuple)"
    r"|PyErr_(?:SetString|SetObject|Format|Occurred|Clear|NewException|NoMemory|Fetch|Restore|ExceptionMatches|SetNone"
    r"|NormalizeException|Print|WarnEx)"
    r"|PyExc_\w+"
    r"|PyLong_(?:From|As)(?:Long|LongLong|UnsignedLong|UnsignedLongLong|Double|VoidPtr|Ssize_t|Size_t)"
    r"|PyLong_AsLongAndOverflow|PyFloat_(?:FromDouble|AsDouble)|PyBool_FromLong"
    r"|PyUnicode_(?:FromString|FromStringAndSize|FromFormat|AsUTF8String|DecodeUTF8)"
    r"|PyBytes_(?:FromString|FromStringAndSize|AsString|AsStringAndSize|Size)"
    r"|PyTuple_(?:New|Size|GetItem|SetItem|Pack)|PyList_(?:New|Size|GetItem|SetItem|Append)"
    r"|PyDict_(?:New|Size|GetItem|GetItemString|SetItem|SetItemString|Next|DelItem|Contains)"
    r"|PyObject_(?:Call|CallObject|CallFunction|CallMethod|GetAttr|GetAttrString|SetAttr|SetAttrString|HasAttrString"
    r"|IsTrue|Repr|Str|Hash|RichCompare|RichCompareBool|GenericGetAttr|GenericSetAttr|GetItem|SetItem)"
    r"|PyGILState_(?:Ensure|Release)|PyEval_(?:SaveThread|RestoreThread)|PyImport_(?:ImportModule|Import|AddModule)"
    r"|PyCapsule_(?:New|GetPointer|GetName|IsValid|GetContext|SetContext|Import)|PyType_(?:FromSpec|Ready|IsSubtype)"
    r"|PyMem_(?:Malloc|Realloc|Free)|Py_(?:IncRef|DecRef|IsInitialized)|PyCFunction_NewEx"
    r"|Py\w+_Type|_Py_(?:Dealloc|NoneStruct|TrueStruct|FalseStruct|NotImplementedStruct)"
)


def variants(folder: Path) -> tuple[Path, ...]:
    """The variants of a kernel repository, which has metadata.json in a folder of `build/`; none if it is not one."""
    found = sorted(file.parent for file in (folder / BUILDS).glob(f"*/{METADATA}"))
    return tuple(variant for variant in found if variant.is_dir())


def check(folder: Path, modules: Iterable[InspectedModule]) -> Iterator[str]:
    """What breaks a rule; nothing for a folder that is no kernel repository.

    Args:
        folder: of the repository.
        modules: that were found in it, by their paths in it.
    """
    by_variant: dict[str, list[InspectedModule]] = {}
    for module in modules:
        parts = module.path.split("/")
        if parts[0] == BUILDS and len(parts) > 2:
            by_variant.setdefault(parts[1], []).append(module)
    for variant in variants(folder):
        at = f"{BUILDS}/{variant.name}"
        about = None
        try:
            with (variant / METADATA).open("rb") as stream:
                about = Metadata.model_validate_json(stream.read(MOST_METADATA))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            yield f"{at}/{METADATA}: {where + ': ' if where else ''}{first['msg']}."
        except OSError as error:
            yield f"{at}/{METADATA}: {error.strerror}."
        own = by_variant.get(variant.name, [])
        yield from _layout(variant, at, about)
        for module in own:
            yield from _module(folder / module.path, module, about, variant.name)


def _layout(variant: Path, at: str, about: Metadata | None) -> Iterator[str]:
    named = VARIANT.fullmatch(variant.name)
    if named is None and not _OTHERS.fullmatch(variant.name):
        yield f"{at} is not named as a variant, such as torch28-cxx11-cu128-x86_64-linux."
    if not (variant / "__init__.py").is_file():
        yield f"{at} has no __init__.py."
    if about is None:
        return
    if not (variant / about.module / "__init__.py").is_file():
        yield f"{at} has no {about.module}/__init__.py, which old releases of the kernels library import."
    if named and about.backend.type == "cuda" and not about.backend.archs:
        yield f"{at}/{METADATA} names no GPU architectures."
    if about.digest is None:
        yield f"{at}/{METADATA} has no digest."
    else:
        yield from (f"{at}: {difference}." for difference in about.digest.differences(variant))


def _module(file: Path, module: InspectedModule, about: Metadata | None, variant: str) -> Iterator[str]:
    """What is wrong with a library of a variant."""
    if module.kind != "library":
        return
    path, named = module.path, VARIANT.fullmatch(variant)
    if module.newer:
        yield f"{path} requires symbols that {OLDEST} does not have: {', '.join(module.newer)}."
    foreign = [library for library in module.needed if not _LIBRARIES.fullmatch(library)]
    if foreign:
        yield f"{path} is linked with {', '.join(foreign)}; only torch, its CUDA and C libraries are allowed."
    if named and named["stable_major"] and module.torch_symbols and not module.stable_abi:
        yield f"{path} uses torch's C++, but its variant is for torch's stable ABI."
    try:
        library = elf.read(file)
        unknown = sorted(
            symbol.name
            for symbol in library.undefined
            if _PYTHON.fullmatch(symbol.name) and not _LIMITED.fullmatch(symbol.name)
        )
        if unknown:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            yield f"{path} uses {', '.join(unknown[:3])}{more}, not known to be in Python's limited API."
        if about and module.torch_symbols and not _has_text(file, about.id):
            yield f"{path} does not register its ops as {about.id}, the id of its metadata."
    except (ElfError, TooLargeError, OSError):
        # Told already, by what has read it before.
        return


def _has_text(file: Path, text: str) -> bool:
    """Whether a library has a name among its constants, or the number that a short name begins with in its code."""
    start, whole = text.encode()[:8], text.encode()
    with file.open("rb") as stream:
        image = elf.Image(stream, Work())
        for section in image.sections:
            content = image.content(section) if section.name.startswith((".rodata", ".text")) else b""
            if whole in content or (section.name == ".text" and len(whole) < 16 and start in content):
                return True
    return False
