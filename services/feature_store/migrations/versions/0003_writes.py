"""What commits know of where their rows came from and how good they were; rows kept apart; positions of pipelines."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = (
    """ALTER TABLE commits
         -- What made the rows; NULL: nobody said.
         ADD COLUMN source text COLLATE "C",
         -- Whether the writer said when the rows were known.
         ADD COLUMN known_at_asserted boolean NOT NULL DEFAULT false,
         ADD COLUMN quarantined_rows bigint NOT NULL DEFAULT 0,
         -- JSON: the names of expectations that held, and those that were broken, with counts and samples; NULL: the
         -- group had none.
         ADD COLUMN expectations text""",
    "CREATE INDEX ON commits (source) WHERE source IS NOT NULL",
    # Pieces of the rows that writes kept apart; like the rows of a group they are there for readers once a commit has
    # their write number.
    """CREATE TABLE quarantine (
         write    bigint NOT NULL,
         piece    bigint NOT NULL,
         group_id bigint NOT NULL REFERENCES feature_groups (id),
         rows     bigint NOT NULL,
         -- An Arrow IPC stream: the columns as they were sent, with the group's types, and `broken`.
         arrow    bytea NOT NULL,
         PRIMARY KEY (write, piece))""",
    "CREATE INDEX ON quarantine (group_id, write)",
    """CREATE TABLE pipeline_positions (
         pipeline text COLLATE "C" PRIMARY KEY,
         position text NOT NULL,
         -- The last commit that the pipeline wrote; 0: none.
         commit   bigint NOT NULL,
         moved_at timestamptz NOT NULL)""",
    # Writes without rows, which moved a position only.
    """CREATE TABLE empty_writes (
         write_id   text COLLATE "C" PRIMARY KEY,
         group_id   bigint NOT NULL REFERENCES feature_groups (id),
         content    text NOT NULL,
         written_at timestamptz NOT NULL)""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("rows are never thrown away by a migration")
