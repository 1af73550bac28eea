"""Pipelines that ran, and the history of their runs. Positions are with the commits, in 0003."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = (
    'CREATE TABLE pipelines (name text COLLATE "C" PRIMARY KEY)',
    """CREATE TABLE pipeline_runs (
         id              text COLLATE "C" PRIMARY KEY,
         -- Orders runs as they began.
         number          bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
         pipeline        text COLLATE "C" NOT NULL REFERENCES pipelines (name),
         trigger         text NOT NULL,
         state           smallint NOT NULL,
         started_at      timestamptz NOT NULL,
         finished_at     timestamptz,
         rows_in         bigint NOT NULL DEFAULT 0,
         rows_out        bigint NOT NULL DEFAULT 0,
         skipped         bigint NOT NULL DEFAULT 0,
         from_event_time timestamptz,
         to_event_time   timestamptz,
         commit          bigint NOT NULL DEFAULT 0,
         error           text NOT NULL DEFAULT '')""",
    "CREATE INDEX ON pipeline_runs (pipeline, number)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("rows are never thrown away by a migration")
