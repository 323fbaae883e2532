"""Randomness is an argument: every generator is derived from (seed, purpose, round, ...).

Nothing random is ever stored or shared, so a step can be repeated alone and two parts cannot disturb each other.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit seed that depends on all of its arguments (SHA-256, so alike on every machine)."""
    text = "/".join([str(seed), purpose, *map(str, index)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    """A fresh CPU generator for one purpose, for example ``generator(seed, "augment", round, epoch, step)``."""
    return torch.Generator().manual_seed(derive(seed, purpose, *index))


@contextmanager
def lent_global(seed: int, purpose: str, *index: int) -> Iterator[None]:
    """Lend torch's global generator a derived state, and put the old one back.

    For modules written by others, which draw from the global generator and take no argument: ``nn.Dropout``, timm's
    initialisation. Inside, results depend on the arguments alone; outside, nothing has changed.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.random.manual_seed(derive(seed, purpose, *index))
        yield
