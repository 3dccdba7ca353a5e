"""Private votes: one label from the constituents' votes, drawn so that no single person can be told from it.

The mechanism is permute-and-flip (McKenna & Sheldon, NeurIPS 2020), which draws from the same distribution as
report-noisy-max with one-sided exponential noise (Ding et al. 2021): go through the labels in random order, take
label i with probability exp(epsilon × (v_i − v_max) / (2 × sensitivity)), stop at the first that is taken. It is
epsilon-differentially private, and never worse than the exponential mechanism.

All of it is in integers, after Canonne, Kamath & Steinke (2020), algorithm 1: floating-point noise has gaps that
tell votes apart. What it does not hide is how long it takes to draw, which depends on the votes; and it protects one
label, so the epsilons of all that is answered add up (a run's log counts them:
:class:`~sisa_ray.core.records.PrivacySpent`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from sisa_ray.core.errors import ConfigError
from sisa_ray.core.fields import shown

RandBelow = Callable[[int], int]
"""A uniform integer from 0 to n − 1, from a secure source."""


def private_label(
    votes: Sequence[int],
    epsilon: Fraction,
    *,
    num_changed: int = 1,
    randbelow: RandBelow = secrets.randbelow,
) -> int:
    """Draw a label (from 0) from the votes that each has.

    Args:
        votes: constituents that vote for each label, 0 or more; shape (C,).
        epsilon: privacy loss of this answer with respect to one subject, exact.
        num_changed: constituents whose votes one subject can change: one for each ingest that it has records of.
            So no count changes by more than this.
        randbelow: source of randomness.

    Raises:
        ConfigError: where an argument is not what is said here.
    """
    num, den = _scale(epsilon, num_changed)
    counts = [_count(vote) for vote in votes]
    if not counts:
        raise ConfigError("votes: must have a count for each label; there is none")
    return _permute_and_flip(counts, num, den, randbelow)


def private_labels(
    votes: npt.NDArray[np.integer],
    epsilon: Fraction,
    *,
    num_changed: int = 1,
    randbelow: RandBelow = secrets.randbelow,
) -> npt.NDArray[np.int64]:
    """Draw a label for each row of ``votes``, shape (N, C); shape (N,). Every row costs ``epsilon``.

    Raises:
        ConfigError: where an argument is not what :func:`private_label` says.
    """
    num, den = _scale(epsilon, num_changed)
    is_integer = isinstance(votes, np.ndarray) and np.issubdtype(votes.dtype, np.integer)
    if not is_integer or votes.ndim != 2 or votes.shape[1] == 0:
        raise ConfigError(f"votes: must be integers of shape (rows, labels), not {_described(votes)}")
    if votes.size and votes.min() < 0:
        raise ConfigError(f"votes: must be counts from 0, but one is {votes.min()}")
    drawn = (_permute_and_flip(row, num, den, randbelow) for row in votes.tolist())
    return np.fromiter(drawn, dtype=np.int64, count=len(votes))


def bernoulli_exp(num: int, den: int, randbelow: RandBelow) -> bool:
    """True with probability exp(−num/den), exactly. ``num`` is 0 or more, ``den`` 1 or more."""
    whole, num = divmod(num, den)
    # exp(−whole − rest) is that many independent exp(−1) and one exp(−rest). The first that fails ends it, so that
    # even a huge exponent takes fewer than two of them on average.
    for _ in range(whole):
        if not _bernoulli_exp_fraction(1, 1, randbelow):
            return False
    return num == 0 or _bernoulli_exp_fraction(num, den, randbelow)


def _bernoulli_exp_fraction(num: int, den: int, randbelow: RandBelow) -> bool:
    """For num/den of at most 1: draws that succeed with probability num/(den × k), k = 1, 2, …, until one fails.

    The first k fail no earlier with probability (num/den)^k / k!; that the number of successes is even sums up to
    the series of exp(−num/den).
    """
    bound = den
    # A draw that cannot fail (the first one for exp(-1)) is not made.
    while num == bound or randbelow(bound) < num:
        bound += den
        if randbelow(bound) >= num:
            return False
        bound += den
    return True


def _permute_and_flip(counts: list[int], num: int, den: int, randbelow: RandBelow) -> int:
    """``num``/``den``: the factor of a label's distance from the most votes in the exponent."""
    most = max(counts)
    left = list(range(len(counts)))
    for end in range(len(left), 0, -1):
        # The next of a uniform permutation; labels behind one that is taken are never drawn.
        at = randbelow(end) if end > 1 else 0
        label = left[at]
        left[at] = left[end - 1]
        gap = most - counts[label]
        if gap == 0 or bernoulli_exp(num * gap, den, randbelow):
            return label
    raise AssertionError("a label with the most votes is always taken")


def _scale(epsilon: Fraction, num_changed: int) -> tuple[int, int]:
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, Fraction)) or epsilon <= 0:
        raise ConfigError(
            f"epsilon: must be a positive, exact number such as Fraction(1, 10), not {shown(epsilon)}"
        )
    if isinstance(num_changed, bool) or not isinstance(num_changed, int) or num_changed < 1:
        raise ConfigError(f"num_changed: must be a whole number from 1, not {shown(num_changed)}")
    factor = Fraction(epsilon) / (2 * num_changed)
    return factor.numerator, factor.denominator


def _count(vote: object) -> int:
    if isinstance(vote, (bool, np.bool_)) or not isinstance(vote, (int, np.integer)) or vote < 0:
        raise ConfigError(f"votes: must be whole numbers from 0, but one is {shown(vote)}")
    return int(vote)


def _described(votes: object) -> str:
    if isinstance(votes, np.ndarray):
        return f"{votes.dtype} of shape {votes.shape}"
    return f"a {type(votes).__name__}"
