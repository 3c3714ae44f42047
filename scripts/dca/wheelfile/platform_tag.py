"""The platform tag that modules deserve: the oldest manylinux policy that has every symbol they want."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

# What torch and its packages bring into the environment; the loader finds them there, and no wheel of ours holds them.
BROUGHT = frozenset(
    {
        "libtorch*.so*",
        "libc10*.so*",
        "libcuda.so*",
        "libcudart.so*",
        "libcublas*.so*",
        "libnvrtc*.so*",
        "libnccl.so*",
        "libgomp.so*",
    }
)


def platform_tag(modules: Iterable[Path]) -> str:
    """A manylinux tag (PEP 600) by auditwheel's policies, or `linux_x86_64` when a module fits none of them.

    A module fits none when it wants a library that is on no policy's list and is not torch's or CUDA's.
    """
    from auditwheel.architecture import Architecture
    from auditwheel.elfutils import elf_find_versioned_symbols
    from auditwheel.lddtree import ldd
    from auditwheel.libc import Libc
    from auditwheel.policy import WheelPolicies
    from elftools.elf.elffile import ELFFile

    policies = WheelPolicies(libc=Libc.GLIBC, arch=Architecture.x86_64)
    symbols: dict[str, set[str]] = defaultdict(set)
    fits = []
    for module in modules:
        with module.open("rb") as stream:
            for library, version in elf_find_versioned_symbols(ELFFile(stream)):
                symbols[library].add(version)
        references = policies.lddtree_external_references(ldd(module, exclude=BROUGHT), module.parent)
        fits.append(
            max(
                (
                    reference.policy
                    for reference in references.values()
                    if not reference.libs and not reference.blacklist
                ),
                default=policies.linux,
            )
        )
    return str(min([policies.versioned_symbols_policy(symbols), *fits]).name)
