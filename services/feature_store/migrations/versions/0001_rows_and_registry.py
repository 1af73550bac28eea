"""Registry, commit log, and cursor of log reingestion.

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
             created_at timestamptz NOT NULL,
             -- Changes with every change of the row.
             etag       text COLLATE "C" NOT NULL,
             -- What the version is; never changes but for features that are added with a default.
             spec       text NOT NULL,
             -- What people say about it; changes in place.
             about      text NOT NULL,
             -- What a search looks at, in one case.
             searched   text COLLATE "C" NOT NULL,
             -- The row stays, so that its version is never given out again.
             dropped    boolean NOT NULL DEFAULT false,
             -- The commit, without rows, in whose place among the others it was dropped.
             dropped_by bigint,
             UNIQUE (name, version))""",
        """CREATE TABLE feature_views (
             id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
             name       text COLLATE "C" NOT NULL,
             version    bigint NOT NULL,
             created_at timestamptz NOT NULL,
             -- Changes with every change of the row.
             etag       text COLLATE "C" NOT NULL,
             -- What the version is; never changes but for features that are added with a default.
             spec       text NOT NULL,
             -- What people say about it; changes in place.
             about      text NOT NULL,
             -- What a search looks at, in one case.
             searched   text COLLATE "C" NOT NULL,
             -- The row stays, so that its version is never given out again.
             dropped    boolean NOT NULL DEFAULT false,
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
        "CREATE INDEX ON commits (committed_at)",
        """CREATE TABLE log_cursor (
             one         boolean PRIMARY KEY DEFAULT true CHECK (one),
             cursor      bigint NOT NULL,
             predictions bigint NOT NULL,
             outcomes    bigint NOT NULL)""",
        "INSERT INTO log_cursor (cursor, predictions, outcomes) VALUES (0, 0, 0)",
    ):
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("rows are never thrown away by a migration")
