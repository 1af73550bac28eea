"""Model versions, aliases, deployments, decisions and batch runs."""

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = (
    """
    -- One row per model; whoever registers a version locks it first.
    CREATE TABLE models (
        name text PRIMARY KEY,
        latest_version integer NOT NULL CHECK (latest_version >= 0)
    )
    """,
    """
    CREATE TABLE model_versions (
        model text NOT NULL REFERENCES models,
        version integer NOT NULL CHECK (version >= 1),
        description text NOT NULL,
        view_name text NOT NULL,
        view_version integer NOT NULL,
        signature jsonb NOT NULL,
        artifact_sha256 text NOT NULL CHECK (artifact_sha256 ~ '^[0-9a-f]{64}$'),
        artifact_bytes bigint NOT NULL,
        lineage jsonb NOT NULL,
        quality jsonb NOT NULL,
        -- Digest of what makes a version the same as another: artifact, signature, view and lineage.
        content_sha256 text NOT NULL,
        created_at timestamptz NOT NULL,
        PRIMARY KEY (model, version)
    )
    """,
    """
    CREATE TABLE aliases (
        model text NOT NULL,
        alias text NOT NULL,
        version integer NOT NULL,
        PRIMARY KEY (model, alias),
        FOREIGN KEY (model, version) REFERENCES model_versions
    )
    """,
    """
    CREATE TABLE deployments (
        name text PRIMARY KEY,
        model text NOT NULL,
        version integer NOT NULL,
        etag text NOT NULL,
        updated_at timestamptz NOT NULL,
        FOREIGN KEY (model, version) REFERENCES model_versions
    )
    """,
    """
    CREATE TABLE decisions (
        sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        id text NOT NULL UNIQUE,
        deployment text NOT NULL,
        champion_model text NOT NULL,
        champion_version integer NOT NULL,
        challenger_model text NOT NULL,
        challenger_version integer NOT NULL,
        dataset_id text NOT NULL,
        split text NOT NULL,
        metric text NOT NULL,
        margin double precision NOT NULL,
        promoted boolean NOT NULL,
        -- Metrics of champion, challenger and references.
        models jsonb NOT NULL,
        rows bigint NOT NULL,
        judged_at timestamptz NOT NULL,
        created_at timestamptz NOT NULL,
        FOREIGN KEY (champion_model, champion_version) REFERENCES model_versions,
        FOREIGN KEY (challenger_model, challenger_version) REFERENCES model_versions,
        UNIQUE (deployment, challenger_model, challenger_version, dataset_id, split, metric, judged_at)
    )
    """,
    """
    CREATE TABLE batch_runs (
        run_id text PRIMARY KEY,
        -- Digest of the request: the same id with another one is refused.
        content_sha256 text NOT NULL,
        deployment text NOT NULL,
        model text NOT NULL,
        version integer NOT NULL,
        sink_table text NOT NULL,
        event_time timestamptz NOT NULL,
        rows bigint NOT NULL,
        finished_at timestamptz NOT NULL,
        duration_ms bigint NOT NULL,
        FOREIGN KEY (model, version) REFERENCES model_versions
    )
    """,
    "CREATE INDEX batch_runs_by_end ON batch_runs (finished_at DESC)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
