"""Presence over a data set: for each image and class whether it is known, asked and answered.

A class is present where a pixel is labelled so, and absent only where the data set states it. Pairs of an image and a
class that are neither are unknown and count nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.errors import UserError
from utils.evaluation.metrics import (
    PresenceCounts,
    average_precision,
    balanced_pairs,
    best_threshold,
    intervals,
    presence_measures,
)
from utils.evaluation.metrics.common import known_mean, ratio, safe_divide

HEADLINES = ("accuracy", "f1")  # metrics of the balanced pairs that get a confidence interval


@dataclass(frozen=True, kw_only=True)
class PresenceTable:
    """Every pair of an image and a class."""

    truth: np.ndarray  # (num_images, num_classes) bool: the image shows the class
    absent: np.ndarray  # (num_images, num_classes) bool: the class is known to be absent
    asked: np.ndarray  # (num_images, num_classes) bool
    answered: np.ndarray  # (num_images, num_classes) bool: the model answers that it is present
    probabilities: np.ndarray | None  # (num_images, num_classes) float64; None: the answers have none

    @classmethod
    def empty(cls, num_images: int, num_classes: int, *, has_probabilities: bool) -> PresenceTable:
        shape = (num_images, num_classes)
        truth, absent, asked, answered = (np.zeros(shape, dtype=bool) for _ in range(4))
        probabilities = np.zeros(shape) if has_probabilities else None
        return cls(truth=truth, absent=absent, asked=asked, answered=answered, probabilities=probabilities)

    @property
    def judged(self) -> np.ndarray:
        """(num_images, num_classes) bool: the class was asked, and is known to be present or absent."""
        return self.asked & (self.truth | self.absent)

    @property
    def unknown(self) -> np.ndarray:
        """(num_images, num_classes) bool: asked and not judged. Images of which nothing is judged are left out."""
        return self.asked & ~self.judged & self.judged.any(axis=1, keepdims=True)

    @property
    def knows_absent(self) -> bool:
        """Whether false positives can be detected at all."""
        return bool((self.judged & self.absent).any() or not self.unknown.any())

    @property
    def is_one_sided(self) -> np.ndarray:
        """(num_classes,) bool: classes that are known to be absent nowhere, and unknown somewhere.

        No false positive of them can be detected, so they have a recall and nothing else.
        """
        return self.unknown.any(axis=0) & ~(self.asked & self.absent).any(axis=0)

    def notes(self) -> list[str]:
        """A sentence about the pairs asked that are not counted, if there are any."""
        left_out, asked = int((self.asked & ~self.judged).sum()), int(self.asked.sum())
        if not left_out:
            return []
        about = f"presence leaves out {left_out} of {asked} pairs of an image and a class: nobody has looked"
        if not self.knows_absent:
            return [f"{about}; no class is known to be absent from any image, so only the recall is measured"]
        one_sided = int(self.is_one_sided.sum())
        return [about + (f"; {one_sided} classes have a recall only" if one_sided else "")]

    def summary(self, seed: int) -> dict[str, float]:
        """Balanced pairs: for each image all present classes, and as many of those that are known to be absent from
        it and occur in other images.

        Beside them the metrics over all pairs that are judged (`_all`), nearly all of which are absent, and the mean
        over classes of the average precision (`map`) where there are probabilities; and per image that is judged the
        number of absent classes answered as present (`hallucinated`) and of present ones answered as absent
        (`forgotten`), of all that were asked. `seed` draws the absent classes.
        """
        occurs = self.truth.any(axis=0)
        balanced, total = PresenceCounts(), np.zeros((len(self.truth), 4))
        rows = zip(self.truth, self.absent, self.answered, strict=True)
        for row, (truth, absent, answered) in enumerate(rows):
            pairs = balanced_pairs(truth, occurs & (truth | absent), np.random.default_rng((seed, row)))
            counts = PresenceCounts()
            counts.add(truth[pairs], answered[pairs])
            balanced.add(truth[pairs], answered[pairs])
            total[row] = counts.sums()
        every_pair = PresenceCounts()
        every_pair.add(self.truth[self.judged], self.answered[self.judged])
        bounds = intervals(total, _headlines, seed=seed)
        num_judged = int(self.judged.any(axis=1).sum())
        return {
            **balanced.summary(),
            **{f"{name}_all": value for name, value in every_pair.summary().items()},
            "hallucinated_per_image": ratio(every_pair.false_positives, num_judged),
            "forgotten_per_image": ratio(every_pair.false_negatives, num_judged),
            **({"map": float(known_mean(self.precisions()))} if self.probabilities is not None else {}),
            **bounds,
        }

    def recall_of_asked(self) -> dict[str, float]:
        """Recall, for data in which only present classes are asked or known."""
        counts, present = PresenceCounts(), self.truth & self.asked
        counts.add(self.truth[present], self.answered[present])
        summary = counts.summary()
        return {f"{name}_all": summary[name] for name in ("recall", "num_pairs")}

    def calibration(self) -> dict[str, float]:
        """The threshold for `rethreshold` with the best F1 over all judged pairs, and that F1.

        Beside it the F1 of the answers as they were decoded.
        """
        if self.probabilities is None:
            raise UserError("calibrate needs a probability for each class; leave free_generation out")
        truth = self.truth[self.judged]
        best = best_threshold(truth, self.probabilities[self.judged])
        decoded = PresenceCounts()
        decoded.add(truth, self.answered[self.judged])
        return {
            "threshold": best.threshold,
            "f1": best.f1,
            "precision": best.precision,
            "recall": best.recall,
            "f1_as_decoded": decoded.summary()["f1"],
            "num_pairs": len(truth),
        }

    def precisions(self) -> np.ndarray:
        """(num_classes,) average precision over the images judged; NaN for classes that none of them shows."""
        assert self.probabilities is not None
        columns = zip(self.truth.T, self.judged.T, self.probabilities.T, strict=True)
        values = [average_precision(truth[judged], scores[judged]) for truth, judged, scores in columns]
        return np.where(self.is_one_sided, np.nan, values)

    def by_class(self) -> dict[str, np.ndarray]:
        """Columns of the per-class table, each (num_classes,)."""
        answered = self.answered & self.judged
        truth = self.truth & self.asked
        hits, said, true = ((a).sum(axis=0) for a in (truth & answered, answered, truth))
        columns = {
            "num_images": self.truth.sum(axis=0),
            "presence_precision": np.where(self.is_one_sided, np.nan, safe_divide(hits, said)),
            "presence_recall": safe_divide(hits, true),
            "presence_f1": np.where(self.is_one_sided, np.nan, safe_divide(2 * hits, said + true)),
        }
        if self.probabilities is not None:
            columns["presence_ap"] = self.precisions()
        return columns


def _headlines(sums: np.ndarray) -> dict[str, np.ndarray]:
    measures = presence_measures(sums)
    return {name: measures[name] for name in HEADLINES}
