"""Arms and shadows in the log: kept as they were sent, and compared by what turned out to be true."""

from __future__ import annotations

from foresight.logger.v1 import prediction_log_pb2
from tests.integration.logger.rig import Logger, Record, by_id, by_keys, new_incarnation, record
from tests.integration.logger.test_logger_outcomes import logged, send


def of_arm(made: Record, arm: str, probability: float = 0.0, *, forced: bool = False, shadow: bool = False) -> Record:
    made.arm, made.arm_probability, made.arm_forced, made.shadow = arm, probability, forced, shadow
    return made


async def test_what_is_said_of_arms_is_read_back(logger: Logger) -> None:
    """In pages, by id, and in what is cut out of a record; the ledger counts shadows like all others."""
    life = new_incarnation()
    sent = [
        of_arm(record(life, 1), "champion", 0.9),
        of_arm(record(life, 2), "off", forced=True),
        of_arm(record(life, 3), "next", shadow=True),
        of_arm(record(life, 4, 3), "champion", 0.9),
        record(life, 7),
    ]
    await logger.append(*sent)
    assert [entry.record for entry in await logger.read_all()] == sent
    for made in sent:
        request = prediction_log_pb2.GetPredictionRequest(prediction_id=made.prediction_ids[-1])
        assert (await logger.log.GetPrediction(request)).record == made
    assert await logger.ledger() == {life: (7, 7, 0, 0)}
    again = of_arm(record(life, 8, 2, ids=[sent[0].prediction_ids[0], new_incarnation()]), "champion", 0.9)
    await logger.append(again)
    cut = (await logger.read_all())[-1].record
    assert (len(cut.prediction_ids), cut.arm, cut.arm_probability) == (1, "champion", 0.9)


async def test_an_outcome_by_keys_reaches_the_answer_and_its_shadows(logger: Logger) -> None:
    """Whether they come before it or after it; it counts once."""
    life = new_incarnation()
    answered = of_arm(record(life, 1, flights=[7]), "champion", 1.0)
    early = of_arm(record(life, 2, flights=[7]), "next", shadow=True)
    late = of_arm(record(life, 3, flights=[7]), "later", shadow=True)
    await logger.append(answered, early)
    assert await send(logger, by_keys([7], [True])) == (1, 0, 0)
    await logger.append(late)
    found = await logged(logger)
    assert found == [(made.prediction_ids[0], True, 0) for made in (answered, early, late)]


async def test_an_outcome_by_id_is_for_that_prediction_alone(logger: Logger) -> None:
    life = new_incarnation()
    answered = of_arm(record(life, 1, flights=[7]), "champion", 1.0)
    shadow = of_arm(record(life, 2, flights=[7]), "next", shadow=True)
    await logger.append(answered, shadow)
    assert await send(logger, by_id([answered.prediction_ids[0]], [True])) == (1, 0, 0)
    assert await logged(logger) == [(answered.prediction_ids[0], True, 0)]
