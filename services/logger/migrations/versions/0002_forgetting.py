"""Removing predictions: what was removed from records, and salted hashes of what must not come back."""

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    """
    ALTER TABLE log_state
        -- Changes whenever `forgotten_keys` does.
        ADD COLUMN forgettings bigint NOT NULL DEFAULT 0,
        ADD COLUMN salt bytea NOT NULL DEFAULT uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
    """,
    """
    -- Rows that were removed from the record, counted as they were when it arrived; NULL: none.
    ALTER TABLE records ADD COLUMN forgotten smallint[]
    """,
    """
    -- Salted hashes of each entity key with its value, for claims by keys.
    ALTER TABLE claims ADD COLUMN keys bytea[]
    """,
    """
    CREATE TABLE forgettings (
        request_id text COLLATE "C" PRIMARY KEY,
        -- Salted hash of what was asked for.
        content bytea NOT NULL,
        -- The log's last position when it began.
        until bigint NOT NULL,
        predictions bigint NOT NULL DEFAULT 0,
        outcomes bigint NOT NULL DEFAULT 0,
        expires_at timestamptz NOT NULL
    )
    """,
    """
    -- What arriving predictions are compared with: a salted hash over the values of the keys `names`.
    CREATE TABLE forgotten_keys (
        request_id text COLLATE "C" NOT NULL REFERENCES forgettings (request_id) ON DELETE CASCADE,
        selection smallint NOT NULL,
        views text[] NOT NULL,
        view_versions integer[] NOT NULL,
        names text[] NOT NULL,
        digest bytea NOT NULL,
        -- Microseconds since the epoch.
        served_before bigint NOT NULL,
        PRIMARY KEY (request_id, selection)
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("what was forgotten cannot be brought back")
