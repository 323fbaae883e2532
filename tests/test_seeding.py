"""Seeds: of every argument, and the same on every machine."""

from contextlib import suppress

import pytest
import torch

from deepcluster.seeding import derive, lent_global


def test_a_seed_depends_on_every_argument_and_is_the_same_on_every_machine():
    seeds = [derive(0, "a"), derive(1, "a"), derive(0, "b"), derive(0, "a", 0), derive(0, "a", 1), derive(0, "a", 1, 0)]
    assert len(set(seeds)) == len(seeds)
    # printf 0/head/3 | sha256sum: the first 63 bits. Results must not change with the version or the machine.
    assert derive(0, "head", 3) == 6617858454930489592


@pytest.mark.parametrize("error", [None, ValueError])
def test_lent_global_gives_back_what_it_borrowed(error, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU that nobody named"))
    before = torch.get_rng_state()
    with suppress(ValueError), lent_global(0, "x"):
        inside = torch.rand(3)
        if error:
            raise error
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)  # what happened outside does not matter
    with lent_global(0, "x"):
        assert torch.equal(torch.rand(3), inside)
