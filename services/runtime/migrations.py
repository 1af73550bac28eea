"""What the `env.py` of every service's migrations runs: the scripts, in the transaction that the service opened."""

from __future__ import annotations

from alembic import context


def run_migrations() -> None:
    """Runs the pending revisions; the version table lives in the service's own schema."""
    attributes = context.config.attributes
    context.configure(connection=attributes["connection"], version_table_schema=attributes["schema"])
    with context.begin_transaction():
        context.run_migrations()
