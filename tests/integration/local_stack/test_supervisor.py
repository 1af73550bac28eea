"""Programs start in order, are kept running, stop in the opposite order, and never stay behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.local.leftovers import Birth, end_leftovers
from deploy.local.programs import Program, State
from deploy.local.state import ENVIRONMENT_VARIABLE, StackError, StateFolder, write_json
from deploy.local.supervisor import Supervisor

STAND_IN = Path(__file__).with_name("stand_in.py")


def is_alive(pid: int) -> bool:
    """Whether a process goes on; a kill takes a moment, and the number of one that has ended is kept for a while."""
    try:
        process = psutil.Process(pid)
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(timeout=1)
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Stage:
    """A folder with stand-ins in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reports: list[str] = []
        self.pids: set[int] = set()

    def program(self, name: str, *behaviour: str, **options: Any) -> Program:
        async def is_ready() -> bool:
            with contextlib.suppress(FileNotFoundError, ValueError):
                return psutil.pid_exists(int((self.folder / f"{name}.ready").read_text()))
            return False

        async def forget() -> None:
            (self.folder / f"{name}.ready").unlink(missing_ok=True)

        command = [sys.executable, "-I", "-S", str(STAND_IN), name, str(self.folder), *behaviour]
        return Program(
            name=name,
            command=lambda: command,
            is_ready=is_ready,
            before_start=forget,
            environment={"GREETING": "hello", "PATH": os.environ["PATH"]},
            **options,
        )

    def supervisor(self, *programs: Program, start_timeout_s: float = 30) -> Supervisor:
        def remember(statuses: Sequence[Any]) -> None:
            self.pids |= {status.pid for status in statuses if status.pid}

        return Supervisor(programs, self.folder, self.reports.append, remember, start_timeout_s=start_timeout_s)

    @property
    def events(self) -> list[str]:
        return (self.folder / "events").read_text().splitlines()

    def assert_nothing_is_left(self) -> None:
        for file in self.folder.glob("*.child"):
            self.pids.add(int(file.read_text()))
        assert self.pids
        assert [pid for pid in self.pids if is_alive(pid)] == []


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@contextlib.asynccontextmanager
async def running(supervisor: Supervisor) -> AsyncIterator[Supervisor]:
    async with asyncio.timeout(60):
        await supervisor.start()
        try:
            yield supervisor
        finally:
            await supervisor.stop()


async def test_programs_start_in_order_and_stop_in_the_opposite_one(stage: Stage) -> None:
    database = stage.program("database")
    first = stage.program("first", needs=["database"], waits_for=["database"])
    second = stage.program("second", needs=["database", "first"], waits_for=["first"])
    async with running(stage.supervisor(database, first, second)) as supervisor:
        assert {status.state for status in supervisor.statuses} == {State.READY}
        assert stage.events == ["started database", "started first", "started second"]
    assert stage.events[3:] == ["stopped second", "stopped first", "stopped database"]
    assert {status.state for status in supervisor.statuses} == {State.STOPPED}
    stage.assert_nothing_is_left()


async def test_a_program_gets_its_own_environment_and_log(stage: Stage) -> None:
    async with running(stage.supervisor(stage.program("a"))):
        assert (stage.folder / "a.log").read_text() == "a runs with hello\n"


async def test_a_killed_program_is_started_again_and_the_others_are_left_alone(stage: Stage) -> None:
    programs = stage.program("a"), stage.program("b", needs=["a"], waits_for=["a"])
    async with running(stage.supervisor(*programs)) as supervisor:
        other = supervisor.status("b").pid
        for number in range(1, 4):
            pid = supervisor.status("a").pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await supervisor.wait_ready("a", other_than=pid)
            assert supervisor.status("a").restarts == number
        assert (supervisor.status("b").pid, supervisor.status("b").restarts) == (other, 0)
    ends = [line for line in stage.reports if "killed by SIGKILL" in line]
    # Each time twice as patient.
    assert [line.rsplit(" in ", 1)[1] for line in ends] == ["0.1 s", "0.2 s", "0.4 s"]
    stage.assert_nothing_is_left()


