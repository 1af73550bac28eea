"""Which records belong to named requests, for as long as one may repeat another."""

from alembic import op

revision = "0003"
down_revision = "0002"

STATEMENTS = (
    """
    CREATE TABLE named_requests (
        -- First prediction of the record.
        prediction_id uuid PRIMARY KEY,
        -- Digest of caller, deployment and name.
        name bytea NOT NULL,
        incarnation_id bigint NOT NULL,
        -- Microseconds since the epoch.
        served_at bigint NOT NULL
    )
    """,
    "CREATE INDEX named_requests_name ON named_requests (name)",
    "CREATE INDEX named_requests_served_at ON named_requests (served_at)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE named_requests")
