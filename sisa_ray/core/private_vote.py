"""The private vote: a label that says little about any one constituent, and so about any one person.

Permute-and-flip (McKenna & Sheldon, NeurIPS 2020, algorithm 1), which is the arg-max of the votes with one-sided
exponential noise (Ding et al., 2021). Sampled exactly, in integers, from the operating system's randomness: noise in
floating point leaks (Mironov, 2012). The known remedy against requests chosen after watching the model (Gupta et
al., NeurIPS 2021).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

RandBelow = Callable[[int], int]


def private_label(
    votes: Sequence[int],
    epsilon: Fraction,
    *,
    num_changed: int = 1,
    randbelow: RandBelow = secrets.randbelow,
) -> int:
    """A label near the most voted one: epsilon-differentially private with respect to one subject.

    One subject's records are in one shard for each ingest, so they decide at most ``num_changed`` votes, and move
    each count by at most as many.

    Args:
        votes: how many constituents voted for each label.
        epsilon: of this one answer.
        num_changed: votes that one subject may decide.
        randbelow: uniform integers from 0 to below its argument.

    >>> private_label([0, 20, 0], Fraction(1000))
    1
    """
    _check(len(votes), epsilon, num_changed)
    most = max(votes)
    left = list(range(len(votes)))
    scale = epsilon / (2 * num_changed)
    while True:
        label = left.pop(randbelow(len(left)))
        # Of those with most votes the coin always falls on heads, so somebody is chosen before all are gone.
        if _heads(scale * (most - votes[label]), randbelow):
            return label


def private_labels(
    votes: npt.NDArray[np.int64],
    epsilon: Fraction,
    *,
    num_changed: int = 1,
    randbelow: RandBelow = secrets.randbelow,
) -> npt.NDArray[np.int64]:
    """:func:`private_label` of each row of ``votes``, shape ``(N, C)``; each costs ``epsilon``."""
    rows: list[list[int]] = votes.tolist()
    labels = [private_label(row, epsilon, num_changed=num_changed, randbelow=randbelow) for row in rows]
    return np.asarray(labels, dtype=np.int64)


def _heads(x: Fraction, randbelow: RandBelow) -> bool:
    """True with probability ``exp(-x)``, exactly (Canonne, Kamath & Steinke, NeurIPS 2020, algorithm 1)."""
    whole, part = divmod(x, 1)
    # exp(-whole) first: each of its coins fails with probability 1 - 1/e, so this ends soon whatever x is.
    return all(_heads_of_part(Fraction(1), randbelow) for _ in range(int(whole))) and _heads_of_part(
        part, randbelow
    )


def _heads_of_part(x: Fraction, randbelow: RandBelow) -> bool:
    """The same for x from 0 to 1: the number of tries up to the first failure of a coin x/k is odd."""
    k = 1
    while randbelow(x.denominator * k) < x.numerator:
        k += 1
    return k % 2 == 1


def _check(num_labels: int, epsilon: Fraction, num_changed: int) -> None:
    if num_labels < 1 or epsilon <= 0 or num_changed < 1:
        raise ValueError(
            f"private vote: needs a label ({num_labels}), epsilon above 0 ({epsilon}) and a vote that may change "
            f"({num_changed})"
        )
