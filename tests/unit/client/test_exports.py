"""What a data scientist imports is all there, and costs little."""

import subprocess
import sys

import foresight.client


def test_every_exported_name_exists_and_is_listed_once() -> None:
    names = foresight.client.__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(foresight.client, name) for name in names)


def test_every_public_error_is_exported() -> None:
    kinds = {value for value in vars(foresight.client.errors).values() if isinstance(value, type)}
    errors = {kind.__name__ for kind in kinds if issubclass(kind, foresight.client.ForesightError)}
    assert errors <= set(foresight.client.__all__)


def test_importing_the_client_imports_no_dataframe_or_learning_library() -> None:
    code = "import sys, foresight.client; print([m for m in ('pandas', 'polars', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
