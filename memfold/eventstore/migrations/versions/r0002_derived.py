"""Checkpoints of those who follow the log, and vectors that can be made anew."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"

SQL = Path(__file__).parents[2] / "sql"

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
    run((SQL / "derived.sql").read_text())
    run("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA memfold FROM PUBLIC")
    run((SQL / "roles.sql").read_text())


def run(sql: str) -> None:
    """Run a script as it stands: no parameter marks, no bind names."""
    driver = op.get_bind().connection.driver_connection
    assert driver is not None
    driver.execute(sql)
