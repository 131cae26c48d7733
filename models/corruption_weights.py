"""Which share of the traffic looks like each corruption of the evaluation suite: the weight of harm on its images."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from digits.images import SIZE, Images

CLEAN = "clean"
MAX_IMAGES = 1_000  # of each condition, from which its statistics are estimated
MIN_IMAGES = 20  # with no more images than statistics, their covariance is not defined
# Images that the prior is worth: traffic has to be seen before a corruption counts for nothing.
PRIOR_IMAGES = 300
ITERATIONS = 200


def corruption_weights(conditions: Mapping[str, Images], traffic: Images | None) -> dict[str, float]:
    """The share of the traffic that looks like each condition, by its name; the shares add up to 1.

    `conditions` are the same images clean and with each corruption, (n, 28, 28) each. Without traffic, or with fewer images than
    `MIN_IMAGES`, all weigh the same.

    The statistics of an image are normally distributed in each condition (quadratic discriminant analysis). The shares are those
    with the largest posterior density under a Dirichlet prior, found by expectation maximisation (Saerens, Latinne and
    Decaestecker 2002, "Adjusting the outputs of a classifier to new a priori probabilities").
    """
    from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis  # takes 1 s to import

    even = np.full(len(conditions), 1 / len(conditions))
    # Where all corruptions are retired, there is one condition, and nothing to tell it from.
    if traffic is None or len(conditions) == 1 or len(conditions[CLEAN]) < MIN_IMAGES:
        return dict(zip(conditions, even.tolist(), strict=True))
    statistics = [image_statistics(images[:MAX_IMAGES]) for images in conditions.values()]
    condition_of = np.repeat(np.arange(len(statistics)), [len(rows) for rows in statistics])
    classifier = QuadraticDiscriminantAnalysis(priors=even, reg_param=1e-3)
    classifier.fit(_standardised(np.concatenate(statistics), statistics[0]), condition_of)
    likelihoods = classifier.predict_proba(_standardised(image_statistics(traffic), statistics[0]))
    shares = even
    for _ in range(ITERATIONS):
        joint = likelihoods * shares
        counts = (joint / joint.sum(axis=1, keepdims=True)).sum(axis=0)
        shares = (counts + PRIOR_IMAGES * even) / (len(traffic) + PRIOR_IMAGES)
    return dict(zip(conditions, shares.tolist(), strict=True))


def image_statistics(images: Images) -> NDArray[np.float64]:
    """What the corruptions change, (n, 10): ink, its extremes, noise, edges, position, size and slant."""
    ink = images / 255.0
    mass = ink.sum(axis=(1, 2)) + 1e-6
    offsets = np.arange(SIZE) - (SIZE - 1) / 2
    x = (ink.sum(axis=1) @ offsets) / mass
    y = (ink.sum(axis=2) @ offsets) / mass
    spread_x = (ink.sum(axis=1) @ offsets**2) / mass - x**2
    spread_y = (ink.sum(axis=2) @ offsets**2) / mass - y**2
    covariance = np.einsum("nij,i,j->n", ink, offsets, offsets) / mass - x * y
    border = np.concatenate([ink[:, 0], ink[:, -1], ink[:, :, 0], ink[:, :, -1]], axis=1)
    edges = np.abs(np.diff(ink, axis=1)).sum(axis=(1, 2)) + np.abs(np.diff(ink, axis=2)).sum(axis=(1, 2))
    grey = ((ink > 0.1) & (ink < 0.9)).sum(axis=(1, 2)) / (ink > 0.1).sum(axis=(1, 2)).clip(1)
    darkest = np.quantile(ink.reshape(len(ink), -1), 0.98, axis=1)
    slant = covariance / np.sqrt((spread_x * spread_y).clip(0.1))
    amounts = np.log(mass), darkest, border.mean(axis=1), border.std(axis=1), np.log(edges / mass + 1e-3), grey
    return np.stack([*amounts, np.hypot(x, y), np.log(spread_x.clip(0.1)), np.log(spread_y.clip(0.1)), slant], axis=1)


def _standardised(statistics: NDArray[np.float64], clean: NDArray[np.float64]) -> NDArray[np.float64]:
    return (statistics - clean.mean(axis=0)) / (clean.std(axis=0) + 1e-2)
