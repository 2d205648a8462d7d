"""Presence over a data set: images by classes, what is true, what was asked and what was answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.errors import UserError
from utils.metrics import (
    PresenceCounts,
    average_precision,
    balanced_pairs,
    best_threshold,
    intervals,
    presence_measures,
)
from utils.metrics.common import known_mean, safe_divide

HEADLINES = ("accuracy", "f1")  # those of the balanced pairs that get a confidence interval


@dataclass(frozen=True, kw_only=True)
class PresenceTable:
    """Every pair of an image and a class."""

    truth: np.ndarray  # (num_images, num_classes) bool: the image shows the class
    asked: np.ndarray  # (num_images, num_classes) bool
    answered: np.ndarray  # (num_images, num_classes) bool: the model says that it does
    probabilities: np.ndarray | None  # (num_images, num_classes) float64; None: answers without any

    @classmethod
    def empty(cls, num_images: int, num_classes: int, *, has_probabilities: bool) -> PresenceTable:
        shape = (num_images, num_classes)
        truth, asked, answered = (np.zeros(shape, dtype=bool) for _ in range(3))
        probabilities = np.zeros(shape) if has_probabilities else None
        return cls(truth=truth, asked=asked, answered=answered, probabilities=probabilities)

    def summary(self, seed: int) -> dict[str, float]:
        """Balanced pairs: every present class of an image, and as many absent ones that other images hold.

        Beside them every class name that was asked (`_all`), nearly all of them absent, and the mean over
        classes of the average precision (`map`) where there are probabilities. `seed` draws the absent ones.
        """
        occurs = self.truth.any(axis=0)
        balanced, total = PresenceCounts(), np.zeros((len(self.truth), 4))
        for row, (truth, answered) in enumerate(zip(self.truth, self.answered, strict=True)):
            pairs = balanced_pairs(truth, occurs, np.random.default_rng((seed, row)))
            counts = PresenceCounts()
            counts.add(truth[pairs], answered[pairs])
            balanced.add(truth[pairs], answered[pairs])
            total[row] = counts.sums()
        every_pair = PresenceCounts()
        every_pair.add(self.truth[self.asked], self.answered[self.asked])
        bounds = intervals(total, _headlines, seed=seed)
        return {
            **balanced.summary(),
            **{f"{name}_all": value for name, value in every_pair.summary().items()},
            **({"map": float(known_mean(self.precisions()))} if self.probabilities is not None else {}),
            **bounds,
        }

    def recall_of_asked(self) -> dict[str, float]:
        """When only present classes are asked: the share of them that was found."""
        counts = PresenceCounts()
        counts.add(self.truth[self.asked], self.answered[self.asked])
        summary = counts.summary()
        return {f"{name}_all": summary[name] for name in ("recall", "num_pairs")}

    def calibration(self) -> dict[str, float]:
        """The threshold of finished probabilities with the best F1 over all pairs asked, and that F1.

        Beside it the F1 of the answers as they were decoded.
        """
        if self.probabilities is None:
            raise UserError("calibrate needs a probability for each class; leave free_generation out")
        truth = self.truth[self.asked]
        best = best_threshold(truth, self.probabilities[self.asked])
        decoded = PresenceCounts()
        decoded.add(truth, self.answered[self.asked])
        return {
            "threshold": best.threshold,
            "f1": best.f1,
            "precision": best.precision,
            "recall": best.recall,
            "f1_as_decoded": decoded.summary()["f1"],
            "num_pairs": len(truth),
        }

    def precisions(self) -> np.ndarray:
        """(num_classes,) average precision over the images asked; NaN for classes that none of them shows."""
        assert self.probabilities is not None
        columns = zip(self.truth.T, self.asked.T, self.probabilities.T, strict=True)
        return np.array([average_precision(truth[asked], scores[asked]) for truth, asked, scores in columns])

    def by_class(self) -> dict[str, np.ndarray]:
        """Columns of the per-class table, each (num_classes,)."""
        answered = self.answered & self.asked
        truth = self.truth & self.asked
        hits, said, true = ((a).sum(axis=0) for a in (truth & answered, answered, truth))
        columns = {
            "num_images": self.truth.sum(axis=0),
            "presence_precision": safe_divide(hits, said),
            "presence_recall": safe_divide(hits, true),
            "presence_f1": safe_divide(2 * hits, said + true),
        }
        if self.probabilities is not None:
            columns["presence_ap"] = self.precisions()
        return columns


def _headlines(sums: np.ndarray) -> dict[str, np.ndarray]:
    measures = presence_measures(sums)
    return {name: measures[name] for name in HEADLINES}
