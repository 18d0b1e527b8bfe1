from __future__ import annotations

from dataclasses import replace

import numpy as np

from autocompress.prediction.linear_model import LinearModel


def model(observations: int) -> LinearModel:
    random = np.random.default_rng(observations)
    features = random.normal(size=(observations, 3))
    values = features @ np.array([1.0, -2.0, 0.5]) + 0.1 * random.normal(size=observations)
    return LinearModel(features, values, np.full(observations, 0.1), np.array([0.5, 0.0, 0.0]), np.array([1.0, 2.0, 0.5]))


def posterior(known: LinearModel) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance by the textbook formula in coefficient space (Bishop 2006, 3.50 and 3.51)."""
    precision = np.diag(known.prior_spread**-2.0) + known.features.T @ np.diag(known.noise**-2.0) @ known.features
    pulled = known.prior_mean / known.prior_spread**2 + known.features.T @ (known.values / known.noise**2)
    return np.linalg.solve(precision, pulled), np.linalg.inv(precision)


def test_mean_and_spread_are_the_posterior() -> None:
    known = model(20)
    mean, covariance = posterior(known)
    asked = np.random.default_rng(1).normal(size=(6, 3))
    predicted, spread = known.predict(asked)
    np.testing.assert_allclose(predicted, asked @ mean, rtol=1e-9)
    np.testing.assert_allclose(spread, np.sqrt(np.einsum("ij,jk,ik->i", asked, covariance, asked)), rtol=1e-6)


def test_without_observations_the_prior_speaks() -> None:
    predicted, spread = model(0).predict(np.eye(3))
    np.testing.assert_allclose(predicted, [0.5, 0.0, 0.0])
    np.testing.assert_allclose(spread, [1.0, 2.0, 0.5])


def test_left_out_predictions_are_those_of_a_model_without_the_observation() -> None:
    known = model(9)
    for index, (predicted, spread) in enumerate(zip(*known.left_out(), strict=True)):
        others = np.arange(9) != index
        parts = (known.features[others], known.values[others], known.noise[others], known.prior_mean, known.prior_spread)
        mean, alone = LinearModel(*parts).predict(known.features[[index]])
        np.testing.assert_allclose(predicted, mean[0], rtol=1e-8)
        np.testing.assert_allclose(spread, np.hypot(alone[0], known.noise[index]), rtol=1e-6)


def test_noise_grows_to_what_the_observations_show_and_never_shrinks() -> None:
    known = model(200)
    right = replace(known, noise=np.full(200, 0.1)).with_honest_noise()
    np.testing.assert_allclose(right.noise, 0.1, rtol=0.2)
    boastful = replace(known, noise=np.full(200, 0.02)).with_honest_noise()
    np.testing.assert_allclose(boastful.noise, 0.1, rtol=0.2)
    modest = replace(known, noise=np.full(200, 0.5)).with_honest_noise()
    assert (modest.noise == 0.5).all()
    assert model(3).with_honest_noise().noise.tolist() == [0.1] * 3
