"""The ledger of a privacy budget: how many answers it pays for, and how many are left."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from sisa_ray.core.errors import ConfigError
from sisa_ray.core.fields import shown


@dataclass(frozen=True)
class Budget:
    """A total epsilon and the epsilon that one answer costs, both exact.

    Costs add up (basic composition: Dwork & Roth 2014, theorem 3.16): k answers of epsilon each are together
    (k × epsilon)-differentially private, however each question was chosen after the answers before it.

    Raises:
        ConfigError: where one is not a positive fraction.
    """

    total: Fraction
    per_answer: Fraction

    def __post_init__(self) -> None:
        for name in ("total", "per_answer"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, Fraction)) or value <= 0:
                raise ConfigError(
                    f"{name}: must be a positive, exact number such as Fraction(1, 10), not {shown(value)}"
                )

    @property
    def num_answers(self) -> int:
        """Answers that the whole budget pays for.

        >>> Budget(Fraction(3, 10), Fraction(1, 10)).num_answers
        3
        """
        return int(self.total // self.per_answer)

    def lease(self, spent_answers: int, wanted: int) -> int:
        """How many of ``wanted`` further answers may be given after ``spent_answers``.

        A block counts as spent from the moment it is leased, whether its answers are given or not: record it as
        spent, durably, before the first of them. Then a crash wastes answers, and never repeats them.

        Raises:
            ConfigError: for negative numbers.

        >>> Budget(Fraction(1), Fraction(1, 10)).lease(8, 5)
        2
        """
        for name, value in (("spent_answers", spent_answers), ("wanted", wanted)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"{name}: must be a whole number from 0, not {shown(value)}")
        # A budget that was lowered can have been overspent.
        return min(wanted, max(0, self.num_answers - spent_answers))
