"""Legal clocks: due dates, and how far they can be extended."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.clocks import Basis, add_months, due_date, extended_due_date, shortest_days
from sisa_ray.core.errors import DataError

times = st.datetimes(datetime(1990, 1, 1), datetime(2190, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds it
bases = st.sampled_from(["gdpr", "ccpa", "custom"])


def day(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}T09:30:15.000007+00:00")


@pytest.mark.parametrize(
    ("received", "due", "extended"),
    [
        ("2026-03-10", "2026-04-10", "2026-06-10"),
        ("2026-01-31", "2026-02-28", "2026-04-30"),
        ("2028-01-31", "2028-02-29", "2028-04-30"),
        ("2100-01-30", "2100-02-28", "2100-04-30"),
        ("2028-02-29", "2028-03-29", "2028-05-29"),
        ("2026-02-28", "2026-03-28", "2026-05-28"),
        ("2026-08-31", "2026-09-30", "2026-11-30"),
        ("2026-11-30", "2026-12-30", "2027-02-28"),
        ("2026-12-31", "2027-01-31", "2027-03-31"),
        ("2027-11-30", "2027-12-30", "2028-02-29"),
    ],
)
def test_the_gdpr_gives_one_calendar_month_and_at_most_three(received: str, due: str, extended: str) -> None:
    assert due_date("gdpr", day(received), custom_days=7) == day(due)
    assert extended_due_date("gdpr", day(received)) == day(extended)


@pytest.mark.parametrize(
    ("received", "due", "extended"),
    [("2026-01-01", "2026-02-15", "2026-04-01"), ("2028-02-29", "2028-04-14", "2028-05-29")],
)
def test_the_ccpa_gives_45_days_and_at_most_90(received: str, due: str, extended: str) -> None:
    assert due_date("ccpa", day(received), custom_days=7) == day(due)
    assert extended_due_date("ccpa", day(received)) == day(extended)


@given(times, st.integers(1, 3650))
def test_a_custom_clock_has_as_many_days_as_it_is_given_and_no_extension(at: datetime, days: int) -> None:
    assert due_date("custom", at, custom_days=days) - at == timedelta(days=days)
    with pytest.raises(DataError, match="'custom' knows no extension"):
        extended_due_date("custom", at)


@given(times, bases, st.integers(1, 3650))
def test_no_clock_is_shorter_than_the_shortest(at: datetime, basis: Basis, days: int) -> None:
    due = due_date(basis, at, custom_days=days)
    assert due - at >= timedelta(days=shortest_days(basis, custom_days=days))
    if basis != "custom":
        assert extended_due_date(basis, at) > due


def test_the_shortest_month_is_reached() -> None:
    received = day("2026-01-31")
    assert (due_date("gdpr", received, custom_days=1) - received).days == shortest_days("gdpr", custom_days=1)


@given(times, st.integers(0, 60))
def test_months_are_added_by_the_calendar(at: datetime, months: int) -> None:
    later = add_months(at, months)
    assert (later.year * 12 + later.month) - (at.year * 12 + at.month) == months
    assert (later.timetz(), later.tzinfo) == (at.timetz(), at.tzinfo)
    last = calendar.monthrange(later.year, later.month)[1]
    assert later.day == at.day or (later.day == last and last < at.day)


@given(times, times, st.integers(0, 36))
def test_who_came_first_is_due_first(one: datetime, other: datetime, months: int) -> None:
    first, second = sorted([one, other])
    if first.time() <= second.time():  # at the end of a month several days share a due date
        assert add_months(first, months) <= add_months(second, months)
    assert add_months(first, months).date() <= add_months(second, months).date()


@given(times)
def test_twelve_months_are_a_year(at: datetime) -> None:
    is_leap_day = (at.month, at.day) == (2, 29)
    assert add_months(at, 12).date() == at.date().replace(year=at.year + 1, day=28 if is_leap_day else at.day)
    assert add_months(at, 0) == at
