"""Expected record-visits of unlearning, for any layout, schedule, distribution of requests and kept checkpoints.

The equations of the paper's sections IV and V are special cases (``sisa_ray.planning.paper``). Everything rests on
one observation. A rebuild after a hit in slice r starts from the last kept checkpoint before r, so stage j is trained
again if and only if a request falls in slices 1..g(j), where g(j) is the first kept stage from j on. By linearity of
expectation, with n_j records in slices 1..j, the cost of a batch is

    Σ_shards Σ_j  e_j · (n_j · P(a request in slices 1..g(j)) - E(requests in slices 1..j)),

for the records that went are not trained on again. Legend of shapes: G kinds of shard, R slices a shard.
Units: record-visits, one record trained on once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sisa_ray.core.errors import ConfigError
from sisa_ray.planning.layouts import FloatArray, IntArray, Layout
from sisa_ray.planning.paper import check_counts, check_positive


def rebuilt_from(kept: Sequence[int], num_slices: int) -> IntArray:
    """(R,): for each stage j the first kept stage from j on, g(j): a hit in slices 1..g(j) rebuilds stage j.

    >>> rebuilt_from([2, 5], 5).tolist()
    [2, 2, 5, 5, 5]
    """
    stages = np.arange(1, num_slices + 1)
    return np.asarray(kept, dtype=np.int64)[np.searchsorted(kept, stages)]


def batch(layout: Layout, num_requests: int) -> float:
    """One batch of K requests, each drawn from ``layout.weights``, with replacement as in the paper.

    Source: sections IV and V, generalised. Domain: K up to N; where K nears N, ``uniform_batch`` is exact.

    >>> from sisa_ray.planning.layouts import even_layout
    >>> round(batch(even_layout(10_000, 20, [1.0]), 8), 1)
    3357.8

    Raises:
        ConfigError: for fewer than one request, or more than records.
    """
    _check(layout, num_requests)
    here, anywhere = _reach(layout)
    hit = _any_of(anywhere, num_requests)
    return _total(layout, _prefixes(layout.sizes) * hit - num_requests * here)


def window(layout: Layout, mean_requests: float, *, first: bool = True) -> float:
    """A batch of a Poisson number of requests with that mean, after one that opened it (``first``).

    That is what a window collects: it opens with a request and stays open for a while. Domain: ``mean_requests`` not
    negative and well below N. Derived from section IV's batch: ``E[(1 - w)^K] = e^(-mean·w)`` for a Poisson K.

    >>> from sisa_ray.planning.layouts import even_layout
    >>> layout = even_layout(10_000, 20, [1.0])
    >>> round(window(layout, 0.0), 6), round(batch(layout, 1), 6), round(window(layout, 7.0), 1)
    (499.0, 499.0, 3297.5)

    Raises:
        ConfigError: for a negative mean.
    """
    if not mean_requests >= 0:
        raise ConfigError(
            f"mean_requests: must be 0 or more, not {mean_requests}; give a mean number of requests"
        )
    here, anywhere = _reach(layout)
    missed = np.exp(-mean_requests * anywhere) * ((1 - anywhere) if first else 1)
    return _total(layout, _prefixes(layout.sizes) * (1 - missed) - (mean_requests + first) * here)


def sequential(layout: Layout, num_requests: int) -> float:
    """K requests, each carried out before the next; those before have made the shards smaller.

    Source: section IV (N=10,000, S=20, K=8: 3990.6), with section V's slices. Domain: K up to N.

    >>> from sisa_ray.planning.layouts import even_layout
    >>> round(sequential(even_layout(10_000, 20, [1.0]), 8), 1)
    3990.6

    Raises:
        ConfigError: for fewer than one request, or more than records.
    """
    _check(layout, num_requests)
    here, anywhere = _reach(layout)
    earlier = num_requests * (num_requests - 1) / 2
    each = _prefixes(layout.sizes) * anywhere - here
    return _total(layout, num_requests * each - earlier * here * anywhere)


def uniform_batch(layout: Layout, num_requests: int) -> float:
    """One batch of K different records, any K as likely as any other: exact, for whole sizes.

    Source: section IV's batch without its replacement; ``P(none of n hit) = C(N-n, K) / C(N, K)``. Domain: K up to N;
    weights are those of ``by_records``. Erasing everybody trains nothing:

    >>> from sisa_ray.planning.layouts import by_records
    >>> layout = by_records([[3, 2], [1, 4]], [1.0, 1.0])
    >>> round(uniform_batch(layout, 10), 9), round(uniform_batch(layout, 1), 9)
    (0.0, 4.6)

    Raises:
        ConfigError: for fewer than one request, or more than records.
    """
    _check(layout, num_requests)
    prefixes = _prefixes(layout.sizes)
    within = prefixes[:, rebuilt_from(layout.kept, layout.num_slices) - 1]
    missed = _none_hit(layout.num_records, within, num_requests)
    erased = num_requests * prefixes / layout.num_records
    return _total(layout, prefixes * (1 - missed) - erased)


def uniform_sequential(layout: Layout, num_requests: int) -> float:
    """K different records one after the other, any order as likely as any other: exact, for whole sizes.

    Source: section IV, without its approximation that shards stay alike. The i-th request leaves N-i others, and an
    ordered pair of different records lies in slices (1..g(j), 1..j) of a shard with probability n_g·(n_j)-n_j over
    N·(N-1). Domain: K up to N, N at least 2.

    >>> from sisa_ray.planning.layouts import by_records
    >>> round(uniform_sequential(by_records([[500]] * 20, [1.0]), 8), 1)
    3990.6

    Raises:
        ConfigError: for fewer than one request, more than records, or a single record.
    """
    _check(layout, num_requests)
    n, k = layout.num_records, num_requests
    if n < 2:
        raise ConfigError(f"num_records: must be at least 2, not {n:g}; one record alone is no training set")
    prefixes = _prefixes(layout.sizes)
    within = prefixes[:, rebuilt_from(layout.kept, layout.num_slices) - 1]
    others_left = k * n - k * (k + 1) / 2
    return _total(layout, prefixes * (within - 1)) * others_left / (n * (n - 1))


def one_request(layout: Layout) -> float:
    """One request, drawn from ``layout.weights``: section V, generalised. 20 × 50 slices against retraining:

    >>> from sisa_ray.core.schedule import stage_epochs
    >>> from sisa_ray.planning.layouts import even_layout
    >>> costs = {s: one_request(even_layout(250_000, 20, stage_epochs(s, 50, 15))) for s in ("equal", "harmonic")}
    >>> {s: round(15 * 250_000 / c, 1) for s, c in costs.items()}
    {'equal': 29.7, 'harmonic': 90.0}
    """
    return sequential(layout, 1)


def full_training(layout: Layout, num_erased: float = 0) -> float:
    """Training every shard from its first stage on, ``num_erased`` records fewer: e'·(N - K) for even layouts.

    >>> from sisa_ray.planning.layouts import even_layout
    >>> full_training(even_layout(10_000, 20, [15.0]), 8)
    149880.0
    """
    prefixes, here = _prefixes(layout.sizes), _prefixes(layout.weights)
    return _total(layout, prefixes - num_erased * here)


def longest_shard(layout: Layout) -> float:
    """Training the largest shard from its first stage on: what bounds the time of a batch from below."""
    return float((_prefixes(layout.sizes) @ layout.epochs).max())


def shards_hit(layout: Layout, num_requests: float) -> float:
    """Expected shards that a batch of K requests touches: ``Σ 1 - (1 - w)^K``. Section IV.

    >>> from sisa_ray.planning.layouts import even_layout
    >>> round(shards_hit(even_layout(10_000, 20, [1.0]), 8), 2)
    6.73
    """
    return float(layout.copies @ _any_of(layout.weights.sum(axis=1), num_requests))


def _reach(layout: Layout) -> tuple[FloatArray, FloatArray]:
    """(G, R) twice: probability that a request falls in slices 1..j, and in slices 1..g(j)."""
    here = _prefixes(layout.weights)
    return here, here[:, rebuilt_from(layout.kept, layout.num_slices) - 1]


def _prefixes(values: FloatArray) -> FloatArray:
    return np.cumsum(values, axis=1)


def _any_of(probability: FloatArray, num_requests: float) -> FloatArray:
    """1 - (1 - p)^K, right for tiny p too."""
    with np.errstate(divide="ignore"):  # the logarithm of a certain hit
        hit: FloatArray = -np.expm1(num_requests * np.log1p(-np.minimum(probability, 1.0)))
    return hit


def _none_hit(num_records: float, sizes: FloatArray, num_requests: int) -> FloatArray:
    """C(N-n, K) / C(N, K), as the product over the K requests; exact and fast where K is small or N-n < K."""
    missed = np.ones_like(sizes)
    for i in range(num_requests):
        missed *= np.maximum(0.0, num_records - sizes - i) / (num_records - i)
        if missed.max() < 1e-300:
            break
    return missed


def _total(layout: Layout, visits_per_epoch: FloatArray) -> float:
    """Over shards and stages, from visits per epoch (G, R)."""
    return float(layout.copies @ (visits_per_epoch @ layout.epochs))


def _check(layout: Layout, num_requests: int) -> None:
    check_positive("num_requests", num_requests)
    check_counts(max(1, round(layout.num_records)), 1, num_requests)
