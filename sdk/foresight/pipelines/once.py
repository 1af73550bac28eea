"""Running a pipeline by hand: no worker, no jobs database."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from foresight.pipelines.declarations import Pipeline, Stream
from foresight.pipelines.runs import Store
from foresight.pipelines.streaming import run_stream
from foresight.pipelines.windowed import catch_up, run_window, utc_now
from foresight.pipelines.windows import Window
from foresight.values import InvalidValue
from foresight.values.pipelines import PipelineRun, Trigger

IDLE_S = 2.0


def run_once(
    pipeline: Pipeline | Stream,
    client: Store,
    window: Window | None = None,
    *,
    now: datetime | None = None,
    idle_s: float = IDLE_S,
) -> PipelineRun | None:
    """Runs a pipeline once, from where it is, and answers the run; None when nothing was due.

    One over windows runs what is due by `now` (default: the present; at most 100 windows), or just `window`, which
    begins at the pipeline's position or was done before. A stream runs until its source ends, or has been silent for
    `idle_s` seconds. Raises what the function raises, SourceError, ForesightError, InvalidValue.
    """
    if isinstance(pipeline, Stream):
        if window is not None:
            raise InvalidValue("window", f"is not for {pipeline.name}, which is a stream")
        return _in_own_loop(pipeline, client, idle_s)
    if window is not None:
        return run_window(pipeline, client, window)
    return catch_up(pipeline, client, now or utc_now(), Trigger.MANUAL)


def _in_own_loop(stream: Stream, client: Store, idle_s: float) -> PipelineRun:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(run_stream(stream, client, idle_s=idle_s))
    # A notebook has a loop of its own, which this call holds up.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(run_stream(stream, client, idle_s=idle_s))).result()
