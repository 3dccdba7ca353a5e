"""The HTTP interface, tested by its own OpenAPI document."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

from sisa_ray.core.tokens import Tokens
from tests.execution.coordinators import running, trained
from tests.serving.live import listening
from tests.serving.services import Here

MAX_EXAMPLES = 25
ELSEWHERE = [positive_data_acceptance, ignored_auth]
"""Rules that no schema can say (a time that is not in the future), and tokens, which test_http tries on every path."""

ROLES = ("predict", "request", "operate", "read")


@pytest.fixture(scope="module", params=[False, True], ids=["open", "with tokens"])
def address(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """A replica's address, and the header that opens it."""
    issued = Tokens().create(
        name="all", roles=ROLES, now=datetime.now(UTC), lifetime=None, random_bytes=secrets.token_bytes
    )
    config = trained(tmp_path_factory.mktemp("openapi"))
    with (
        running(config, tokens=lambda: issued.tokens) as one,
        listening(config, Here(one), authentication=request.param) as (url, _),
    ):
        yield url, f"Bearer {issued.bearer}" if request.param else ""


# The replica, on its own thread, seeds the global generators while cases are drawn here.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
def test_every_answer_is_documented(address: tuple[str, str]) -> None:
    """No 500s, no status or media type that the document does not know, and bodies of the documented form."""
    url, authorization = address
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    headers = {"authorization": authorization} if authorization else {}
    tried = set()
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        tried.add(f"{operation.method.upper()} {operation.path}")

        @settings(
            max_examples=MAX_EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            case.call_and_validate(headers=headers, excluded_checks=ELSEWHERE)

        check()
    assert {"POST /v1/predict", "POST /v1/unlearning-requests", "GET /v1/run", "GET /readyz"} <= tried


def test_the_document_is_open_and_says_who_may_ask(address: tuple[str, str]) -> None:
    document = requests.get(f"{address[0]}/openapi.json", timeout=10).json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == (path.startswith("/v1/") and bool(address[1]))
            assert {"401", "403"} <= operation["responses"].keys() or not path.startswith("/v1/")
    row = document["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert list(row["properties"]["rows"]["items"]["properties"]) == ["x"]
