"""Events whose key is bound to other events: a summary dies with any of its sources."""

from memfold.eventstore.migrations.running import grant, run, run_file

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run(
        """ALTER TABLE memfold_keys.keys ADD CONSTRAINT keys_sources
           CHECK (wrap_kind <> 3 OR (sources IS NOT NULL AND cardinality(sources) > 0))"""
    )
    run("CREATE INDEX keys_bound ON memfold_keys.keys USING gin (sources) WHERE wrap_kind = 3")
    run_file("bound")
    run_file("destroy")
    grant()
