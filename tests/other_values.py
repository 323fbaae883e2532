"""For tests that follow an option: a value that it may have and that is not its default."""

from typing import Any

from deepcluster.recipe import Option


def other_value(option: Option) -> Any:
    default = option.default
    if isinstance(default, bool):
        return not default
    if isinstance(default, str):
        return next((choice for choice in option.choices if choice != default), "other")
    step = 1 if isinstance(default, int) else 0.0625
    return default + step if default + step <= option.high else default - step


class Asked(Exception):
    """A command or a fit that goes no further than the request that it makes."""
