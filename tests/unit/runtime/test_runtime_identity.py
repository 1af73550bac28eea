"""Who calls, by what the gateway says of the certificate."""

from __future__ import annotations

import pytest

from services.runtime.errors import PermissionDenied
from services.runtime.identity import HEADER, LOCAL, caller_of

OPERATOR = "spiffe://foresight/operator/alice"


def test_a_call_through_the_socket_is_local() -> None:
    assert caller_of([("user-agent", "grpc"), ("x-request-id", "1")]) == LOCAL


@pytest.mark.parametrize("value", [f"URI={OPERATOR}", f"By=spiffe://foresight/gateway;Hash=ab12;URI={OPERATOR}"])
def test_the_one_uri_of_the_certificate_is_the_identity(value: str) -> None:
    assert caller_of([(HEADER, value)]) == OPERATOR
    assert caller_of([(HEADER, value.encode())]) == OPERATOR


@pytest.mark.parametrize(
    "values",
    [
        [""],
        ["Hash=ab12"],
        ["URI="],
        [f"URI={OPERATOR};URI=spiffe://foresight/application/web"],
        [f"URI={OPERATOR};URI={OPERATOR}"],
        [f"URI={OPERATOR}", f"URI={OPERATOR}"],
        [f"URI={OPERATOR},URI=spiffe://foresight/application/web"],
        ["URI=https://foresight/operator/alice"],
        ["uri=" + OPERATOR],
        [f"Xuri={OPERATOR}"],
        [f'Subject="CN=a;URI={OPERATOR};O=b"'],
        [f'Subject="CN=a";URI="{OPERATOR}"'],
        [f"DNS={OPERATOR}"],
    ],
)
def test_anything_but_exactly_one_plain_identity_is_refused(values: list[str]) -> None:
    with pytest.raises(PermissionDenied):
        caller_of([(HEADER, value) for value in values])


def test_a_look_alike_stays_the_other_identity_that_it_is() -> None:
    for other in (OPERATOR + "-evil", OPERATOR.upper().replace("SPIFFE", "spiffe"), OPERATOR + "/"):
        assert caller_of([(HEADER, f"URI={other}")]) == other != OPERATOR
