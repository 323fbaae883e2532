"""What torchrun says in the environment, to those that have not imported torch."""

import os

from deepcluster.errors import UsageError


def world_size() -> int:
    """How many processes torchrun has started; 1 where it was not used."""
    try:
        return max(1, int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError:
        raise UsageError(f"WORLD_SIZE={os.environ['WORLD_SIZE']} in the environment is no number: unset it") from None


def local_world_size() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def is_main_rank() -> bool:
    """Whether this is the process that speaks."""
    return os.environ.get("RANK", "0") == "0"
