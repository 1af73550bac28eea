"""Retries wait longer and longer, for a bounded time; a target is found in the state folder or missed clearly."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from foresight.client.connection import Connection, Retry, Target
from foresight.client.errors import NotConnected, NotFound, ResourceExhausted, Unavailable


@dataclass
class Time:
    """A clock that only sleeping moves."""

    now: float = 0.0
    pauses: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)


def _retry(time: Time, seconds: float = 30.0) -> Retry:
    return Retry(seconds, clock=lambda: time.now, sleep=time.sleep, jitter=lambda: 1.0)


def _failing(times: int, error: Exception) -> Callable[[], str]:
    left = iter(range(times))

    def attempt() -> str:
        if next(left, None) is not None:
            raise error
        return "done"

    return attempt


def test_pauses_double_up_to_two_seconds() -> None:
    time = Time()
    assert _retry(time).run(_failing(9, Unavailable("away"))) == "done"
    assert time.pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


def test_jitter_halves_a_pause_at_most() -> None:
    time = Time()
    Retry(30.0, clock=lambda: time.now, sleep=time.sleep, jitter=lambda: 0.0).run(_failing(2, Unavailable("away")))
    assert time.pauses == [0.025, 0.05]


def test_the_last_error_is_raised_when_the_time_is_over() -> None:
    time = Time()
    with pytest.raises(Unavailable, match="away"):
        _retry(time, seconds=1.0).run(_failing(10_000, Unavailable("away")))
    assert 0.5 < time.now <= 1.0


def test_other_errors_and_refused_certificates_are_not_tried_again() -> None:
    time = Time()
    with pytest.raises(NotFound):
        _retry(time).run(_failing(1, NotFound("no such thing")))
    with pytest.raises(NotConnected):
        _retry(time).run(_failing(1, NotConnected("bad certificate", reason="CERTIFICATE")))
    assert time.pauses == []


def test_an_overloaded_service_is_asked_again_not_before_it_says() -> None:
    """A limit of another kind is not: it would be the same again."""
    time = Time()
    overloaded = ResourceExhausted("too much at once", retry_after_s=0.3)
    assert _retry(time).run(_failing(3, overloaded)) == "done"
    assert time.pauses == pytest.approx([0.35, 0.4, 0.5])
    with pytest.raises(ResourceExhausted):
        _retry(time).run(_failing(1, ResourceExhausted("too large")))
    assert len(time.pauses) == 3


def test_an_attempt_that_went_through_after_all_is_not_repeated() -> None:
    attempts: list[int] = []

    def attempt() -> str:
        attempts.append(1)
        raise Unavailable("the answer was lost")

    assert _retry(Time()).run(attempt, recovered=lambda: "recorded") == "recorded"
    assert len(attempts) == 1


def _write_state(folder: Path, version: int = 1) -> None:
    files = {"certificate": str(folder / "operator.pem"), "key": str(folder / "operator.key")}
    stack = {
        "version": version,
        "gateway": "127.0.0.1:1",
        "ca": str(folder / "ca.pem"),
        "identities": {"operator": files},
    }
    (folder / "foresight.json").write_text(json.dumps(stack))


def test_the_local_stack_is_found_in_its_state_folder(tmp_path: Path) -> None:
    _write_state(tmp_path)
    target = Target.local(tmp_path)
    assert target == Target("127.0.0.1:1", tmp_path / "ca.pem", tmp_path / "operator.pem", tmp_path / "operator.key")


def test_a_missing_or_foreign_state_is_said_clearly(tmp_path: Path) -> None:
    with pytest.raises(NotConnected, match="foresight up"):
        Target.local(tmp_path)
    _write_state(tmp_path, version=2)
    with pytest.raises(NotConnected, match="another version"):
        Target.local(tmp_path)
    _write_state(tmp_path)
    with pytest.raises(NotConnected, match="no identity auditor, only"):
        Target.local(tmp_path, "auditor")
    with pytest.raises(NotConnected, match=r"cannot read .*ca\.pem"):
        Connection.open(Target.local(tmp_path), Retry())
    (tmp_path / "foresight.json").write_text("{")
    with pytest.raises(NotConnected, match="cannot be read"):
        Target.local(tmp_path)
