"""The platform tag for modules: the oldest manylinux policy that allows every symbol they require."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

# Libraries that torch and its dependencies install; wheels of this tool do not include them.
PROVIDED = frozenset(
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
    """A manylinux tag (PEP 600) by auditwheel's policies, or such as `linux_x86_64` if a module fits no policy.

    A module fits no policy if it requires a library that no policy allows and that is not torch's or CUDA's.

    Args:
        modules: at least one, all for the same processor, which need not be this machine's.
    """
    from auditwheel.elfutils import elf_find_versioned_symbols
    from auditwheel.lddtree import ldd
    from auditwheel.libc import Libc
    from auditwheel.policy import WheelPolicies
    from elftools.elf.elffile import ELFFile

    trees = {module: ldd(module, exclude=PROVIDED) for module in modules}
    (architecture,) = {tree.platform.baseline_architecture for tree in trees.values()}
    policies = WheelPolicies(libc=Libc.GLIBC, arch=architecture)
    symbols: dict[str, set[str]] = defaultdict(set)
    fits = []
    for module, tree in trees.items():
        with module.open("rb") as stream:
            for library, version in elf_find_versioned_symbols(ELFFile(stream)):
                symbols[library].add(version)
        references = policies.lddtree_external_references(tree, module.parent)
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
