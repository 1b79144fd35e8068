"""Combining: what several teachers say becomes one opinion, structure by structure; each may know others.

For a structure s and the teachers T_s that know it, with weights w, the class probability is

    mean      q(s) = sum over T_s of w p(s) / sum of w       (Wang et al., arXiv:2101.09560)
    majority  the same of votes, which are 1 where a teacher decides for s, and 0 elsewhere
    staple    how likely s is by STAPLE (Warfield et al. 2004, doi:10.1109/TMI.2004.828354), which estimates from the
              votes how far each teacher can be relied on

and the background is what all leave over: q(0) = max(0, 1 - sum of q). It is sure only where every teacher says
background, of its own structures. Where the structures add up to more than 1, as when teachers that know different
structures claim the same voxel, they are divided by their sum.
"""

from __future__ import annotations

import numpy as np

from .certainty import binary_entropy

TIE = 0.001  # of a majority's probabilities are the mean's, so that equal votes go to what is more likely
STAPLE_ITERATIONS = 100


class Tally:
    """What teachers said of a case, added up one after the other: memory does not grow with their number.

    Args:
        votes, entropies: keep the teachers' decisions, and add up their entropies; not every combination needs them.
    """

    def __init__(self, classes: int, shape: tuple[int, ...], votes: bool = False, entropies: bool = False):
        self.sums = np.zeros((classes, *shape), np.float32)
        self.entropies = np.zeros((classes, *shape), np.float32) if entropies else None
        self.weights, self.judges = np.zeros(classes), np.zeros(classes, int)
        self.votes: list[tuple[np.ndarray, np.ndarray]] | None = [] if votes else None

    def add(self, probabilities: np.ndarray, channels: list[int], weights: np.ndarray) -> None:
        """Add one teacher.

        Args:
            probabilities: `(own classes, I, J, K)`, background first; structures with the same channel are added up.
            channels: of each own class in the whole; 0 of the background and of structures it is not asked about.
            weights: `(classes,)` of the teacher in each structure, 0 where it is not asked.
        """
        for channel in sorted({*channels} - {0}):
            own = [n for n, other in enumerate(channels) if other == channel]
            probability = probabilities[own[0]] if len(own) == 1 else probabilities[own].sum(0)
            self.sums[channel] += np.float32(weights[channel]) * probability
            if self.entropies is not None:
                self.entropies[channel] += np.float32(weights[channel]) * binary_entropy(probability)
        if self.votes is not None:
            self.votes.append((_decided(probabilities, channels), weights))
        self.weights += weights
        self.judges += weights > 0

    def mean(self, channel: int) -> np.ndarray:
        return self.sums[channel] / np.float32(self.weights[channel])

    def votes_on(self, channel: int) -> list[tuple[np.ndarray, float]]:
        """Where each teacher that knows a structure sees it `(I, J, K)` bool, and its weight."""
        return [(vote == channel, weights[channel]) for vote, weights in self.votes if weights[channel]]

    def disagreement(self) -> np.ndarray | None:
        """How far teachers contradict each other `(I, J, K)` from 0 to 1: mutual information, in bits.

        Entropy of their mean less the mean of their entropies (Houlsby et al. 2011, arXiv:1112.5745), of each structure
        against all else; the largest counts. None where no structure was judged by two.
        """
        if self.judges.max() < 2:  # noqa: PLR2004
            return None
        found = np.zeros(self.sums.shape[1:], np.float32)
        for channel in np.flatnonzero(self.weights):
            own = self.entropies[channel] / np.float32(self.weights[channel])
            np.maximum(found, binary_entropy(self.mean(channel)) - own, out=found)
        return np.clip(found, 0, 1)


def _decided(probabilities: np.ndarray, channels: list[int]) -> np.ndarray:
    """The channel `(I, J, K)` uint8 that a teacher votes for; its structures with the same channel vote as one."""
    if len({*channels} - {0}) == np.count_nonzero(channels):
        return np.array(channels, np.uint8)[probabilities.argmax(0)]
    of_rest = [probabilities[n] for n, channel in enumerate(channels) if not channel]
    together = sorted({*channels} - {0})
    sums = [probabilities[np.array(channels) == channel].sum(0) for channel in together]
    return np.array([0] * len(of_rest) + together, np.uint8)[np.stack([*of_rest, *sums]).argmax(0)]


def _mean(tally: Tally, channel: int) -> np.ndarray:
    return tally.mean(channel)


def _majority(tally: Tally, channel: int) -> np.ndarray:
    """Shares of the votes; equal ones go to what is more likely in the mean, then to the earlier class."""
    votes = sum(np.float32(weight) * vote for vote, weight in tally.votes_on(channel))
    return (1 - TIE) * votes / np.float32(tally.weights[channel]) + TIE * tally.mean(channel)


def _staple(tally: Tally, channel: int) -> np.ndarray:
    """STAPLE of the votes; where there is only one, what that teacher says."""
    votes = [vote for vote, _ in tally.votes_on(channel)]
    if len(votes) == 1:
        return tally.mean(channel)
    if all(np.array_equal(vote, votes[0]) for vote in votes):  # an empty one would have no estimate
        return votes[0].astype(np.float32)
    import SimpleITK as sitk  # not needed for the other combinations

    estimate = sitk.STAPLEImageFilter()
    estimate.SetForegroundValue(1)
    estimate.SetMaximumIterations(STAPLE_ITERATIONS)
    found = estimate.Execute([sitk.GetImageFromArray(vote.astype(np.uint8)) for vote in votes])
    return sitk.GetArrayFromImage(found).astype(np.float32)


COMBINATIONS = {"mean": _mean, "majority": _majority, "staple": _staple}


def combined(tally: Tally, how: str) -> np.ndarray:
    """Class probabilities `(classes, I, J, K)` float32, background first; it takes the place of the tally's sums."""
    for channel in np.flatnonzero(tally.weights):
        tally.sums[channel] = COMBINATIONS[how](tally, channel)
    total = tally.sums[1:].sum(0)
    tally.sums[1:] /= np.maximum(total, 1)
    tally.sums[0] = np.maximum(1 - total, 0)
    return tally.sums
