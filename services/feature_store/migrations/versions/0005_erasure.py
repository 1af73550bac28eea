"""Erasures: how far each one is, and what it removed."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = (
    # One row.
    """CREATE TABLE erasure_state (
         one  boolean PRIMARY KEY DEFAULT true CHECK (one),
         salt bytea NOT NULL)""",
    "INSERT INTO erasure_state (salt) VALUES (uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))",
    """CREATE TABLE erasures (
         -- Counts from 1 in the order in which they became visible.
         number       bigint PRIMARY KEY,
         request_id   text COLLATE "C" NOT NULL UNIQUE,
         -- JSON: names and types of the entity's keys.
         names        text NOT NULL,
         -- JSON: the keys with their values; NULL once all is done.
         entity       text,
         -- Salted hash of the entity.
         digest       bytea NOT NULL,
         requested_at timestamptz NOT NULL,
         finished_at  timestamptz,
         -- When somebody worked on it last.
         touched_at   timestamptz NOT NULL,
         -- Rows of this commit and those before it are removed.
         commit       bigint NOT NULL,
         step         smallint NOT NULL,
         -- The log is done up to here.
         log_position bigint NOT NULL DEFAULT 0,
         predictions  bigint NOT NULL DEFAULT 0)""",
    "CREATE INDEX ON erasures (number) WHERE finished_at IS NULL",
    """CREATE TABLE erased_rows (
         number       bigint NOT NULL REFERENCES erasures (number),
         group_id     bigint NOT NULL REFERENCES feature_groups (id),
         rows         bigint NOT NULL,
         -- The first commit that lost a row.
         first_commit bigint NOT NULL,
         PRIMARY KEY (number, group_id))""",
    """CREATE TABLE erased_datasets (
         number     bigint NOT NULL REFERENCES erasures (number),
         dataset_id text COLLATE "C" NOT NULL,
         name       text NOT NULL,
         PRIMARY KEY (number, dataset_id))""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("rows are never thrown away by a migration")
