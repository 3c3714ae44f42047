"""Plans to wheels: which cells share one, which cannot be built, and in which order they are built. Reads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dca.catalogue.plan import Plan
from dca.foundation.errors import DcaError
from dca.matrix.cells import Cell
from dca.pipeline.planned import Planned
from dca.wheelfile.package import file_name


@dataclass(frozen=True)
class Foretold:
    """A cell, and what planning says of it.

    Args:
        cell: the cell.
        planned: its plan; None if there is none.
        refusal: why it cannot be built here; None if it can. With a plan, a machine that reaches more could.
    """

    cell: Cell
    planned: Planned | None
    refusal: DcaError | None = None


@dataclass(frozen=True)
class Wheel:
    """One wheel, and the cells that it serves.

    Args:
        key: identity of its bytes, which leaves out the Python that it is built with.
        name: the file's name without its platform.
        members: its cells with their plans; the first one's builds it.
    """

    key: str
    name: str
    members: tuple[Foretold, ...]

    @property
    def here(self) -> bool:
        """Whether this machine can build it."""
        return self.members[0].refusal is None

    @property
    def planned(self) -> Planned:
        """The plan that builds it."""
        planned = self.members[0].planned
        assert planned is not None  # noqa: S101 - only cells with a plan have a wheel
        return planned

    def has(self, identity: str) -> bool:
        """Whether one of its cells has this id."""
        return any(member.cell.id == identity for member in self.members)


@dataclass(frozen=True)
class Expansion:
    """A whole matrix.

    Args:
        wheels: each once, those that share work next to each other.
        impossible: the cells that no plan is possible for, with the reason.
    """

    wheels: tuple[Wheel, ...]
    impossible: tuple[Foretold, ...]


def expand(foretold: Iterable[Foretold]) -> Expansion:
    """The wheels of a matrix.

    Raises:
        DcaError: DCA-224 when two wheels would have one name.
    """
    groups: dict[str, list[Foretold]] = {}
    impossible = []
    for one in foretold:
        if one.planned is None:
            impossible.append(one)
        else:
            groups.setdefault(one.planned.plan.key, []).append(one)
    wheels = [_wheel(identity, members) for identity, members in groups.items()]
    _check_names(wheels)
    return Expansion(tuple(_ordered(wheels)), tuple(impossible))


def _wheel(identity: str, members: Sequence[Foretold]) -> Wheel:
    # Stable: the first one that can be built here, else the first.
    members = sorted(members, key=lambda one: one.refusal is not None)
    planned = members[0].planned
    assert planned is not None  # noqa: S101 - see `expand`
    return Wheel(identity, file_name(planned.plan, planned.recipe, "*"), tuple(members))


def _check_names(wheels: Sequence[Wheel]) -> None:
    """Reject two wheels of one name: one would replace the other, and no index takes both."""
    named: dict[str, Wheel] = {}
    for wheel in wheels:
        if (other := named.setdefault(wheel.name, wheel)) is not wheel:
            ours, theirs = (one.planned.plan for one in (wheel, other))
            raise DcaError(
                "DCA-224",
                f"two cells give other wheels of one name, {wheel.name}.",
                why=f"`{other.members[0].cell.text}` and `{wheel.members[0].cell.text}` differ in "
                f"{', '.join(_differences(ours, theirs))}, which the version does not show.",
                remedy="leave one of them out, or write two matrices with an output folder and an index each.",
            )


def _differences(one: Plan, other: Plan) -> list[str]:
    """What the plans of two wheels differ in, by the names of the plan's fields."""
    names = [name for name in Plan.model_fields if getattr(one, name) != getattr(other, name)]
    telling = [name for name in names if one.model_copy(update={name: getattr(other, name)}).key != one.key]
    return [name.replace("_", " ") for name in telling]


def _ordered(wheels: Sequence[Wheel]) -> list[Wheel]:
    """Wheels of one recipe, and of one build folder, come together; else they keep the file's order."""
    first: dict[tuple[object, ...], int] = {}
    for number, wheel in enumerate(wheels):
        for prefix in _shared(wheel.planned.plan):
            first.setdefault(prefix, number)
    return sorted(wheels, key=lambda wheel: [first[prefix] for prefix in _shared(wheel.planned.plan)])


def _shared(plan: Plan) -> list[tuple[object, ...]]:
    """What wheels share: the recipe, then the build folder and so its objects, then all sources."""
    sources = tuple((source.name, source.pin) for source in plan.sources)
    toolkit = plan.toolkit.version if plan.toolkit else ""
    # Everything that affects every object, as the build folder's identity has it.
    objects = (plan.profile, toolkit, plan.host_compiler_version, plan.torch, plan.archs, plan.ptx)
    whole = (plan.recipe, objects, sources)
    return [whole[: length + 1] for length in range(len(whole))]
