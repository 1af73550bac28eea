"""Records of named requests that two replicas answered: the later one names the earlier one."""

from __future__ import annotations

from datetime import timedelta

from foresight.logger.v1 import prediction_log_pb2
from foresight.wire import encode_instant
from tests.integration.logger.rig import ASKED, Logger, Record, new_incarnation, record

MEMORY = timedelta(minutes=10)


def named(
    life: str, first_sequence: int, name: str = "r-1", *, after: timedelta = timedelta(0), **changes: str
) -> Record:
    made = record(life, first_sequence, 2, **changes)  # type: ignore[arg-type]
    made.client_request_id = name
    made.served_at.CopyFrom(encode_instant(ASKED + after))
    return made


async def links(logger: Logger) -> dict[str, str]:
    """What each logged record says that it repeats, by its first prediction."""
    logger.now = ASKED
    return {e.record.prediction_ids[0]: e.record.repeats_prediction_id for e in await logger.read_all()}


async def test_a_repeat_at_another_replica_names_the_first_prediction(logger: Logger) -> None:
    logger.now = ASKED
    first = named(new_incarnation(), 1)
    again = named(new_incarnation(), 1, after=MEMORY, replica="predictor-1")
    third = named(new_incarnation(), 1, after=timedelta(seconds=1))
    await logger.append(first)
    await logger.append(again, third)
    found = await links(logger)
    assert found == {
        first.prediction_ids[0]: "",
        again.prediction_ids[0]: first.prediction_ids[0],
        third.prediction_ids[0]: first.prediction_ids[0],
    }
    logged = await logger.log.GetPrediction(
        prediction_log_pb2.GetPredictionRequest(prediction_id=again.prediction_ids[1])
    )
    again.repeats_prediction_id = first.prediction_ids[0]
    assert logged.record == again


async def test_in_one_append_too(logger: Logger) -> None:
    logger.now = ASKED
    first, again = named(new_incarnation(), 1), named(new_incarnation(), 1)
    await logger.append(first, again)
    assert (await links(logger))[again.prediction_ids[0]] == first.prediction_ids[0]


async def test_what_is_no_repeat_is_not_linked(logger: Logger) -> None:
    """Another name, caller or deployment; the same life of the replica; later than that; or no name at all."""
    logger.now = ASKED
    life = new_incarnation()
    other_caller = named(new_incarnation(), 1)
    other_caller.caller = "spiffe://foresight/application/other"
    others = [
        named(life, 3),
        named(new_incarnation(), 1, "r-2"),
        other_caller,
        named(new_incarnation(), 1, deployment="arrivals"),
        named(new_incarnation(), 1, after=MEMORY + timedelta(microseconds=1)),
        named(new_incarnation(), 1, ""),
    ]
    await logger.append(named(life, 1), named(new_incarnation(), 1, ""))
    await logger.append(*others)
    assert set((await links(logger)).values()) == {""}


async def test_names_are_forgotten_in_time(logger: Logger) -> None:
    """A record that comes long after its prediction is not compared with one that came long before."""
    logger.now = ASKED
    await logger.append(named(new_incarnation(), 1))
    logger.now = ASKED + 2 * MEMORY + timedelta(seconds=1)
    await logger.append(named(new_incarnation(), 1, "r-2"))
    late = named(new_incarnation(), 1)
    await logger.append(late)
    assert (await links(logger))[late.prediction_ids[0]] == ""


async def test_a_record_that_comes_again_stays_as_it_was(logger: Logger) -> None:
    logger.now = ASKED
    first, again = named(new_incarnation(), 1), named(new_incarnation(), 1)
    await logger.append(first)
    await logger.append(again)
    before = await links(logger)
    await logger.append(first, again)
    assert await links(logger) == before
    assert before[again.prediction_ids[0]] == first.prediction_ids[0]
