"""The one curve of the learning rate."""

import numpy as np
import optax
import pytest

from mvp_jax.train import learning_rates


def test_rates_rise_and_fall_as_worked_out_by_hand():
    got = [float(learning_rates.at(t, 2.0, steps=10, warmup=4)) for t in range(11)]
    expected = [0.5, 1.0, 1.5, 2.0] + [1 + np.cos(np.pi * (t - 4) / 6) for t in range(4, 11)]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert float(learning_rates.at(0, 2.0, steps=10)) == 2.0


@pytest.mark.parametrize(("steps", "warmup"), [(10, 4), (7, 1), (5, 0)])
def test_it_is_optaxs_from_the_end_of_the_rise_on_and_a_step_ahead_before(steps, warmup):
    theirs = optax.warmup_cosine_decay_schedule(0.0, 2.0, warmup, steps)
    for t in range(steps + 2):
        want = theirs(t) if t >= warmup else theirs(t + 1)  # theirs begins at a rate of 0
        assert float(learning_rates.at(t, 2.0, steps=steps, warmup=warmup)) == pytest.approx(float(want), abs=1e-6)


def test_without_decay_it_stays_at_the_highest():
    got = [float(learning_rates.at(t, 2.0, steps=3, warmup=4, decay="constant")) for t in range(7)]
    assert got == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]
