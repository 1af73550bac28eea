"""Who uses what, and how often the registry changed in place."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATEMENTS: tuple[str, ...] = (
    # Each row is held by those who start to use the thing while they say so; views, groups and datasets have rows
    # of their own.
    """CREATE TABLE declared_things (
         kind    smallint NOT NULL,
         name    text COLLATE "C" NOT NULL,
         version bigint NOT NULL,
         PRIMARY KEY (kind, name, version))""",
    # Kinds are numbered as on the wire; a kind without versions has version 0.
    """CREATE TABLE uses (
         user_kind    smallint NOT NULL,
         user_name    text COLLATE "C" NOT NULL,
         user_version bigint NOT NULL,
         used_kind    smallint NOT NULL,
         used_name    text COLLATE "C" NOT NULL,
         used_version bigint NOT NULL,
         since        timestamptz NOT NULL DEFAULT now(),
         PRIMARY KEY (user_kind, user_name, user_version, used_kind, used_name, used_version))""",
    "CREATE INDEX ON uses (used_kind, used_name, used_version)",
    # One row: other processes see by it that what they remember of groups and views may be old.
    """CREATE TABLE registry_state (
         one     boolean PRIMARY KEY DEFAULT true CHECK (one),
         changes bigint NOT NULL)""",
    "INSERT INTO registry_state (changes) VALUES (0)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("rows are never thrown away by a migration")
