"""Rungs: which candidates go on from an evaluator to the next one, which is dearer and knows better, and which stop.

As in asynchronous successive halving (arXiv:1810.05934), a worker that is free takes the best candidate that stands in
the best third of its rung and has not gone on, at the highest rung that has one; only where there is none does a new
candidate begin. One that is not in the best third waits, since later ones may be worse, and stops when it cannot come
into it any more. When nothing more can come to a rung its best third, rounded up, has gone on; one that fails at the
next rung gives its place to the next best. Other than there, rungs are evaluators of their own, each with its whole
schedule, and a tenth of what would stop goes on by chance, so that a rung that errs cannot hide a good network.

On the way to a front nobody waits. A candidate stops when another one of its rung is no slower, and its value is lower
by two standard deviations of the rung's noise or more: (value - 2 sigma, latency) is dominated. The noise is how far
the values of the rung and of the next one disagree: the deviation from a line fitted to those that have both, in the
unit of this rung. Until `PAIRS` candidates have both, everyone goes on.
"""

from __future__ import annotations

import bisect
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

ONE_OF = 3  # the best third goes on
CHANCE = 0.1  # share of what would stop that goes on all the same
SIGMAS = 2.0
PAIRS = 8  # candidates with values at two rungs that noise is estimated from
EXPECTED = 1 / ONE_OF + CHANCE * (1 - 1 / ONE_OF)  # share of a rung that goes on

_State = Literal["waits", "lucky", "sent", "passed", "failed", "stopped"]


class Going(NamedTuple):
    """A candidate on its way to a rung, and whether chance alone sent it there."""

    number: int
    rung: int
    by_chance: bool


@dataclass
class _Member:
    """A candidate at a rung where it has a value.

    Attributes:
        value, latency: smaller is better.
        state: it waits, also for a worker; chance lets it go on; it was sent to the next rung; it passed that; it
            failed there; it goes no further.
    """

    value: float
    latency: float
    state: _State = "waits"


