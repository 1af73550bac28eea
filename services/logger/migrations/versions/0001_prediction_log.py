"""The prediction log, its outcomes and its ledger."""

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = (
    """
    -- One row; whoever writes locks it first, so writers take turns and positions become visible in order.
    CREATE TABLE log_state (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        head bigint NOT NULL,
        held bigint NOT NULL CHECK (held >= 0)
    )
    """,
    """
    INSERT INTO log_state (head, held) VALUES (0, 0)
    """,
    """
    CREATE TABLE incarnations (
        incarnation_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        replica text NOT NULL,
        incarnation uuid NOT NULL,
        -- Sequence numbers as sets of ranges: as a rule one range each.
        logged int8multirange NOT NULL DEFAULT '{}',
        quarantined int8multirange NOT NULL DEFAULT '{}',
        duplicates bigint NOT NULL DEFAULT 0,
        first_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        UNIQUE (replica, incarnation)
    ) WITH (fillfactor = 50)
    """,
    """
    -- Every entry of the log, a record or an outcome, has a position of its own.
    CREATE TABLE records (
        position bigint PRIMARY KEY,
        -- No foreign keys here and below: checking them would cost a third of an append.
        incarnation_id bigint NOT NULL,
        first_sequence bigint NOT NULL,
        deployment text NOT NULL,
        view text NOT NULL,
        view_version integer NOT NULL,
        -- Microseconds since the epoch.
        event_time bigint NOT NULL,
        record bytea NOT NULL
    )
    """,
    """
    CREATE TABLE predictions (
        prediction_id uuid PRIMARY KEY,
        position bigint NOT NULL,
        record_row smallint NOT NULL,
        -- Digest of deployment, entity keys and event time.
        target bytea NOT NULL
    )
    """,
    """
    CREATE INDEX predictions_target ON predictions (target)
    """,
    """
    CREATE TABLE outcomes (
        prediction_id uuid NOT NULL,
        revision bigint NOT NULL,
        position bigint NOT NULL UNIQUE,
        type text NOT NULL,
        value bytea NOT NULL,
        -- Microseconds since the epoch.
        observed_at bigint NOT NULL,
        PRIMARY KEY (prediction_id, revision)
    )
    """,
    """
    -- Outcomes as they were claimed: by id until the prediction arrives, by keys for good.
    CREATE TABLE claims (
        target bytea NOT NULL,
        revision bigint NOT NULL,
        type text NOT NULL,
        value bytea NOT NULL,
        observed_at bigint NOT NULL,
        matched boolean NOT NULL,
        PRIMARY KEY (target, revision)
    )
    """,
    """
    CREATE TABLE quarantined_ranges (
        incarnation_id bigint NOT NULL,
        first_sequence bigint NOT NULL,
        last_sequence bigint NOT NULL,
        reason text NOT NULL,
        reported_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (incarnation_id, first_sequence, last_sequence)
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE quarantined_ranges, claims, outcomes, predictions, records, incarnations, log_state")
