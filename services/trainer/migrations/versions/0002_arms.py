"""Deployments serve several versions side by side."""

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    """
    CREATE TABLE deployment_arms (
        deployment text NOT NULL REFERENCES deployments ON DELETE CASCADE,
        -- From 0; the first one stands for the deployment.
        place integer NOT NULL CHECK (place >= 0),
        name text NOT NULL,
        model text NOT NULL,
        version integer NOT NULL,
        weight integer NOT NULL CHECK (weight >= 0),
        shadow boolean NOT NULL,
        PRIMARY KEY (deployment, place),
        UNIQUE (deployment, name),
        FOREIGN KEY (model, version) REFERENCES model_versions
    )
    """,
    """
    INSERT INTO deployment_arms (deployment, place, name, model, version, weight, shadow)
    SELECT name, 0, 'primary', model, version, 1, false FROM deployments
    """,
    "ALTER TABLE deployments ADD COLUMN salt text",
    "UPDATE deployments SET salt = name",
    "ALTER TABLE deployments ALTER COLUMN salt SET NOT NULL, DROP COLUMN model, DROP COLUMN version",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
