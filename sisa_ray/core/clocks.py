"""Legal clocks: by when a request must be done, and how far that may be extended.

GDPR, article 12(3): one month, extensible by two further months where the complexity or number of requests
makes it necessary. CCPA, section 1798.130(a)(2): 45 days, extensible once by another 45.
"""

from __future__ import annotations

import calendar
from datetime import datetime, timedelta
from typing import Literal

from sisa_ray.core.errors import DataError

Basis = Literal["gdpr", "ccpa", "custom"]
ExtensionReason = Literal["complexity", "number-of-requests"]

GDPR_MONTHS = 1
GDPR_EXTENDED_MONTHS = 3
CCPA_DAYS = 45
CCPA_EXTENDED_DAYS = 90


def due_date(basis: Basis, received_at: datetime, *, custom_days: int) -> datetime:
    """When a request received at ``received_at`` must be done.

    >>> from datetime import UTC
    >>> due_date("gdpr", datetime(2026, 1, 31, tzinfo=UTC), custom_days=30).date().isoformat()
    '2026-02-28'
    """
    if basis == "gdpr":
        return add_months(received_at, GDPR_MONTHS)
    return received_at + timedelta(days=CCPA_DAYS if basis == "ccpa" else custom_days)


def extended_due_date(basis: Basis, received_at: datetime) -> datetime:
    """The latest date to which the clock can be extended.

    Raises:
        DataError: for a basis that knows no extension.
    """
    if basis == "gdpr":
        return add_months(received_at, GDPR_EXTENDED_MONTHS)
    if basis == "ccpa":
        return received_at + timedelta(days=CCPA_EXTENDED_DAYS)
    raise DataError(f"basis: {basis!r} knows no extension; only gdpr and ccpa do")


def shortest_days(basis: Basis, *, custom_days: int) -> int:
    """The shortest that a clock of this basis can be, in days: what retention of deleted data is held against."""
    return {"gdpr": 28, "ccpa": CCPA_DAYS, "custom": custom_days}[basis]


def add_months(start: datetime, months: int) -> datetime:
    """The same day so many calendar months later; the last day of a month that has no such day."""
    index = start.year * 12 + start.month - 1 + months
    year, month = divmod(index, 12)
    day = min(start.day, calendar.monthrange(year, month + 1)[1])
    return start.replace(year=year, month=month + 1, day=day)
