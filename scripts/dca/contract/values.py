"""What a plugin's contract says that cannot be read from its source, and what a check of a release found."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from dca.catalogue.recipes import RelativePath, Sha256
from dca.foundation import data, datafile
from dca.foundation.documents import Document, Value

# `gone`: a name, a member or a field is no longer there. `arguments`: a function takes others. `abstract`: a base class
# wants a method that the plugin does not have. `changed`: code that the plugin relies on is not the proven one.
# `unreadable`: the source is not Python that can be read here.
Kind = Literal["gone", "arguments", "abstract", "changed", "unreadable"]


class Proven(Value):
    """A release that the plugin was proven with.

    Args:
        version: of the release.
        file: its source distribution.
        sha256: of that file.
    """

    version: str
    file: str
    sha256: Sha256


class Fields(Value):
    """What the plugin reads or sets of an object that it gets.

    Args:
        module: where its class is defined, below the source's top folder.
        of: the class.
        names: attributes, properties and methods.
        why: what for.
    """

    module: RelativePath
    of: str
    names: tuple[str, ...] = Field(min_length=1)
    why: str


class Relied(Value):
    """Code that the plugin does not call, or whose result it takes for granted.

    Args:
        module: where it is, below the source's top folder.
        name: of the function, or of the method after its class and a dot.
        why: what of it the plugin relies on.
        code: a hash of the code in each proven release, by version.
    """

    module: RelativePath
    name: str
    why: str
    code: dict[str, str] = {}


class Family(Value, protected_namespaces=()):
    """What the config of the tiny model says that an engine is tried with.

    Args:
        architectures: of its config.
        model_type: of its config.
    """

    architectures: tuple[str, ...] = Field(min_length=1)
    model_type: str


class Contract(Value):
    """What a plugin needs of the package that it is for.

    Args:
        package: the plugin's own, below its folder.
        engine: the package that it is for.
        proven: the releases it was proven with, the newest first.
        model: the architecture that its engine is tried with.
        fields: what it reads of objects.
        relied: what it relies on.
    """

    schema_: Literal["dca.contract/1"] = Field(alias="schema")
    package: str
    engine: str
    proven: tuple[Proven, ...] = Field(min_length=1)
    model: Family
    fields: tuple[Fields, ...] = ()
    relied: tuple[Relied, ...] = ()


class Moved(Value):
    """Something that is not as the plugin needs it.

    Args:
        kind: of the difference.
        where: in the release: a file, and what of it.
        what: is different, in words.
        needed: where and what for the plugin needs it.
    """

    kind: Kind
    where: str
    what: str
    needed: str


# How far log-probabilities may be from the whole model's, in float32.
WORST = 1e-4


class Answered(Value):
    """What a release's engine said with the plugin.

    Args:
        engine: whose environment it ran in.
        borrowed: compiled modules of that engine that it ran with.
        version: that it reports.
        torch: the version of torch that it ran with.
        implementations: modules of what its layers attend with.
        prompts: how many it answered.
        cached: tokens of them that came from its cache.
        wrong_words: places where a whole model says another token.
        worst: the largest difference of a log-probability from the whole model's.
    """

    engine: str
    borrowed: tuple[str, ...]
    version: str
    torch: str
    implementations: tuple[str, ...]
    prompts: int
    cached: int
    wrong_words: int
    worst: float

    def right(self, package: str) -> bool:
        """Whether the plugin's package computed it, and it is what the whole model says."""
        ours = {name.partition(".")[0] for name in self.implementations} == {package}
        return ours and self.cached > 0 and self.wrong_words == 0 and self.worst < WORST


class Checked(Document):
    """What a release of the engine has of what the plugin needs.

    Args:
        engine: the package.
        version: of the release.
        source: its source distribution.
        sha256: of that file.
        proven: whether the plugin was proven with this release, from this very file.
        counts: how many needs of each sort were looked at.
        moved: what is not as the plugin needs it.
        answered: what its engine said with the plugin, where it was run.
        right: whether that is right; None where it was not run.
    """

    SCHEMA: ClassVar[str] = "dca.plugin-check/1"

    engine: str
    version: str
    source: str
    sha256: Sha256
    proven: bool
    counts: dict[str, int]
    moved: tuple[Moved, ...]
    answered: Answered | None = None
    right: bool | None = None

    @property
    def broken(self) -> tuple[Moved, ...]:
        """What stops the plugin, or would: all but what was changed inside."""
        return tuple(moved for moved in self.moved if moved.kind != "changed")


def plugin_folder() -> Path:
    """The plugin's project."""
    return data.source_folder("plugin")


def load(path: Path | None = None) -> Contract:
    """The contract beside the plugin, or another.

    Raises:
        DcaError: DCA-202 for a wrong key or value.
    """
    return datafile.load(Contract, path or plugin_folder() / "contract.toml")
