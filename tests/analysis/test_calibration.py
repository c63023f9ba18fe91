"""Calibration and knowledge classes against loops and known cases."""

import numpy as np
import pytest

from jaxift.analysis.calibration import KNOWLEDGE, brier, calibration_error, knowledge_class


def test_calibration_error_equals_the_loop():
    rng = np.random.default_rng(0)
    confidence = np.concatenate([rng.random(500), [0.1, 0.2, 0.3, 1.0]])
    correct = rng.random(len(confidence)) < confidence**2
    total = 0.0
    for number in range(10):
        inside = [n for n, c in enumerate(confidence) if number / 10 < c <= (number + 1) / 10]
        if inside:
            total += len(inside) * abs(correct[inside].mean() - confidence[inside].mean())
    assert calibration_error(confidence, correct) == pytest.approx(total / len(confidence))


def test_calibration_error_of_known_cases():
    assert calibration_error([1.0, 1.0], [True, True]) == 0
    assert calibration_error([1.0, 1.0], [True, False]) == pytest.approx(0.5)
    assert calibration_error([0.75] * 4, [True, True, True, False]) == pytest.approx(0)


def test_brier_passes_over_missing_options():
    assert brier([[0.5, 0.5, np.nan], [1.0, 0.0, 0.0]], [0, 2]) == pytest.approx((0.5 + 2.0) / 2)
    assert brier([[1.0, 0.0]], [0]) == 0


def test_knowledge_classes():
    found = knowledge_class([0.9, 0.5, 0.5, 0.51], [True, True, False, False], 0.5)
    assert [KNOWLEDGE[number] for number in found] == ["right, sure", "right, unsure", "wrong, unsure", "wrong, sure"]
