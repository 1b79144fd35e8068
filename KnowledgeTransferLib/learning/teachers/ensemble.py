"""Ensemble: one teacher or several that are one. They may know different structures; together they know all."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field

import numpy as np

from ...records.labels import Labels
from ...records.progress import FAILURES
from ...records.structure_names import matches, merged, plain_name
from ..student import Prepared, Student
from ..volume import Volume
from .combining import Tally, combined
from .teacher import Teacher


@dataclass(frozen=True)
class Opinion:
    """What teachers say of a case together: class probabilities `(C, I, J, K)` float32, background first.

    `unknown`: structures that nobody judged, whose probability is 0. `failed`: teachers that could not judge the case,
    and why. `disagreement (I, J, K)` from 0 to 1, where it was asked for and two judged the same structure. `lowered`:
    by how much the background's logit is lower when they decide (decision.py); of several, their weighted mean.
    """

    probabilities: np.ndarray
    unknown: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    disagreement: np.ndarray | None = None
    lowered: float = 0.0

    def decided(self) -> np.ndarray:
        """The channel `(I, J, K)` uint8 that each voxel is given."""
        if not self.lowered:
            return self.probabilities.argmax(0).astype(np.uint8)
        likeliest = 1 + self.probabilities[1:].argmax(0).astype(np.uint8)
        drawn = self.probabilities[1:].max(0) > np.float32(math.exp(-self.lowered)) * self.probabilities[0]
        return np.where(drawn, likeliest, np.uint8(0))


class Ensemble:
    """Teachers that are one: merged by the names and codes of their structures, combined as combining.py says.

    Args:
        weights: of each teacher: a number, or structure -> number for some of its structures (1 for the others; 0: it
            is not asked about that one).
        combine: mean, majority or staple.
        synonyms: other name -> name, for structures whose names differ.

    Raises:
        ValueError: a weight that is no number above 0; none above 0 of a teacher; a weight of a structure that it does
            not know, of one of several that are one by the synonyms, or beside STAPLE, which weighs by itself;
            synonyms of synonyms.
    """

    network = None

    def __init__(self, teachers: list[Teacher], weights: list, combine: str = "mean", synonyms: dict | None = None):
        self.teachers, self.combine = teachers, combine
        self.labels, self.names = merged([t.labels for t in teachers], synonyms)
        self.name = " + ".join(t.name for t in teachers)
        self.hint = "\n".join(filter(None, (getattr(t, "hint", "") for t in teachers)))
        self.weights = np.array([self._weights(n, weight, synonyms) for n, weight in enumerate(weights)])
        for teacher, weight in zip(teachers, self.weights, strict=True):
            if not weight.any():
                raise ValueError(
                    f"{teacher.name}: is asked about no structure, since all its weights are 0; leave it out"
                )
        self._leave_out_what_nobody_is_asked_about()
        if combine == "staple" and len(np.unique(self.weights[self.weights > 0])) > 1:
            raise ValueError("STAPLE finds out by itself how far each teacher can be relied on; leave the weights out")

    @property
    def maps(self) -> int:
        """Maps of a volume's size that are held at once: of several teachers their sum and one's opinion."""
        return self.labels.channels * min(len(self.teachers), 2)

    def predict(self, volume: Volume) -> np.ndarray:
        """Class probabilities `(C, I, J, K)` float32 in the geometry of the volume, background first."""
        return self.judge(volume).probabilities

    def prepare(self, volume: Volume) -> list[Prepared | None]:
        """What students among the teachers see of a volume, which can be prepared before their turn comes."""
        prepared: list[Prepared | None] = [None] * len(self.teachers)
        for number, teacher in enumerate(self.teachers):
            with contextlib.suppress(*FAILURES):  # told when it is the teacher's turn
                prepared[number] = teacher.prepare(volume) if isinstance(teacher, Student) else None
        return prepared

    def opens_beside(self) -> bool:
        """Whether small volumes may be judged at the same time; opens what two threads must not open at a time."""
        with contextlib.suppress(*FAILURES):  # told when it is the teacher's turn
            return all(isinstance(teacher, Student) and teacher.opens_beside() for teacher in self.teachers)
        return False

    def goes_beside(self, prepared: list[Prepared | None]) -> bool:
        """Whether several volumes like this one had better be judged at the same time, as `Student.goes_beside`."""
        return all(seen and t.goes_beside(seen) for seen, t in zip(prepared, self.teachers, strict=True))

    def judge(
        self, volume: Volume, prepared: list[Prepared | None] | None = None, disagreement: bool = False
    ) -> Opinion:
        """What those teachers say that can judge the volume; `prepared` is what `prepare` gave.

        Raises:
            ValueError, OSError, RuntimeError, MemoryError: the last teacher's reason, where none can.
        """
        if len(self.teachers) == 1 and self.labels == self.teachers[0].labels:  # the usual case needs no second array
            return Opinion(self._predict(0, volume, prepared), lowered=_lowered(self.teachers[0]))
        tally, failed, shifts, shares = None, {}, [], []
        for number in range(len(self.teachers)):
            try:
                probabilities = self._predict(number, volume, prepared)
            except FAILURES as error:
                failed[self._told(number)] = str(error)
                if len(failed) == len(self.teachers):
                    raise
                continue
            tally = tally or Tally(self.labels.channels, volume.shape, self.combine != "mean", disagreement)
            tally.add(probabilities, self._channels(number), self.weights[number])
            shifts.append(_lowered(self.teachers[number]))
            shares.append(self.weights[number].sum())
        unknown = tuple(n for n, w in zip(self.labels.names, tally.weights[1:], strict=True) if not w)
        contradiction = tally.disagreement() if disagreement else None
        lowered = float(np.average(shifts, weights=shares)) if self.combine == "mean" else 0.0
        return Opinion(combined(tally, self.combine), unknown, failed, contradiction, lowered)

    def _predict(self, number: int, volume: Volume, prepared: list | None) -> np.ndarray:
        seen = prepared[number] if prepared else None
        teacher = self.teachers[number]
        try:
            found = teacher.predict(volume) if seen is None else teacher.predict(volume, seen)
        except FAILURES:
            raise
        except Exception as error:  # whatever another's runtime raises is this case's problem, not the end of all
            first_line = next(iter(str(error).splitlines()), "")
            raise ValueError(f"{volume.name}: {teacher.name} fails ({type(error).__name__}: {first_line})") from error
        if not np.isfinite(found.sum()):
            raise ValueError(f"{volume.name}: {teacher.name} gives class probabilities that are no numbers")
        return found

    def may_disagree(self) -> bool:
        """Whether any structure is judged by two teachers."""
        return bool((np.count_nonzero(self.weights, axis=0) > 1).any())

    def _channels(self, number: int) -> list[int]:
        """Channel of each class of a teacher; 0 of the background and of what it is not asked about."""
        asked = dict(zip(self.labels.names, self.weights[number][1:], strict=True))
        names = [self.names[number][name] for name in self.teachers[number].labels.names]
        return [0] + [1 + self.labels.names.index(name) if asked.get(name) else 0 for name in names]

    def _leave_out_what_nobody_is_asked_about(self) -> None:
        asked = self.weights.sum(0) > 0
        self.labels = Labels(tuple(s for s, kept in zip(self.labels.structures, asked[1:], strict=True) if kept))
        self.weights = self.weights[:, [True, *asked[1:]]]

    def _weights(self, number: int, weight, synonyms: dict | None) -> list[float]:
        """Of a teacher in each class; 0 of the background and of the structures that it does not know."""
        own = self._by_structure(number, weight, synonyms) if isinstance(weight, dict) else {}
        usual = 1.0 if isinstance(weight, dict) else weight
        if not all(0 <= w < math.inf for w in own.values()) or not 0 < usual < math.inf:
            raise ValueError(f"weights of teachers must be above 0 (of a structure: 0 or above); found {weight}")
        known = {*self.names[number].values()}
        return [0.0] + [own.get(name, usual) if name in known else 0.0 for name in self.labels.names]

    def _by_structure(self, number: int, weights: dict, synonyms: dict | None) -> dict[str, float]:
        teacher, found = self.teachers[number], {}
        for name, weight in weights.items():
            same = matches(Labels.from_names({1: name}), teacher.labels, synonyms).get(name)
            if same is None:
                known = ", ".join(teacher.labels.names)
                raise ValueError(f"{teacher.name}: does not know {name}, which has a weight; it knows {known}")
            whole = self.names[number][same]
            parts = [own for own, meant in self.names[number].items() if meant == whole]
            if len(parts) > 1 and plain_name(name) != plain_name(whole):
                one = f"{' and '.join(parts)} are {whole} by the synonyms"
                raise ValueError(f"{teacher.name}: {one}; give {whole} a weight, not {name}")
            found[whole] = weight
        return found

    def _told(self, number: int) -> str:
        """A teacher's name; with its number where another has the same."""
        names = [teacher.name for teacher in self.teachers]
        return names[number] if names.count(names[number]) == 1 else f"{names[number]} ({number + 1})"


def _lowered(teacher: Teacher) -> float:
    """What a student lowers its background by when it decides; other teachers draw what is most probable."""
    return teacher.lowered if isinstance(teacher, Student) else 0.0
