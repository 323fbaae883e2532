import pytest
import torch

from deepcluster.seeding import derive, lent_global


def test_every_argument_matters():
    seeds = [derive(0, "a"), derive(1, "a"), derive(0, "b"), derive(0, "a", 0), derive(0, "a", 1), derive(0, "a", 1, 0)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_the_same_on_every_machine():
    # printf 0/head/3 | sha256sum: the first 63 bits. Results must not change with the version or the machine.
    assert derive(0, "head", 3) == 6617858454930489592


@pytest.mark.parametrize("fails", [False, True])
def test_lent_global_gives_back_what_it_borrowed(fails):
    before = torch.get_rng_state()
    try:
        with lent_global(0, "x"):
            inside = torch.rand(3)
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)  # what happened outside does not matter
    with lent_global(0, "x"):
        assert torch.equal(torch.rand(3), inside)
