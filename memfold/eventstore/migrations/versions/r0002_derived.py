"""Checkpoints of those who follow the log, and vectors that can be made anew."""

from memfold.eventstore.migrations.running import grant, run, run_file

revision = "0002"
down_revision = "0001"

TABLES = """
CREATE TABLE memfold.checkpoints (
    tenant_id bigint NOT NULL,
    name text NOT NULL,
    position bigint NOT NULL,
    CONSTRAINT checkpoints_pkey PRIMARY KEY (tenant_id, name)
);
"""


def upgrade() -> None:
    run(TABLES)
    run_file("derived")
    grant()
