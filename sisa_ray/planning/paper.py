"""The paper's own equations in closed form (Bourtoule et al. 2021, sections IV and V, and its appendix).

Units: record-visits, one record trained on once. Domain: K uniform requests of one record each, shards of one
size N/S, slices of one size D/R, stages of equal epochs ``e_r = 2e'/(R+1)``. ``sisa_ray.planning.cost`` has the same
without these restrictions, and the exact expectations of which these are limits of many records.
"""

from __future__ import annotations

from sisa_ray.core.errors import ConfigError


def sharding_sequential(num_records: int, num_shards: int, num_requests: int) -> float:
    """K requests, each carried out before the next: ``(N/S + 1/(2S) - 1)·K - K²/(2S)``, per epoch.

    Source: section IV, sharding; ``num_requests`` at most ``num_records``. N=10,000, S=20, K=8:

    >>> round(sharding_sequential(10_000, 20, 8), 1)
    3990.6

    Raises:
        ConfigError: for numbers outside the domain.
    """
    check_counts(num_records, num_shards, num_requests)
    n, s, k = num_records, num_shards, num_requests
    return (n / s + 1 / (2 * s) - 1) * k - k * k / (2 * s)


def sharding_batch(num_records: int, num_shards: int, num_requests: int) -> float:
    """One batch of K requests: ``N·(1 - (1 - 1/S)^K) - K``, per epoch.

    Source: section IV, sharding. N=10,000, S=20, K=8:

    >>> round(sharding_batch(10_000, 20, 8), 1)
    3357.8

    Raises:
        ConfigError: for numbers outside the domain.
    """
    check_counts(num_records, num_shards, num_requests)
    return num_records * (1 - (1 - 1 / num_shards) ** num_requests) - num_requests


def slicing_one(shard_records: float, num_slices: int, epochs: float) -> float:
    """One request in a shard of D records: ``e'·D·(2/3 + 1/(3R))``. At most 1.5 times cheaper than the shard.

    Source: section V, slicing; the record itself, which is trained on no more, is neglected (it is one of D).
    Against the whole shard, with 50 slices and with many:

    >>> round(15 * 3000 / slicing_one(3000, 50, 15), 2), round(1 / slicing_one(1, 10**9, 1), 3)
    (1.49, 1.5)

    Raises:
        ConfigError: for fewer than one slice.
    """
    check_positive("num_slices", num_slices)
    return epochs * shard_records * (2 / 3 + 1 / (3 * num_slices))


def slicing_batch(shard_records: float, num_slices: int, epochs: float, num_requests: int) -> float:
    """K requests in one shard: it restarts at the smallest of their slices, ``E[Σ_{r >= min} e_r·D·r/R]``.

    Source: section V, slicing. ``P(min <= r) = 1 - (1 - r/R)^K``, which for one request gives ``slicing_one``:

    >>> round(slicing_batch(3000, 50, 15, 1) / slicing_one(3000, 50, 15), 9)
    1.0

    Raises:
        ConfigError: for fewer than one slice or request.
    """
    check_positive("num_slices", num_slices)
    check_positive("num_requests", num_requests)
    stage_epochs = 2 * epochs / (num_slices + 1)
    shares = [r / num_slices for r in range(1, num_slices + 1)]
    return sum(stage_epochs * shard_records * share * (1 - (1 - share) ** num_requests) for share in shares)


def sisa_batch(num_records: int, num_shards: int, num_slices: int, epochs: float, num_requests: int) -> float:
    """Sharding and slicing together, one batch of K: each shard restarts at the smallest slice that was hit.

    Source: sections IV and V together; a request falls in slices 1..r of a given shard with probability
    ``r/(R·S)``. With one slice it is ``sharding_batch``. Against full retraining, S=20, R=50, K=8 (Purchase: 4.23 in
    simulation):

    >>> round(full_retraining(250_000, 15, 8) / sisa_batch(250_000, 20, 50, 15, 8), 2)
    4.23
    >>> round(sisa_batch(10_000, 20, 1, 1, 8), 1)
    3357.8

    Raises:
        ConfigError: for numbers outside the domain.
    """
    check_counts(num_records, num_shards, num_requests)
    check_positive("num_slices", num_slices)
    stage_epochs = 2 * epochs / (num_slices + 1)
    total = 0.0
    for r in range(1, num_slices + 1):
        hit = 1 - (1 - r / (num_slices * num_shards)) ** num_requests
        total += stage_epochs * r / num_slices * (num_records * hit - num_requests)
    return total


def full_retraining(num_records: int, epochs: float, num_requests: int) -> float:
    """Retraining one model from scratch without K records: ``e'·(N - K)``. Source: section VI, the baseline.

    >>> full_retraining(10_000, 15, 8)
    149880

    Raises:
        ConfigError: where more are to go than there are.
    """
    check_counts(num_records, 1, num_requests)
    return epochs * (num_records - num_requests)


def check_counts(num_records: int, num_shards: int, num_requests: int) -> None:
    """Refuse counts that describe no training set.

    Raises:
        ConfigError: naming the count.
    """
    check_positive("num_records", num_records)
    check_positive("num_shards", num_shards)
    check_positive("num_requests", num_requests)
    if num_shards > num_records:
        raise ConfigError(
            f"num_shards: must be at most the {num_records} records, not {num_shards}; use fewer shards"
        )
    if num_requests > num_records:
        raise ConfigError(
            f"num_requests: must be at most the {num_records} records, not {num_requests}; "
            "nobody can be erased twice: lower the number of requests or give the right number of records"
        )


def check_positive(field: str, value: float) -> None:
    """Refuse what is below one where a count of one or more is meant.

    Raises:
        ConfigError: naming the field.
    """
    if not value >= 1:
        raise ConfigError(f"{field}: must be at least 1, not {value}; give a whole number from 1")
