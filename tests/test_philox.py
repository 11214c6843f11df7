"""The generator against the reference implementation's published vectors."""

from __future__ import annotations

import numpy as np
import pytest

from efafnet.pipelines.crops import philox

# Random123's known-answer file: philox4x32, 10 rounds. The third case is the digits of pi.
_VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), _VECTORS)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    low, high = _words(key)
    assert philox.philox([_words(counter)], low | high << 32).tolist() == [_words(expected)]


def test_a_draw_does_not_depend_on_its_neighbours() -> None:
    together = philox.uniforms([3, 1, 2**40], 7, (0, 1), 99)
    alone = np.concatenate([philox.uniforms([n], 7, (0, 1), 99) for n in (3, 1, 2**40)], axis=1)
    np.testing.assert_array_equal(together, alone)
    assert not np.array_equal(together, philox.uniforms([3, 1, 2**40], 8, (0, 1), 99))


def test_uniforms_are_uniform() -> None:
    values = philox.uniforms(np.arange(50_000), 0, (0,), 1)[0]
    assert values.min() > 0
    assert values.max() < 1
    # Standard error of a mean of 50,000 uniforms: 0.2887 / sqrt(50000) = 0.0013; of the correlation: 0.0045.
    np.testing.assert_allclose(values.mean(axis=0), 0.5, atol=0.006)
    np.testing.assert_allclose(np.corrcoef(values.T) - np.eye(4), 0, atol=0.02)


def test_permutation_is_one_and_changes() -> None:
    first, again, other = (philox.permutation(1000, epoch, 3, 5) for epoch in (0, 0, 1))
    assert sorted(first.tolist()) == list(range(1000))
    np.testing.assert_array_equal(first, again)
    # About one fixed point is expected between two random permutations.
    assert int((first == other).sum()) < 10
