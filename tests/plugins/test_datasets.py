"""Tables of numbers, against what scikit-learn makes of them. Images are tested with the data settings that use them."""

from __future__ import annotations

import numpy as np
import pytest
from autocompress_plugins.datasets import TABLES, table
from sklearn import datasets
from sklearn.preprocessing import StandardScaler

from autocompress.errors import DataError


@pytest.mark.parametrize(("name", "shape", "classes"), [("breast_cancer", (569, 30), 2), ("wine", (178, 13), 3)])
def test_parts_hold_every_row_once(name: str, shape: tuple[int, int], classes: int) -> None:
    parts = table(name, test_size=80)
    assert [part[0].shape for part in parts] == [(shape[0] - 80, shape[1]), (80, shape[1])]
    assert all(part[0].dtype == np.float32 and set(part[1]) == set(range(classes)) for part in parts)
    whole = np.concatenate([part[0] for part in parts])
    raw = getattr(datasets, f"load_{name}")(return_X_y=True)[0]
    for column in range(shape[1]):  # the same numbers, up to one factor and one shift
        assert np.corrcoef(np.sort(whole[:, column]), np.sort(raw[:, column]))[0, 1] == pytest.approx(1, abs=1e-4)


def test_is_standardised_on_the_training_part_alone() -> None:
    (train, _), (test, _) = table("wine", test_size=80)
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(axis=0), 1, atol=1e-5)
    assert np.abs(test.mean(axis=0)).max() > 0.02
    np.testing.assert_allclose(StandardScaler().fit_transform(train), train, atol=1e-5)


def test_a_column_that_never_changes_stays_finite() -> None:
    (train, _), _ = table("digits")  # the corners of the images are empty
    assert np.isfinite(train).all()
    assert not train[:, 0].any()


def test_classes_are_in_proportion_and_the_seed_decides() -> None:
    (_, labels), (_, tested) = table("breast_cancer", test_size=300)
    assert np.bincount(tested)[0] / 300 == pytest.approx(np.bincount(labels)[0] / 269, abs=0.01)
    assert np.array_equal(table("wine", 80, seed=3)[1][0], table("wine", 80, seed=3)[1][0])
    assert not np.array_equal(table("wine", 80, seed=3)[1][1], table("wine", 80, seed=4)[1][1])


def test_another_name_is_refused() -> None:
    with pytest.raises(DataError, match=f"no table 'iris'; expected one of {', '.join(TABLES)}"):
        table("iris")


def test_parts_that_cannot_be_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\.kwargs\.test_size=177"):
        table("wine", test_size=177)