async def test_a_program_is_replaced_by_a_successor_that_is_ready_before_it_ends(stage: Stage) -> None:
    handed: list[tuple[bool, bool]] = []
    pids: list[int] = []

    async def hand_over(ready: bool) -> None:
        handed.append((ready, is_alive(pids[0])))

    program = stage.program("a", hand_over=hand_over)
    async with running(stage.supervisor(program)) as supervisor:
        former = supervisor.status("a")
        assert former.pid is not None
        pids.append(former.pid)
        supervisor.replace("a")
        successor = await supervisor.wait_ready("a", other_than=former.pid)
        assert is_alive(successor)
        assert not is_alive(former.pid)
        assert handed == [(True, True)]
        assert supervisor.status("a").restarts == 0
        # The successor is kept running as its predecessor was.
        os.kill(successor, signal.SIGKILL)
        await supervisor.wait_ready("a", other_than=successor)
    assert stage.events == ["started a", "started a", "stopped a", "started a", "stopped a"]
    stage.assert_nothing_is_left()


async def test_a_successor_that_ends_before_it_is_ready_changes_nothing(stage: Stage) -> None:
    given_up = asyncio.Event()
    succession = [False]
    first = stage.program("a")

    async def hand_over(ready: bool) -> None:
        succession[0] = ready
        given_up.set()

    async def prepare() -> None:
        succession[0] = (stage.folder / "a.ready").exists()

    async def is_ready() -> bool:
        return not succession[0] and await first.is_ready()

    program = replace(
        first,
        command=lambda: [*first.command(), *(["exit=1"] if succession[0] else [])],
        before_start=prepare,
        is_ready=is_ready,
        hand_over=hand_over,
    )
    async with running(stage.supervisor(program)) as supervisor:
        pid = supervisor.status("a").pid
        supervisor.replace("a")
        await given_up.wait()
        assert supervisor.status("a").pid == pid
        assert pid is not None
        assert is_alive(pid)
        assert not succession[0]
        while not stage.reports:
            await asyncio.sleep(0.01)
    assert stage.reports == ["the new process of a did not get ready; the former one goes on"]
    stage.assert_nothing_is_left()


async def test_a_program_whose_processes_cannot_overlap_is_not_replaced(stage: Stage) -> None:
    async with running(stage.supervisor(stage.program("a"))) as supervisor:
        supervisor.replace("a")
    assert stage.events == ["started a", "stopped a"]


async def test_what_a_killed_program_had_started_ends_with_it(stage: Stage) -> None:
    async with running(stage.supervisor(stage.program("a", "parent"))) as supervisor:
        child = int((stage.folder / "a.child").read_text())
        pid = supervisor.status("a").pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await supervisor.wait_ready("a", other_than=pid)
        assert not is_alive(child)


async def test_a_program_that_does_not_stop_is_killed(stage: Stage) -> None:
    stubborn = replace(stage.program("a", "stubborn", "parent"), stop_timeout_s=0.2)
    async with running(stage.supervisor(stubborn, stage.program("b"))):
        pass
    assert stage.reports == ["a did not stop in time and is killed"]
    stage.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (["exit=2"], r"(?s)bad ended while it was starting \(exit code 2\).*bad runs with hello"),
        (["exit=7"], r"bad ended while it was starting \(exit code 7\)"),
    ],
)
async def test_a_program_that_cannot_run_ends_the_start_with_its_last_words(
    stage: Stage, behaviour: list[str], message: str
) -> None:
    supervisor = stage.supervisor(stage.program("good"), stage.program("bad", *behaviour))
    with pytest.raises(StackError, match=message):
        await supervisor.start()
    assert {status.state for status in supervisor.statuses} == {State.STOPPED}
    # Wrong settings cannot heal; for the rest there are a few tries.
    assert stage.events.count("started bad") == (1 if behaviour == ["exit=2"] else 5)
    stage.assert_nothing_is_left()


