"""The supervisor as a process of its own: what `foresight up --detach` and `LocalStack` start."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from deploy.local.serving import serve
from deploy.local.stack import StackOptions
from deploy.local.state import StackError, StateFolder

READY = "ready"


def main() -> int:
    """Runs a stack; tells over `--ready-fd` that it is ready, or why it is not."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--gateway-port", type=int, required=True)
    parser.add_argument("--metrics-port", type=int, required=True)
    parser.add_argument("--transform-module", action="append", default=[])
    parser.add_argument("--pipeline-module", action="append", default=[])
    parser.add_argument("--predictors", type=int, default=1)
    parser.add_argument("--feature-stores", type=int, default=1)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int)
    arguments = parser.parse_args()
    options = StackOptions(
        state=StateFolder(arguments.state.absolute()),
        gateway_port=arguments.gateway_port,
        metrics_port=arguments.metrics_port,
        transform_modules=tuple(arguments.transform_module),
        pipeline_modules=tuple(arguments.pipeline_module),
        predictors=arguments.predictors,
        feature_stores=arguments.feature_stores,
    )

    def tell(text: str) -> None:
        os.write(arguments.ready_fd, text.encode())
        os.close(arguments.ready_fd)

    try:
        asyncio.run(serve(options, report, lambda: tell(READY), arguments.lifeline_fd))
    except StackError as error:
        report(str(error))
        tell(str(error))
        return 1
    return 0


def report(text: str) -> None:
    """One line of the supervisor's log."""
    sys.stderr.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ} {text}\n")


if __name__ == "__main__":
    sys.exit(main())
