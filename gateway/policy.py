"""Who may call what. Nothing is allowed that is not listed; the gateway and its tests read the same tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.certificates import TRUST_DOMAIN

INFERENCE = "/inference.GRPCInferenceService/"
# Where calls go: the prefixes of their paths, per service. Health and reflection stay inside.
SERVICES: Mapping[str, Sequence[str]] = {
    "feature_store": ("/foresight.feature_store.v1.",),
    "trainer": ("/foresight.trainer.v1.",),
    "predictor": ("/foresight.predictor.v1.", INFERENCE),
    "logger": ("/foresight.logger.v1.",),
}
PREFIXES: Sequence[str] = tuple(prefix for prefixes in SERVICES.values() for prefix in prefixes)

# No separators of the forwarded header (`,` `;` `"` `=`), no further path segment.
# Its length is bounded where identities are made: a counted repetition exceeds what Envoy accepts as a program.
_NAME = r"[A-Za-z0-9._-]+"
NAME_CHARACTERS_MAX = 63


@dataclass(frozen=True, slots=True)
class Role:
    """All identities `spiffe://foresight/<name>/<one segment>` and what they may call.

    A path that ends in `/` or `.` stands for all that begin with it, any other for itself alone.
    """

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


OPERATOR = Role("operator", PREFIXES)
APPLICATION = Role(
    "application",
    (
        "/foresight.predictor.v1.PredictionService/",
        "/foresight.logger.v1.OutcomeService/",
        # Loading and unloading models is for operators.
        *(
            f"{INFERENCE}{method}"
            for method in (
                *("ServerLive", "ServerReady", "ServerMetadata"),
                *("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"),
                *("ModelInfer", "ModelStreamInfer", "RepositoryIndex"),
            )
        ),
    ),
)
ROLES: Sequence[Role] = (OPERATOR, APPLICATION)


def is_prefix(path: str) -> bool:
    """Whether a path of a role stands for all that begin with it."""
    return path.endswith(("/", "."))


def is_allowed(uri: str, path: str) -> bool:
    """Whether an identity may call a method, given as `/package.Service/Method`."""
    return any(
        re.fullmatch(role.identities, uri)
        and any(path.startswith(granted) if is_prefix(granted) else path == granted for granted in role.paths)
        for role in ROLES
    )
