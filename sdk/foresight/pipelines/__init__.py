"""Feature pipelines: functions that keep a feature group filled, by schedule or from a stream of messages.

    from foresight.pipelines import NatsSource, Window, pipeline, stream

    @pipeline(group="weather", schedule="0 * * * *", delay=timedelta(minutes=5))
    def weather(window: Window) -> pd.DataFrame:
        return observations(window.start, window.end)

    @stream(group="landings", source=NatsSource(subject="landings", stream="FLIGHTS"))
    def landings(messages: list[Message]) -> list[dict[str, Any]]:
        return [json.loads(message.data) for message in messages]

How far a pipeline has come is stored with the rows, in the same transaction. So whatever fails or is killed is
repeated from there, and no row is written twice: `docs/pipelines.md` says what follows from it. `run_once` runs one by
hand, `backfill` a time range, and `foresight pipelines worker MODULE` all that a module declares, for ever.
"""

from foresight.pipelines.declarations import OnError, Pipeline, Stream, declared, pipeline, stream
from foresight.pipelines.jetstream import NatsSource
from foresight.pipelines.jobs import JobsDatabase
from foresight.pipelines.once import run_once
from foresight.pipelines.runs import Run
from foresight.pipelines.sources import Message, Source, SourceError, Subscription
from foresight.pipelines.streaming import TooManySkipped, run_stream
from foresight.pipelines.windowed import WindowRun, backfill
from foresight.pipelines.windows import Schedule, Window
from foresight.pipelines.worker import Worker

__all__ = [
    "JobsDatabase",
    "Message",
    "NatsSource",
    "OnError",
    "Pipeline",
    "Run",
    "Schedule",
    "Source",
    "SourceError",
    "Stream",
    "Subscription",
    "TooManySkipped",
    "Window",
    "WindowRun",
    "Worker",
    "backfill",
    "declared",
    "pipeline",
    "run_once",
    "run_stream",
    "stream",
]
