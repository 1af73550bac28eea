"""Who may call what. Nothing is allowed that is not listed; the gateway and its tests read the same tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.certificates import TRUST_DOMAIN

# Where calls go: the prefix of their path, per service. Health and reflection stay inside.
SERVICES: Mapping[str, str] = {
    name: f"/foresight.{name}.v1." for name in ("feature_store", "trainer", "predictor", "logger")
}

# No separators of the forwarded header (`,` `;` `"` `=`), no further path segment.
# Its length is bounded where identities are made: a counted repetition exceeds what Envoy accepts as a program.
_NAME = r"[A-Za-z0-9._-]+"
NAME_CHARACTERS_MAX = 63


@dataclass(frozen=True, slots=True)
class Role:
    """All identities `spiffe://foresight/<name>/<one segment>` and the path prefixes that they may call."""

    name: str
    paths: Sequence[str]

    @property
    def identities(self) -> str:
        """A regular expression (RE2) that matches whole URIs of this role."""
        return f"{re.escape(TRUST_DOMAIN)}/{self.name}/{_NAME}"

    def identity(self, name: str) -> str:
        """The URI of one of this role's identities."""
        uri = f"{TRUST_DOMAIN}/{self.name}/{name}"
        if len(name) > NAME_CHARACTERS_MAX or not re.fullmatch(self.identities, uri):
            raise ValueError(f"{name!r} is no name of an identity: 1 to 63 of A-Z a-z 0-9 . _ -")
        return uri


OPERATOR = Role("operator", tuple(SERVICES.values()))
APPLICATION = Role(
    "application",
    ("/foresight.predictor.v1.PredictionService/", "/foresight.logger.v1.OutcomeService/"),
)
ROLES: Sequence[Role] = (OPERATOR, APPLICATION)


def is_allowed(uri: str, path: str) -> bool:
    """Whether an identity may call a method, given as `/package.Service/Method`."""
    return any(
        re.fullmatch(role.identities, uri) and any(path.startswith(prefix) for prefix in role.paths) for role in ROLES
    )
