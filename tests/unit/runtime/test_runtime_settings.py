"""Settings from the environment: all faults at once, secrets in files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from pydantic import ValidationError
from sqlalchemy import make_url

from services.logger.config import LoggerSettings
from services.runtime.settings import (
    ADDRESSES_MAX,
    SOCKET_PATH_BYTES_MAX,
    DatabaseSettings,
    ServiceSettings,
    SocketAddresses,
    load_settings,
)

ROOT = Path(__file__).parents[3]


def start(**settings: str) -> subprocess.CompletedProcess[str]:
    """Reads the logger's settings in a process of their own."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("FORESIGHT_")}
    environment = plain | {f"FORESIGHT_LOGGER_{name}": value for name, value in settings.items()}
    program = "from services.logger.config import *; from services.runtime.settings import *; "
    command = [sys.executable, "-c", program + "load_settings(LoggerSettings)"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_all_faults_are_reported_together_and_by_the_name_of_the_setting() -> None:
    done = start(
        LISTEN="0.0.0.0:80",
        METRICS_PORT="70000",
        LOG_LEVEL="loud",
        STOP_GRACE_S="-1",
        DATABASE__URL="postgresql://role:secret@host/database",
    )
    assert done.returncode == 2
    names = [line.split(":")[0].removeprefix("setting FORESIGHT_LOGGER_") for line in done.stderr.splitlines()]
    assert sorted(names) == ["DATABASE__URL", "LISTEN", "LOG_LEVEL", "METRICS_PORT", "STOP_GRACE_S"]
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_settings_are_faults_as_well() -> None:
    done = start()
    assert done.returncode == 2
    assert "FORESIGHT_LOGGER_LISTEN: Field required" in done.stderr
    assert "FORESIGHT_LOGGER_DATABASE: Field required" in done.stderr


def test_a_setting_that_is_no_json_is_a_fault_without_a_traceback() -> None:
    done = start(LISTEN="unix:/s", DATABASE="{broken")
    assert done.returncode == 2
    assert "database" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "address", ["localhost:80", "unix:relative", "unix://host/s", "tcp:/s", "unix:/" + "a" * SOCKET_PATH_BYTES_MAX]
)
def test_services_listen_on_short_absolute_socket_paths_only(address: str) -> None:
    if address == "unix://host/s":
        # An absolute path with a needless slash: what gRPC makes of it is the same path.
        assert ServiceSettings(listen=address).listen == address
        return
    with pytest.raises(ValidationError):
        ServiceSettings(listen=address)


def test_settings_do_not_change() -> None:
    settings = LoggerSettings(listen="unix:/s", database=DatabaseSettings(url="postgresql://a@h/d"))
    with pytest.raises(ValidationError):
        settings.listen = "unix:/t"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///file",
        "mysql://role@host/database",
        "postgresql://role@host",
        "postgresql://role@host/",
        "postgresql://role:secret@host/database",
        "postgresql://role@host/database?password=secret",
        "database",
        "",
    ],
)
def test_a_database_is_a_postgresql_url_without_a_password(url: str) -> None:
    with pytest.raises(ValidationError):
        DatabaseSettings(url=url)


@pytest.mark.parametrize("password", ["plain", "a b/c@d:e?f#g%h&i", "пароль", "with newline\n"])
def test_the_password_comes_from_its_file_whatever_is_in_it(tmp_path: Path, password: str) -> None:
    file = tmp_path / "password"
    file.write_text(password)
    url = "postgresql://role@db.example:5433/data?host=/folder/of the/socket&sslmode=require"
    settings = DatabaseSettings(url=url, password_file=file)
    full = make_url(settings.with_password(connect_timeout="5"))
    assert full.password == password.strip()
    assert (full.username, full.host, full.port, full.database) == ("role", "db.example", 5433, "data")
    assert full.query == {"host": "/folder/of the/socket", "sslmode": "require", "connect_timeout": "5"}
    assert password.strip() in unquote(settings.with_password())
    assert password.strip() not in repr(settings) + str(settings.url)


def test_without_a_password_file_the_url_stays_as_it_is() -> None:
    assert DatabaseSettings(url="postgresql://role@host/data").with_password() == "postgresql://role@host/data"


class Callers(ServiceSettings):
    """A service that calls another one."""

    others: SocketAddresses


@pytest.mark.parametrize(
    ("given", "addresses"),
    [
        ("unix:/a", ("unix:/a",)),
        ("unix:/a,unix:/b", ("unix:/a", "unix:/b")),
        (",".join(f"unix:/{n}" for n in range(ADDRESSES_MAX)), tuple(f"unix:/{n}" for n in range(ADDRESSES_MAX))),
    ],
)
def test_a_service_in_several_processes_has_an_address_for_each(
    given: str, addresses: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN", "unix:/s")
    monkeypatch.setenv("OTHERS", given)
    assert load_settings(Callers).others == addresses


@pytest.mark.parametrize(
    "given",
    ["", "unix:/a,", "unix:/a,unix:/a", "unix:/a, unix:/b", ",".join(f"unix:/{n}" for n in range(ADDRESSES_MAX + 1))],
)
def test_addresses_are_few_different_and_all_right(given: str) -> None:
    with pytest.raises(ValidationError):
        Callers.model_validate({"listen": "unix:/s", "others": given})
