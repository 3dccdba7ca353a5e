"""The text form of a token, and what is kept of its secret."""

from __future__ import annotations

import hashlib
import os

from hypothesis import given
from hypothesis import strategies as st

from sisa_ray.core.bearer import bearer_of, new_secret, secret_digest, shown_safely, split_bearer


@given(st.binary(min_size=4, max_size=4), st.binary(min_size=32, max_size=32))
def test_a_text_form_comes_apart_as_it_was_put_together(token_id: bytes, secret: bytes) -> None:
    """Also where the secret has the separator in it."""
    text = new_secret(lambda n: secret[:n])
    assert split_bearer(bearer_of(token_id.hex(), text)) == (token_id.hex(), text)


@given(st.text())
def test_any_other_text_is_none(text: str) -> None:
    assert split_bearer(text) == ("", "")


def test_secrets_differ_and_so_do_their_digests() -> None:
    secrets = {new_secret(os.urandom) for _ in range(100)}
    assert len({secret_digest(s) for s in secrets}) == 100
    assert secret_digest("abc") == hashlib.sha256(b"abc").hexdigest()


def test_a_message_shows_values_but_no_token() -> None:
    bearer = bearer_of("00000000", new_secret(os.urandom))
    assert shown_safely("a b") == "'a b'"
    for value in (bearer, f"x{bearer}y", [bearer], {bearer: 1}):
        assert shown_safely(value) == "a whole token"
