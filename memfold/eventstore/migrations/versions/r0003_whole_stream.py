"""Decisions about a whole stream: nothing may have been appended since."""

from memfold.eventstore.migrations.running import grant, run_file

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run_file("append")
    grant()
