"""How migrations run the SQL files of the log."""

from pathlib import Path

from alembic import op

SQL = Path(__file__).parents[1] / "sql"


def run(sql: str) -> None:
    """Run a script as it stands: no parameter marks, no bind names."""
    driver = op.get_bind().connection.driver_connection
    assert driver is not None
    driver.execute(sql)


def run_file(name: str) -> None:
    """Run the SQL file of this name."""
    run((SQL / f"{name}.sql").read_text())


def grant() -> None:
    """Leave nothing of the log to PUBLIC, and give the application role what it needs. After every change of the schema."""
    run("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA memfold FROM PUBLIC")
    run_file("roles")
