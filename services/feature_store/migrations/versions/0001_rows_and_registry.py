"""Registry, commit log, cursor of log reingestion and manifests of training datasets.

Each group version has its own table `rows_<group id>`, made when it is registered.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    for statement in (
        """CREATE TABLE feature_groups (
             id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
             name       text COLLATE "C" NOT NULL,
             version    bigint NOT NULL,
             spec       text NOT NULL,
             created_at timestamptz NOT NULL,
             UNIQUE (name, version))""",
        """CREATE TABLE feature_views (
             id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
             name       text COLLATE "C" NOT NULL,
             version    bigint NOT NULL,
             spec       text NOT NULL,
             created_at timestamptz NOT NULL,
             UNIQUE (name, version))""",
        # One row: whoever publishes locks it, so that numbers appear in order.
        """CREATE TABLE commit_state (
             one         boolean PRIMARY KEY DEFAULT true CHECK (one),
             last_commit bigint NOT NULL,
             last_time   timestamptz NOT NULL,
             write_bound bigint NOT NULL)""",
        "INSERT INTO commit_state (last_commit, last_time, write_bound) VALUES (0, '-infinity', 0)",
        "CREATE SEQUENCE write_numbers",
        """CREATE TABLE commits (
             commit       bigint PRIMARY KEY,
             write        bigint NOT NULL UNIQUE,
             -- The highest write number among this commit and all before it.
             write_bound  bigint NOT NULL,
             group_id     bigint NOT NULL REFERENCES feature_groups (id),
             committed_at timestamptz NOT NULL,
             rows         bigint NOT NULL,
             -- Of the commit's rows.
             latest_event_time timestamptz NOT NULL,
             write_id     text COLLATE "C" UNIQUE,
             content      text)""",
        "CREATE INDEX ON commits (group_id, commit) INCLUDE (latest_event_time)",
        """CREATE TABLE log_cursor (
             one         boolean PRIMARY KEY DEFAULT true CHECK (one),
             cursor      bigint NOT NULL,
             predictions bigint NOT NULL,
             outcomes    bigint NOT NULL)""",
        "INSERT INTO log_cursor (cursor, predictions, outcomes) VALUES (0, 0, 0)",
        """CREATE TABLE training_datasets (
             id         text COLLATE "C" PRIMARY KEY,
             name       text NOT NULL,
             manifest   text NOT NULL,
             created_at timestamptz NOT NULL)""",
    ):
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("rows are never thrown away by a migration")
