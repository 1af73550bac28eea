"""The replay: history first, then March to December in four steps a day, as if it happened now.

Each step writes what became known, records the outcomes of flights that landed, and asks for the flights that leave
in 6 to 12 hours. Each evening the next day's schedule is scored in batch; at each month's end a challenger is
trained on the first training set and the logged features, and judged on the last seven days.
"""

from __future__ import annotations

import itertools
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from examples.flights import definitions as service
from examples.flights.data import Year
from examples.flights.delays import Landings
from examples.flights.pipelines import FIRST, feature_pipelines, planes_pipeline
from foresight.client import Client, Decision, Logged, ModelVersion, TrainingDataset
from foresight.pipelines import Pipeline, Window, WindowRun, run_once

STEP = timedelta(hours=6)
ASK_FROM, ASK_TO = timedelta(hours=6), timedelta(hours=12)
START = datetime(2013, 3, 1, tzinfo=UTC)
END = datetime(2014, 1, 1, tzinfo=UTC)
# The last flights land on the morning of the second of January.
OUTCOMES_UNTIL = datetime(2014, 1, 2, 12, tzinfo=UTC)
JUDGED_ON = timedelta(days=7)
HELD_OUT = timedelta(days=7)
# Of 1,000 flights so many are asked for in a sampled year: a few hundred a day.
SAMPLED_PER_MILLE = 270
CLIENT_THREADS = 6
# What happens at the very time of a step is known to it.
INSTANT = timedelta(microseconds=1)
UTC_HOUR_OF_EVENING = 0  # 19 or 20 o'clock in New York


@dataclass(slots=True)
class Throughput:
    """Rows and seconds of one kind of work."""

    rows: int = 0
    seconds: float = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """Counts finished work."""
        self.rows += rows
        self.seconds += seconds


@dataclass(slots=True)
class Record:
    """What the clients saw; the report compares it with what the platform says."""

    latencies_s: list[float] = field(default_factory=list)
    prediction_ids: dict[str, str] = field(default_factory=dict)
    answers: int = 0
    outcomes: int = 0
    decisions: list[Decision] = field(default_factory=list)
    work: dict[str, Throughput] = field(default_factory=lambda: defaultdict(Throughput))

    def timed(self, name: str, rows: int, call: Callable[[], Any]) -> Any:
        """Runs a call and counts its rows and time under `name`."""
        started = time.perf_counter()
        result = call()
        self.work[name].add(rows, time.perf_counter() - started)
        return result


