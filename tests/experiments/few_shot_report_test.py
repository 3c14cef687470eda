"""The study of overlap by superclass, by hand."""

import numpy as np

from mvp_jax.experiments import few_shot_report


def test_pairs_of_classes_of_one_superclass_by_counting():
    classes, of = [(0, 1, 2), (3, 4), (0, 5)], (0, 0, 1, 1, 1, 0)
    got = few_shot_report._of_one_superclass(classes, of)
    want = [[np.mean([of[a] == of[b] for a in one for b in other]) for other in classes] for one in classes]
    np.testing.assert_allclose(got, want)
    assert got[0, 1] == 1 / 3  # of six pairs, those of class 2 with 3 and with 4
    assert got[1, 2] == 0
    assert not np.any(few_shot_report._of_one_superclass(classes, ()))
