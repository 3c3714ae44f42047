"""Hands the values of several options to a command as one value, so that its parameters stay few."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def packed(make: Callable[..., object], parameter: str, *options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Options whose values reach a command as one value.

    Args:
        make: makes that value; called with the options' values by their names. A dataclass has fields of these names.
        parameter: the command's parameter that takes the value.
        options: click's decorators, in the order in which the help shows them.
    """

    def declare(target: Any) -> Any:
        for option in reversed(options):
            target = option(target)
        return target

    names = [option.name for option in declare(lambda: None).__click_params__ if option.expose_value]

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def wrapper(**values: Any) -> Any:
            own = {name: values.pop(name) for name in names}
            return function(**{parameter: make(**own)}, **values)

        return declare(wrapper)  # type: ignore[no-any-return]

    return decorate