class Replay:
    """One run over the year. `operator` writes, trains and deploys; `application` asks and tells outcomes."""

    def __init__(self, state: Path, year: Year, *, full: bool, log: Callable[[str], None]) -> None:
        self._stack = ExitStack()
        self.operator = self._stack.enter_context(Client(state=state, identity="operator"))
        self._application = self._stack.enter_context(Client(state=state, identity="application"))
        self._pool = self._stack.enter_context(ThreadPoolExecutor(CLIENT_THREADS))
        self._log = log
        self._year = year
        self.flights = year.flights if full else year.flights[_sampled(year.flights["flight_id"])]
        self._questions = _Questions(self.flights)
        self._schedules = dict(iter(year.flights.groupby("local_date")))
        self._landings = Landings(year.flights)
        self._pipelines = feature_pipelines(year, history_until=START + INSTANT)
        self._known_until = FIRST
        self._batch: Future[Any] | None = None
        self.record = Record()
        self.first_dataset: TrainingDataset | None = None
        self.frozen: ModelVersion | None = None

    @property
    def flights_of_the_year(self) -> pd.DataFrame:
        """All flights, sampled or not."""
        return self._year.flights

    def close(self) -> None:
        """Closes clients and threads."""
        self._stack.close()

    # History

    def load_history(self) -> None:
        """Registers everything and writes January and February with `known_at` as it was known then."""
        self.operator.apply(*service.GROUPS, service.view)
        window = Window(FIRST, START + INSTANT)
        for pipeline in (planes_pipeline(self._year), *self._pipelines):
            self.record.timed("history", 0, partial(self._load, pipeline, window))
        self._known_until = window.end

    def _load(self, pipeline: Pipeline, window: Window) -> None:
        run = run_once(pipeline, self.operator, window)
        assert run is not None
        self.record.work["history"].rows += run.rows_out

    def train_first(self) -> None:
        """Evaluates on the last week of February, fits again on both months, and deploys: the frozen model."""
        spine = self._spine()
        dataset = self.record.timed(
            "training dataset",
            len(spine),
            lambda: self.operator.create_training_dataset(
                "january_february", service.VIEW, spine, known_by=True, test_from=START - HELD_OUT
            ),
        )
        self.first_dataset = dataset
        held_out = self.operator.train(
            service.MODEL,
            service.pipeline,
            train=[(dataset, "train")],
            test=[(dataset, "test")],
            description="Until 21 February, evaluated on the week after",
        )
        self._log(f"held-out week: {_shown(held_out.metrics)}")
        self.frozen = self.operator.train(
            service.MODEL, service.pipeline, train=[(dataset, "")], description="January and February"
        )
        self.operator.deploy(service.DEPLOYMENT, service.MODEL, self.frozen.version)

    # Steps

    def run(self, progress: Callable[[datetime, int], None]) -> None:
        """Replays the year; `progress` gets the step's time and the answers so far."""
        for _, steps in itertools.groupby(_steps(), key=lambda now: (now.year, now.month)):
            # In the history of each pipeline a month is a run.
            with ExitStack() as month:
                runs = [month.enter_context(WindowRun(pipeline, self.operator)) for pipeline in self._pipelines]
                for now in steps:
                    self._step(now, runs)
                    if now > START and now.day == 1 and now.hour == 0:
                        self._end_of_month(now)
                    progress(now, self.record.answers)
        if self._batch is not None:
            self._batch.result()

    def _step(self, now: datetime, runs: Sequence[WindowRun]) -> None:
        landed = self._write_features(now + INSTANT, runs)
        telling = self._pool.submit(self._tell_outcomes, landed)
        if now < END:
            self._ask(now)
            if now.hour == UTC_HOUR_OF_EVENING:
                self._score_tomorrow(now)
        telling.result()

    def _write_features(self, until: datetime, runs: Sequence[WindowRun]) -> pd.DataFrame:
        """Runs the feature pipelines of one step; returns the flights that landed."""
        since, self._known_until = self._known_until, until
        if since == until:
            # The first step knows what the history knows.
            return self._landings.between(since, until)
        started = time.perf_counter()
        before = sum(run.record.rows_out for run in runs)
        _all(self._pool.submit(run.step, Window(since, until)) for run in runs)
        rows = sum(run.record.rows_out for run in runs) - before
        self.record.work["feature pipelines"].add(rows, time.perf_counter() - started)
        return self._landings.between(since, until)

    def _tell_outcomes(self, landed: pd.DataFrame) -> None:
        asked = landed[[flight in self.record.prediction_ids for flight in landed["flight_id"]]]
        if not len(asked):
            return
        started = time.perf_counter()
        self._application.record_outcomes(
            values=[bool(v) for v in asked["late"]],
            observed_at=asked["landed_at"].dt.to_pydatetime().tolist(),
            prediction_ids=[self.record.prediction_ids[flight] for flight in asked["flight_id"]],
        )
        self.record.outcomes += len(asked)
        self.record.work["outcomes"].add(len(asked), time.perf_counter() - started)

    def _ask(self, now: datetime) -> None:
        """Each airport asks for its flights that leave in 6 to 12 hours."""
        requests = self._questions.between(now + ASK_FROM, now + ASK_TO)
        started = time.perf_counter()
        _all(self._pool.submit(self._ask_one, ids, columns, now) for ids, columns in requests)
        rows = sum(len(ids) for ids, _ in requests)
        self.record.work["predictions"].add(rows, time.perf_counter() - started)

    def _ask_one(self, flight_ids: list[str], columns: dict[str, list[Any]], now: datetime) -> None:
        started = time.perf_counter()
        answer = self._application.predict(service.DEPLOYMENT, columns, event_time=now)
        self.record.latencies_s.append(time.perf_counter() - started)
        self.record.prediction_ids.update(zip(flight_ids, answer.ids, strict=True))
        self.record.answers += len(answer.ids)

    def _score_tomorrow(self, now: datetime) -> None:
        """The analytical service: writes the next day's schedule and scores all of it, beside the next steps."""
        if self._batch is not None:
            self._batch.result()
        tomorrow = pd.Timestamp(now).tz_convert("America/New_York").date() + timedelta(days=1)
        if tomorrow in self._schedules:
            self._batch = self._pool.submit(self._score, self._schedules[tomorrow], now)

    def _score(self, schedule: pd.DataFrame, now: datetime) -> None:
        columns = ["flight_id", *service.KEYS, *(f.name for f in service.REQUEST_FEATURES)]
        rows = schedule[columns].assign(event_time=schedule["scheduled_departure"])
        started = time.perf_counter()
        self.operator.write("flight_schedule", rows)
        run = self.operator.batch(
            service.DEPLOYMENT,
            "flight_schedule",
            from_event_time=rows["event_time"].min().to_pydatetime(),
            to_event_time=rows["event_time"].max().to_pydatetime() + timedelta(microseconds=1),
            event_time=now,
            sink_table=service.SINK_TABLE,
            run_id=f"evening-{now:%Y-%m-%d}",
        )
        if run.rows != len(rows):
            raise RuntimeError(f"the batch run of {now:%Y-%m-%d} wrote {run.rows} of {len(rows)} flights")
        self.record.work["batch predictions"].add(run.rows, time.perf_counter() - started)

    # The flywheel

    def _end_of_month(self, now: datetime) -> None:
        """Trains a challenger up to seven days before, and has it judged on the seven days."""
        first, frozen = self.first_dataset, self.frozen
        assert first is not None
        assert frozen is not None
        self.record.timed("reingestion wait", 0, self.operator.wait_ingested)
        since = now - JUDGED_ON
        learnt = self._logged(f"until_{since:%Y_%m_%d}", Logged(to_event_time=since, observed_by=now))
        judged = self._logged(
            f"week_to_{now:%Y_%m_%d}", Logged(from_event_time=since, to_event_time=now, observed_by=now)
        )
        challenger = self.record.timed(
            "training",
            first.rows + learnt.rows,
            lambda: self.operator.train(
                service.MODEL,
                service.pipeline,
                train=[(first, ""), (learnt, "")],
                test=[(judged, "")],
                description=f"January to {since:%d %B}",
            ),
        )
        decision = self.operator.judge(
            service.DEPLOYMENT,
            challenger=(service.MODEL, challenger.version),
            dataset=judged,
            metric="log_loss",
            judged_at=now,
            references=[(service.MODEL, frozen.version)],
        )
        self.record.decisions.append(decision)
        if decision.promoted:
            # Waits until the predictor serves the new version: the next step asks it.
            self.operator.deploy(service.DEPLOYMENT, service.MODEL, challenger.version)
        verdict = "promoted" if decision.promoted else "kept back"
        self._log(f"{now:%Y-%m-%d}: version {challenger.version} {verdict} on {decision.rows} flights")

    def _logged(self, name: str, logged: Logged) -> TrainingDataset:
        dataset: TrainingDataset = self.record.timed(
            "logged datasets",
            0,
            lambda: self.operator.create_training_dataset(name, service.VIEW, logged=logged),
        )
        self.record.work["logged datasets"].rows += dataset.rows
        return dataset

    def _spine(self) -> pd.DataFrame:
        """The flights of January and February that had landed, each at the step at which it would be asked for."""
        flights = self.flights[self.flights["landed_at"] < pd.Timestamp(START)]
        asked_at = (flights["scheduled_departure"] - ASK_FROM).dt.floor("6h")
        columns = [*service.KEYS, *(f.name for f in service.REQUEST_FEATURES), "late"]
        return flights[columns].assign(event_time=asked_at, late=flights["late"].astype(bool))


