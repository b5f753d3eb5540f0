"""What a repeat does to activations, against sums written out."""

import numpy as np
import pytest

from confreg.derive.repeats import occurrence_means, shift, shift_p, taken_back


def test_shift_compares_the_same_token_of_both_occurrences():
    activation = np.array([[1.0, 2.0, 9.0, 4.0, 7.0, 5.0], [0.0] * 6])
    found = shift(
        activation,
        sequence=[0] * 6,
        aligned=[0, 1, -1, 0, 1, 2],
        occurrence=[0, 0, -1, 1, 1, 1],
        compared=[True, True, False, True, True, True],
    )
    assert found.mean.tolist() == [4.0, 0.0]  # 4 − 1 and 7 − 2; the last has no first
    assert found.sd.tolist() == [1.0, 0.0]
    assert found.sigma[0] == pytest.approx(4 / np.std([1, 2, 4, 7]))
    assert found.sigma[1] == 0


def test_p_counts_controls_that_change_as_much():
    sigma = np.array([0.5, -2.0, 0.1, -0.5, 0.6, 0.2])
    found = shift_p(sigma, [True, True, False, False, False, False])
    assert found[:2].tolist() == [(1 + 2) / 5, 1 / 5]
    assert np.isnan(found[2:]).all()
    assert np.isnan(shift_p(sigma, np.ones(6, bool))).all()


def test_taken_back_is_a_share_of_the_way():
    activation = np.array([[1.0, 3.0, 6.0, 8.0], [2.0, 2.0, 2.0, 2.0]])
    first, second = occurrence_means(activation, [0, 0, 1, 1], [True, False, True, True])
    assert first.tolist() == [1.0, 2.0]
    assert second.tolist() == [7.0, 2.0]
    found = taken_back([[-3.0, 1.0], [6.0, 0.0]], first, second)
    assert found[:, 0].tolist() == [0.5, -1.0]
    assert np.isnan(found[:, 1]).all()
