"""Hands the values of several options to a command as one value, so that its parameters stay few."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def packed(kind: type, name: str, *options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Options whose values reach a command as one frozen dataclass.

    Args:
        kind: the dataclass. Its fields have the names under which click hands on the options' values.
        name: of the command's parameter that takes it.
        options: click's decorators, in the order in which the help shows them.
    """
    names = [field.name for field in fields(kind)]

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def wrapper(**values: Any) -> Any:
            packed_values = {field: values.pop(field) for field in names}
            return function(**{name: kind(**packed_values)}, **values)

        wrapped: Any = wrapper
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped  # type: ignore[no-any-return]

    return decorate
