"""Tables of: datasets and statistics."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = (
    """CREATE TABLE training_datasets (
         id             text COLLATE "C" PRIMARY KEY,
         name           text COLLATE "C" NOT NULL,
         view_name      text COLLATE "C" NOT NULL,
         view_version   bigint NOT NULL,
         created_at     timestamptz NOT NULL,
         -- What never changes.
         manifest       text NOT NULL,
         -- The files that are needed: the rows while they are stored, and the spine that was sent, or ''.
         content_sha256 text COLLATE "C" NOT NULL,
         spine_sha256   text COLLATE "C" NOT NULL,
         stored         boolean NOT NULL,
         stored_bytes   bigint NOT NULL,
         forgotten_at   timestamptz)""",
    "CREATE INDEX ON training_datasets (created_at DESC, id DESC)",
    "CREATE INDEX ON training_datasets (content_sha256) WHERE stored",
    "CREATE INDEX ON training_datasets (spine_sha256) WHERE forgotten_at IS NULL",
    # One row: rows that were being made when an entity was forgotten must not be stored.
    """CREATE TABLE training_dataset_state (
         one      boolean PRIMARY KEY DEFAULT true CHECK (one),
         erasures bigint NOT NULL)""",
    "INSERT INTO training_dataset_state (erasures) VALUES (0)",
    # Of groups (dataset '') and of datasets (group 0).
    """CREATE TABLE statistics (
         id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
         kind        text COLLATE "C" NOT NULL,
         group_id    bigint NOT NULL,
         dataset_id  text COLLATE "C" NOT NULL,
         commit      bigint NOT NULL,
         -- The split of a dataset, the window of a log.
         selection   text COLLATE "C" NOT NULL,
         content     bytea NOT NULL,
         computed_at timestamptz NOT NULL,
         UNIQUE (kind, group_id, dataset_id, commit, selection))""",
    "CREATE INDEX ON statistics (group_id, kind)",
    "CREATE INDEX ON statistics (dataset_id)",
    # One row: what was computed from rows that were forgotten meanwhile must not be kept.
    """CREATE TABLE statistics_state (
         one      boolean PRIMARY KEY DEFAULT true CHECK (one),
         erasures bigint NOT NULL)""",
    "INSERT INTO statistics_state (erasures) VALUES (0)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("rows are never thrown away by a migration")