class _Questions:
    """What the airports ask, as plain lists: tables would cost more than the questions."""

    def __init__(self, flights: pd.DataFrame) -> None:
        self._departures = flights["scheduled_departure"]
        self._flight_ids = flights["flight_id"].tolist()
        self._origins = flights["origin"].tolist()
        self._columns = {
            name: flights[name].astype(object).where(flights[name].notna(), None).tolist()
            for name in (*service.KEYS, *(f.name for f in service.REQUEST_FEATURES))
        }

    def between(self, first: datetime, after: datetime) -> list[tuple[list[str], dict[str, list[Any]]]]:
        """Flight ids and request columns of the flights that leave in between, one request per airport."""
        start, end = self._departures.searchsorted([pd.Timestamp(first), pd.Timestamp(after)])
        by_origin: dict[str, list[int]] = defaultdict(list)
        for row in range(start, end):
            by_origin[self._origins[row]].append(row)
        return [
            (
                [self._flight_ids[row] for row in rows],
                {name: [values[row] for row in rows] for name, values in self._columns.items()},
            )
            for rows in by_origin.values()
        ]


def _steps() -> Iterator[datetime]:
    """The times of the steps."""
    now = START
    while now <= OUTCOMES_UNTIL:
        yield now
        now += STEP


def _sampled(flight_ids: pd.Series) -> pd.Series:
    """A fixed pseudo-random choice of flights, the same on every machine."""
    return flight_ids.map(lambda flight: zlib.crc32(flight.encode()) % 1000 < SAMPLED_PER_MILLE)


def _all(futures: Iterable[Future[Any]]) -> None:
    """Waits for all, then raises the first error."""
    running = list(futures)
    wait(running)
    for future in running:
        future.result()


def _shown(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