async def test_a_command_that_does_not_exist_is_said(stage: Stage) -> None:
    program = replace(stage.program("a"), command=lambda: ["/does/not/exist"])
    with pytest.raises(StackError, match="cannot run /does/not/exist"):
        await stage.supervisor(program).start()


async def test_a_program_that_never_gets_ready_ends_the_start(stage: Stage) -> None:
    supervisor = stage.supervisor(stage.program("good"), stage.program("slow", "silent"), start_timeout_s=0.5)
    with pytest.raises(StackError, match=r"slow did not get ready within 0.5 s; the end of its log:\n  slow runs"):
        await supervisor.start()
    stage.assert_nothing_is_left()


async def test_an_interrupted_start_leaves_nothing(stage: Stage) -> None:
    supervisor = stage.supervisor(stage.program("good"), stage.program("slow", "silent"))
    start = asyncio.create_task(supervisor.start())
    async with asyncio.timeout(30):
        await supervisor.wait_ready("good")
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
    stage.assert_nothing_is_left()


async def test_a_second_interruption_kills_at_once(stage: Stage) -> None:
    supervisor = stage.supervisor(stage.program("a", "stubborn"))
    await supervisor.start()
    stop = asyncio.create_task(supervisor.stop())
    async with asyncio.timeout(5):
        # Its only program ignores being asked, so that it waits now.
        await asyncio.wait([stop], timeout=0.1)
        assert not stop.done()
        stop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stop
    stage.assert_nothing_is_left()


async def test_a_check_that_fails_unexpectedly_is_not_hidden(stage: Stage) -> None:
    async def broken() -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await stage.supervisor(replace(stage.program("a"), is_ready=broken)).start()
    stage.assert_nothing_is_left()


def test_programs_die_with_their_supervisor(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from tests.integration.local_stack.test_supervisor import Stage
async def main():
    stage = Stage(Path({str(tmp_path)!r}))
    supervisor = stage.supervisor(stage.program("a"), stage.program("b", "stubborn"))
    await supervisor.start()
    print(*stage.pids, flush=True)
    await supervisor.run()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        pids = [int(word) for word in supervisor.stdout.readline().split()]
        assert len(pids) == 2
        processes = [psutil.Process(pid) for pid in pids]
        supervisor.kill()
    assert psutil.wait_procs(processes, timeout=10)[1] == []


def sleeper(marker: Path, born: str = "") -> subprocess.Popen[bytes]:
    code = "import signal, subprocess, sys\n" + born + "print(1, flush=True)\nsignal.pause()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={ENVIRONMENT_VARIABLE: str(marker)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"1\n"
    process.stdout.close()
    return process


def test_what_an_earlier_run_left_is_ended_and_nothing_else(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    with_child = sleeper(tmp_path, "subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n")
    [child] = psutil.Process(with_child.pid).children()
    recorded, reused, foreign = sleeper(tmp_path), sleeper(tmp_path), sleeper(tmp_path / "other")
    programs = {
        "with_child": Birth.of(with_child.pid),
        "recorded": Birth.of(recorded.pid),
        # Somebody else got the number of a process that was born earlier.
        "reused": Birth(foreign.pid, Birth.of(foreign.pid).created - 3600),
        "gone": Birth(2**22 - 1, 0.0),
    }
    entries = {name: {"pid": birth.pid, "created": birth.created} for name, birth in programs.items()}
    write_json(state.run, {"programs": {**entries, "waiting": {"pid": None, "created": None}}})
    try:
        with_child.kill()
        with_child.wait()
        assert end_leftovers(state) == 2
        recorded.wait(5)
        assert psutil.wait_procs([child], timeout=5)[1] == []
        assert (reused.poll(), foreign.poll()) == (None, None)
    finally:
        for process in (recorded, reused, foreign):
            process.kill()
            process.wait()


@pytest.mark.parametrize("content", ["", "{}", '{"programs": 5}', '{"programs": {"a": {"pid": "x"}, "b": 1}}'])
def test_a_damaged_record_does_not_stop_a_start(tmp_path: Path, content: str) -> None:
    state = StateFolder(tmp_path)
    state.run.write_text(content)
    assert end_leftovers(state) == 0
