"""Bearer tokens: who is known, who is not, and what changes make of them."""

from __future__ import annotations

import hashlib
import hmac
import json
import pickle
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from sisa_ray.core.bearer import ROLES
from sisa_ray.core.errors import ConfigError
from sisa_ray.core.tokens import Issued, Tokens, Verdict

NOW = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)
DAY = timedelta(days=1)


def source(seed: int = 0) -> Any:
    return random.Random(seed).randbytes


def issue(
    tokens: Tokens | None = None,
    *,
    roles: tuple[str, ...] = ("read",),
    life: timedelta | None = None,
    seed: int = 0,
) -> Issued:
    return (tokens or Tokens()).create(
        name="web-shop", roles=roles, now=NOW, lifetime=life, random_bytes=source(seed)
    )


def test_a_token_is_found_by_its_text_form_alone() -> None:
    first = issue(seed=1)
    tokens, token, bearer = issue(first.tokens, roles=("predict",), seed=2)
    assert tokens.find(bearer, NOW) == token
    assert tokens.find(first.bearer, NOW) == first.token
    kind, token_id, secret = bearer.split("_", 2)
    assert (kind, token_id, len(secret)) == ("sisa", token.token_id, 43)


def test_the_secret_has_256_bits_of_the_source_and_is_not_kept() -> None:
    asked = []

    def random_bytes(n: int) -> bytes:
        asked.append(n)
        return bytes(range(n))

    tokens, token, bearer = Tokens().create(
        name="a", roles=["read"], now=NOW, lifetime=None, random_bytes=random_bytes
    )
    assert asked[-1] == 32
    secret = bearer[len("sisa_00000000_") :]
    assert token.secret_sha256 == hashlib.sha256(secret.encode()).hexdigest()
    for text in (json.dumps(tokens.document()), repr(tokens), repr(issue())):
        assert secret not in text
    assert issue().bearer not in repr(issue())
    assert token.secret_sha256 not in repr(tokens) + json.dumps(token.public())


@pytest.mark.parametrize(
    "place", ["id", "secret", "kind", "cut", "longer", "empty", "odd", "newline", "swapped"]
)
def test_whoever_has_another_text_is_unknown(place: str) -> None:
    other = issue(seed=1)
    tokens, _, bearer = issue(other.tokens, seed=2)
    last = "A" if bearer[-1] != "A" else "B"
    text = {
        "id": bearer.replace(bearer[5:13], "0" * 8),
        "secret": bearer[:-1] + last,
        "kind": bearer.replace("sisa", "sesa"),
        "cut": bearer[:-1],
        "longer": bearer + "A",
        "empty": "",
        "odd": "sisa_\ud800é_" + "\n" * 43,
        "newline": bearer + "\n",
        "swapped": other.bearer[:14] + bearer[14:],
    }[place]
    assert tokens.judge(text, NOW) == (Verdict.UNKNOWN, None)
    assert tokens.find(text, NOW) is None


def test_only_who_has_the_secret_learns_that_a_token_expired() -> None:
    tokens, token, bearer = issue(life=DAY)
    assert tokens.judge(bearer, NOW + DAY - timedelta(microseconds=1)) == (Verdict.VALID, token)
    for later in (NOW + DAY, NOW + 9 * DAY):
        assert tokens.judge(bearer, later) == (Verdict.EXPIRED, None)
        assert tokens.find(bearer, later) is None
        assert tokens.judge(bearer[:-1] + "_", later) == (Verdict.UNKNOWN, None)
    elsewhere = (NOW + DAY).astimezone(timezone(timedelta(hours=9)))
    assert tokens.judge(bearer, elsewhere) == (Verdict.EXPIRED, None)


