"""Instant Soup Pruning's votes against the published loop, which `torch.nn.utils.prune` runs here and now."""

import numpy as np
import pytest

from tests.golden import make_isp
from tests.methods.sparse import isp_test

pytest.importorskip("torch")


@pytest.mark.parametrize("name", make_isp.CASES)
def test_the_golden_masks_are_what_torch_computes(name):
    main, members, sparsity, masks = isp_test.golden(name)
    assert np.array_equal(make_isp.published(main, members, sparsity), masks)


@pytest.mark.parametrize("seed", range(6))
def test_the_votes_are_torchs_bit_for_bit(seed):
    rng = np.random.RandomState(100 + seed)
    sparsity = rng.uniform(0.3, 0.9)
    main, members = make_isp.draw(seed + 10, int(rng.randint(10, 60)), 60)
    masks = make_isp.published(main, members, sparsity)
    assert len(masks) > 3
    assert masks[-1].sum() == make_isp.SIZE - round(sparsity * make_isp.SIZE)
    assert np.array_equal(isp_test.ours(main, members, sparsity), masks)


def test_members_differ_so_that_the_vote_matters():
    main, members, sparsity, masks = isp_test.golden("wild")
    alone = make_isp.published(main, members[:, :1], sparsity)
    assert not np.array_equal(alone[0], masks[0])
    assert len(alone) < len(masks)
