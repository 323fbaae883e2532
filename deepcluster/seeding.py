"""Randomness is an argument: every generator is derived from (seed, purpose, round, ...).

Nothing random is ever stored or shared, so a step can be repeated alone and two parts cannot disturb each other.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, purpose: str, *index: int) -> int:
    """Return a 63-bit seed that depends on all of its arguments (SHA-256, so alike on every machine)."""
    text = "/".join([str(seed), purpose, *map(str, index)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    """Return a fresh CPU generator for one purpose, for example ``generator(seed, "augment", round, epoch, step)``."""
    return torch.Generator().manual_seed(derive(seed, purpose, *index))


@contextmanager
def lent_global(seed: int, purpose: str, *index: int, device: torch.device | None = None) -> Iterator[None]:
    """Lend torch's global generators, of the CPU and of ``device``, a derived state, and put the old one back.

    For modules written by others, which draw from the global generator and take no argument: ``nn.Dropout``, timm's
    initialisation. Inside, results depend on the arguments alone; outside, nothing has changed.
    """
    number = derive(seed, purpose, *index)
    kind = device.type if device else "cpu"
    with torch.random.fork_rng(
        [device] if kind in ("cuda", "mps") else [], device_type="mps" if kind == "mps" else "cuda"
    ):
        torch.default_generator.manual_seed(number)
        if kind == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        elif kind == "mps":
            torch.mps.manual_seed(number)
        yield