def test_an_unknown_id_costs_what_a_wrong_secret_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same comparison over the same lengths, in constant time."""
    tokens, _, bearer = issue()
    compared: list[tuple[int, int]] = []
    plain = hmac.compare_digest

    def compare(a: str, b: str) -> bool:
        compared.append((len(a), len(b)))
        return plain(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for text in (bearer, bearer[:-1] + "_", "sisa_00000000_" + "A" * 43, "nonsense"):
        tokens.judge(text, NOW)
    assert compared == [(64, 64)] * 4


def test_roles_are_kept_in_one_order_and_include_no_other() -> None:
    token = issue(roles=("read", "predict", "read")).token
    assert token.roles == ("predict", "read")
    for role in ROLES:
        alone = issue(roles=(role,)).token
        assert [r for r in ROLES if alone.may(r)] == [role]
    assert token.may("operate", "read")
    assert not token.may("operate", "request")
    assert not token.may()


def test_no_id_is_given_twice() -> None:
    first = issue(seed=4)
    again = issue(first.tokens, seed=4)
    assert again.token.token_id != first.token.token_id
    with pytest.raises(ConfigError, match="tokens: two have the id"):
        Tokens((first.token, first.token))


def test_after_a_rotation_both_are_valid_for_the_overlap_and_then_the_new_one_alone() -> None:
    old = issue(roles=("request", "operate"), life=10 * DAY)
    at = NOW + 2 * DAY
    new = old.tokens.rotate(
        old.token.token_id, now=at, keep_old_for=timedelta(minutes=10), random_bytes=source(1)
    )
    assert (new.token.name, new.token.roles) == (old.token.name, old.token.roles)
    assert new.token.expires_at == at + 10 * DAY
    assert new.bearer[14:] != old.bearer[14:]
    overlap = at + timedelta(minutes=9, seconds=59)
    assert new.tokens.find(old.bearer, overlap) is not None
    assert new.tokens.judge(old.bearer, at + timedelta(minutes=10))[0] is Verdict.EXPIRED
    assert new.tokens.find(new.bearer, at + 9 * DAY) == new.token


def test_an_overlap_lengthens_no_life_and_is_none_where_none_is_asked_for() -> None:
    old = issue(life=DAY)
    new = old.tokens.rotate(old.token.token_id, now=NOW, keep_old_for=9 * DAY, random_bytes=source(1))
    assert new.tokens.get(old.token.token_id).expires_at == NOW + DAY
    forever = issue()
    none = forever.tokens.rotate(
        forever.token.token_id, now=NOW, keep_old_for=timedelta(0), random_bytes=source(1)
    )
    assert none.token.expires_at is None
    assert none.tokens.judge(forever.bearer, NOW)[0] is Verdict.EXPIRED


def test_what_was_rotated_or_has_expired_is_not_rotated_again() -> None:
    old = issue(life=DAY)
    rotate: dict[str, Any] = {"keep_old_for": DAY, "random_bytes": source(1)}
    new = old.tokens.rotate(old.token.token_id, now=NOW, **rotate)
    with pytest.raises(ConfigError, match=f"rotated before; rotate {new.token.token_id}"):
        new.tokens.rotate(old.token.token_id, now=NOW, **rotate)
    with pytest.raises(ConfigError, match=r"expired at 2026-11-03 .*create a new one"):
        old.tokens.rotate(old.token.token_id, now=NOW + DAY, **rotate)
    with pytest.raises(ConfigError, match="is no token's id"):
        old.tokens.rotate("ffffffff", now=NOW, **rotate)


def test_what_is_revoked_is_unknown_and_what_it_came_from_is_told() -> None:
    first = issue()
    second = first.tokens.rotate(first.token.token_id, now=NOW, keep_old_for=DAY, random_bytes=source(1))
    third = second.tokens.rotate(second.token.token_id, now=NOW, keep_old_for=2 * DAY, random_bytes=source(2))
    last = third.token.token_id
    left = third.tokens.revoke(last)
    assert left.judge(third.bearer, NOW)[0] is Verdict.UNKNOWN
    assert left.find(first.bearer, NOW) is not None
    assert [t.token_id for t in left.predecessors(last, NOW)] == [first.token.token_id, second.token.token_id]
    assert [t.token_id for t in left.predecessors(last, NOW + DAY)] == [second.token.token_id]
    assert left.predecessors(first.token.token_id, NOW) == ()


def test_whoever_gives_a_whole_token_for_an_id_does_not_find_it_in_the_message() -> None:
    tokens, _, bearer = issue()
    with pytest.raises(ConfigError, match=r"^id: a whole token is no token's id") as caught:
        tokens.revoke(bearer)
    assert bearer[14:] not in str(caught.value)


def test_tokens_that_expired_long_ago_go_when_another_is_made() -> None:
    old = issue(life=DAY)
    for days, num_left in ((30, 2), (31, 1)):
        made = old.tokens.create(
            name="b", roles=["read"], now=NOW + days * DAY, lifetime=None, random_bytes=source(1)
        )
        assert len(made.tokens.tokens) == num_left


def test_the_digest_tells_every_change_and_nothing_else() -> None:
    tokens, token, _ = issue(life=10 * DAY)
    rotated = tokens.rotate(token.token_id, now=NOW, keep_old_for=DAY, random_bytes=source(1)).tokens
    digests = [
        t.digest for t in (Tokens(), tokens, rotated, tokens.revoke(token.token_id), issue(seed=9).tokens)
    ]
    assert len(set(digests)) == 4  # the first and the fourth hold nothing
    assert Tokens.from_document(json.loads(json.dumps(tokens.document()))).digest == tokens.digest


def test_tokens_survive_pickling_and_their_file() -> None:
    tokens, token, bearer = issue(life=DAY)
    assert tokens.find(bearer, NOW) == token
    for again in (pickle.loads(pickle.dumps(tokens)), Tokens.from_document(tokens.document())):
        assert again == tokens
        assert again.find(bearer, NOW) == token


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "é", "a\n", "a/b", None, 7])
def test_names_that_cannot_be(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"^name: must be 1 to 64 letters, digits and \. _ -.*, not "):
        Tokens().create(name=name, roles=["read"], now=NOW, lifetime=None, random_bytes=source())


def test_a_token_is_no_name() -> None:
    bearer = issue().bearer
    with pytest.raises(ConfigError, match=r"^name: .*not a whole token$"):
        Tokens().create(name=bearer, roles=["read"], now=NOW, lifetime=None, random_bytes=source())


@pytest.mark.parametrize("roles", [[], "read", ["raed"], ["read", 7], {"read": 1}, None, [None], [["read"]]])
def test_roles_that_cannot_be(roles: Any) -> None:
    with pytest.raises(ConfigError, match=r"^roles: must be .*predict, request, operate, read"):
        Tokens().create(name="a", roles=roles, now=NOW, lifetime=None, random_bytes=source())


def test_the_nearest_role_is_suggested() -> None:
    with pytest.raises(ConfigError, match="not 'raed'; did you mean 'read'"):
        Tokens().create(name="a", roles=["raed"], now=NOW, lifetime=None, random_bytes=source())


@pytest.mark.parametrize("lifetime", [timedelta(0), -DAY, 3651 * DAY])
def test_lifetimes_that_cannot_be(lifetime: timedelta) -> None:
    with pytest.raises(ConfigError, match=r"^expires_in: must be positive and at most 3650 days"):
        issue(life=lifetime)


def edited(**changes: Any) -> dict[str, Any]:
    document = issue().tokens.document()
    document["tokens"][0].update(changes)
    return document


def without(member: str) -> dict[str, Any]:
    document = issue().tokens.document()
    del document["tokens"][0][member]
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "must be a JSON object"),
        ([], "must be a JSON object"),
        ({}, "version: must be 1, not None"),
        ({"version": True, "tokens": []}, "version: must be 1, not True"),
        (
            {"version": 2},
            r"version: was written by a newer sisa_ray \(version 2; this one reads 1\); use that one",
        ),
        ({"version": 1}, "tokens: is missing"),
        ({"version": 1, "tokens": {}}, "tokens: must be a list"),
        ({"version": 1, "tokens": [], "x": 1}, r"\(unknown member\): the members are tokens, version"),
        ({"version": 1, "tokens": ["x"]}, r"tokens\[0\]: must be an object with the members created_at, "),
        (edited(id="XYZ"), r"tokens\[0\]\.token_id: must be 8 digits from 0-9a-f, not 'XYZ'"),
        (edited(name="a b"), r"tokens\[0\]\.name: must be 1 to 64 .*not 'a b'"),
        (edited(roles=["admin"]), r"tokens\[0\]\.roles: must be of predict.*not 'admin'"),
        (edited(roles=[]), r"tokens\[0\]\.roles: must be a list of one or more"),
        (edited(created_at=None), r"tokens\[0\]\.created_at: must be a time with a time zone, not None"),
        (
            edited(created_at="2026-11-02"),
            r"tokens\[0\]\.created_at: must be a time with a time zone such as",
        ),
        (edited(expires_at=1.5), r"tokens\[0\]\.expires_at: must be a time with a time zone such as"),
        (edited(expires_at="soon"), r"tokens\[0\]\.expires_at: .* not 'soon'"),
        (edited(replaced_by=7), r"tokens\[0\]\.replaced_by: must be null or 8 digits"),
        (edited(secret_sha256="zz"), r"tokens\[0\]\.secret_sha256: must be 64 digits .*not shown"),
        (edited(secret_sha256=None), r"tokens\[0\]\.secret_sha256: must be 64 digits"),
        (edited(extra=1), r"tokens\[0\]\.\(unknown member\): the members are created_at"),
        (without("expires_at"), r"tokens\[0\]\.expires_at: is missing"),
        (without("id"), r"tokens\[0\]\.id: is missing"),
    ],
)
def test_a_file_edited_into_nonsense_is_refused_with_its_place(document: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{message}"):
        Tokens.from_document(document)


@pytest.mark.parametrize(
    "member", ["id", "name", "roles", "created_at", "expires_at", "replaced_by", "secret_sha256"]
)
def test_a_token_pasted_into_the_file_is_not_shown(member: str) -> None:
    bearer = issue(seed=3).bearer
    for value in (bearer, [bearer], {bearer: 1}):
        with pytest.raises(ConfigError) as caught:
            Tokens.from_document(edited(**{member: value}))
        assert bearer[14:] not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        Tokens.from_document(edited(**{bearer: 1}))
    assert bearer[14:] not in str(caught.value)


def test_a_circle_of_rotations_made_by_hand_ends() -> None:
    first = issue(seed=1)
    both = issue(first.tokens, seed=2).tokens.document()
    ids = [t["id"] for t in both["tokens"]]
    for token, other in zip(both["tokens"], reversed(ids), strict=True):
        token["replaced_by"] = other
    assert [t.token_id for t in Tokens.from_document(both).predecessors(ids[0], NOW)] == [ids[1]]