class Rungs:
    """The candidates that stand at each rung.

    What it decides follows from what it was told, the seed, and how many candidates can still come: so a search that
    was killed decides as it would have.

    Args:
        count: of the rungs.
        front: whether latency is an objective, too.
        seed: of chance.
    """

    def __init__(self, count: int, *, front: bool = False, seed: int = 0) -> None:
        self.last = count - 1
        self._front, self._seed = front, seed
        self._members: list[dict[int, _Member]] = [{} for _ in range(count)]
        self._order: list[list[tuple[float, int]]] = [[] for _ in range(count)]  # by value, then number
        self._states: list[Counter[_State]] = [Counter() for _ in range(count)]
        self._sigmas: dict[int, float] = {}

    @property
    def counts(self) -> tuple[int, ...]:
        """How many candidates have a score at each rung."""
        return tuple(map(len, self._members))

    def scored(self, number: int, rung: int, value: float, latency: float = 0.0) -> None:
        """A candidate has its value at a rung, and with it has passed the one before."""
        self._members[rung][number] = _Member(value, latency)
        self._states[rung]["waits"] += 1
        bisect.insort(self._order[rung], (value, number))
        if rung == self.last:
            self._set(number, rung, "passed")
        if rung > 0:
            self._set(number, rung - 1, "passed")
            self._sigmas.pop(rung - 1, None)

    def failed(self, number: int, rung: int) -> None:
        """A candidate has no value at a rung that it was sent to."""
        if rung > 0:
            self._set(number, rung - 1, "failed")

    def stopped(self, number: int, rung: int) -> None:
        """A candidate goes no further than a rung."""
        self._set(number, rung, "stopped")

    def sent(self, going: Going) -> None:
        """A candidate is on its way."""
        self._set(going.number, going.rung - 1, "sent")

    def next(self, beginning: int) -> Going | None:
        """Who goes on now, None where nobody does.

        Args:
            beginning: candidates without a value yet that may come to the first rung, those at work there among them.
        """
        for rung in reversed(range(self.last)):
            if self._states[rung]["lucky"]:
                lucky = (number for _, number in self._order[rung] if self._members[rung][number].state == "lucky")
                return Going(next(lucky), rung + 1, by_chance=True)
        for rung in reversed(range(self.last)):
            number = self._best_to_go(rung, beginning)
            if number is not None:
                return Going(number, rung + 1, by_chance=False)
        return None

    def furthest(self) -> Going | None:
        """The best that waits at the highest rung where someone does; for who has no time to let others come."""
        for rung in reversed(range(self.last)):
            if waiting := self._waiting(rung):
                number = waiting[0]
                return Going(number, rung + 1, self._members[rung][number].state == "lucky")
        return None

    def stops(self, beginning: int) -> list[int]:
        """Who stops now; see `next`. Some that would are left to chance instead."""
        found = []
        for rung in range(self.last):
            for number in self._hopeless(rung, beginning):
                lucky = random.Random(f"{self._seed} {number} {rung}").random() < CHANCE
                self._set(number, rung, "lucky" if lucky else "stopped")
                if not lucky:
                    found.append(number)
        return found

    def waiting(self) -> list[int]:
        """Everyone who waits, or was sent by chance and has not begun."""
        return sorted(number for rung in range(self.last) for number in self._waiting(rung))

    def sigma(self, rung: int) -> float:
        """The noise of a rung's values, in their unit: one standard deviation; infinite where it is not known yet."""
        if rung not in self._sigmas:
            here, there = self._members[rung], self._members[rung + 1]
            both = [(here[number].value, member.value) for number, member in there.items()]
            self._sigmas[rung] = noise_of(both)
        return self._sigmas[rung]

    def _set(self, number: int, rung: int, state: _State) -> None:
        member = self._members[rung][number]
        self._states[rung][member.state] -= 1
        self._states[rung][state] += 1
        member.state = state

    def _waiting(self, rung: int) -> list[int]:
        members = self._members[rung]
        return [number for _, number in self._order[rung] if members[number].state in ("waits", "lucky")]

    def _to_come(self, rung: int, beginning: int) -> int:
        """How many may still come to a rung."""
        return beginning + sum(
            self._states[below][state] for below in range(rung) for state in ("waits", "lucky", "sent")
        )

    def _best_to_go(self, rung: int, beginning: int) -> int | None:
        members, count = self._members[rung], len(self._members[rung])
        if not self._states[rung]["waits"]:
            return None
        places = count // ONE_OF if self._to_come(rung, beginning) else math.ceil(count / ONE_OF)
        for _, number in self._order[rung]:
            state = members[number].state
            if state == "waits" and (places > 0 or self._front):
                return number
            places -= state not in ("failed", "stopped")
        return None

    def _hopeless(self, rung: int, beginning: int) -> list[int]:
        """Those that wait and will not be sent for their value."""
        members, order = self._members[rung], self._order[rung]
        if not self._states[rung]["waits"]:
            return []
        if self._front:
            return [number for _, number in order if members[number].state == "waits" and self._dominated(rung, number)]
        to_come = self._to_come(rung, beginning)
        places = math.ceil((len(order) + to_come) / ONE_OF)
        found = []
        for _, number in order:
            state = members[number].state
            if state == "waits" and places <= 0:
                found.append(number)
            else:  # at the end a place is taken by who has passed: whoever fails gives it up
                places -= state == "passed" or (to_come > 0 and state not in ("failed", "stopped"))
        return found

    def _dominated(self, rung: int, number: int) -> bool:
        mine = self._members[rung][number]
        value = mine.value - SIGMAS * self.sigma(rung)
        return any(
            other.state != "failed"
            and (other.value <= value and other.latency <= mine.latency)
            and (other.value < value or other.latency < mine.latency)
            for other in self._members[rung].values()
        )


def noise_of(pairs: Sequence[tuple[float, float]]) -> float:
    """How far first values lie off the line on which second ones depend on them, one standard deviation of the first.

    The line is that of least squares of the second on the first, so that it does not matter that the pairs were chosen
    by their first values. Infinite for fewer than `PAIRS`, and where second values do not grow with first ones.
    """
    if len(pairs) < PAIRS:
        return math.inf
    x, y = np.array(pairs, dtype=float).T
    x, y = x - x.mean(), y - y.mean()
    if not (slope := float(x @ y)) > 0:
        return math.inf
    slope /= float(x @ x)
    return math.sqrt(float(np.square(y - slope * x).sum()) / (len(pairs) - 2)) / slope
