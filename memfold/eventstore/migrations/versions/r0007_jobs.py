"""What workers note about their jobs."""

from memfold.eventstore.migrations.running import grant, run, run_file

revision = "0007"
down_revision = "0006"

TABLES = """
CREATE TABLE memfold.jobs (
    tenant_id bigint NOT NULL,
    name text NOT NULL,
    worker text NOT NULL,
    last_started_at timestamptz NOT NULL,
    last_finished_at timestamptz,
    next_at timestamptz,
    beat_at timestamptz NOT NULL,
    running boolean NOT NULL,
    runs bigint NOT NULL,
    failures integer NOT NULL,
    reason text,
    CONSTRAINT jobs_pkey PRIMARY KEY (tenant_id, name)
);
"""


def upgrade() -> None:
    run(TABLES)
    run_file("jobs")
    grant()
