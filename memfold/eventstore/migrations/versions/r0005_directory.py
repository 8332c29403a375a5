"""The directory of sessions, what a consolidator notes beside it, and what was set aside."""

from memfold.eventstore.migrations.running import grant, run, run_file

revision = "0005"
down_revision = "0004"

TABLES = """
CREATE TABLE memfold.directory (
    tenant_id bigint NOT NULL,
    stream_id uuid NOT NULL,
    user_id uuid NOT NULL,
    version integer NOT NULL,
    memories integer NOT NULL,
    summaries integer NOT NULL DEFAULT 0,
    archived integer NOT NULL DEFAULT 0,
    first_at timestamptz,
    last_at timestamptz,
    changed_version integer NOT NULL,
    tokens_before bigint NOT NULL DEFAULT 0,
    tokens_after bigint NOT NULL DEFAULT 0,
    examined boolean NOT NULL,
    CONSTRAINT directory_pkey PRIMARY KEY (tenant_id, stream_id)
) WITH (fillfactor = 70);
CREATE INDEX directory_user ON memfold.directory (tenant_id, user_id);
CREATE INDEX directory_new ON memfold.directory (tenant_id, first_at, stream_id) WHERE NOT examined;

CREATE TABLE memfold.windows (
    tenant_id bigint NOT NULL,
    position bigint NOT NULL,
    stream_id uuid NOT NULL,
    summary_id uuid,
    sources uuid[] NOT NULL,
    archived uuid[] NOT NULL,
    tokens_before integer NOT NULL,
    tokens_after integer NOT NULL,
    CONSTRAINT windows_pkey PRIMARY KEY (tenant_id, position)
);
CREATE INDEX windows_stream ON memfold.windows (tenant_id, stream_id, position);

CREATE TABLE memfold.agenda (
    tenant_id bigint NOT NULL,
    stream_id uuid NOT NULL,
    examined_version integer NOT NULL,
    policy_version integer NOT NULL,
    due_at timestamptz,
    due_memories integer,
    examined_at timestamptz NOT NULL,
    woken boolean NOT NULL,
    CONSTRAINT agenda_pkey PRIMARY KEY (tenant_id, stream_id)
) WITH (fillfactor = 70);
CREATE INDEX agenda_due ON memfold.agenda (tenant_id, due_at, stream_id) WHERE due_at IS NOT NULL;
CREATE INDEX agenda_woken ON memfold.agenda (tenant_id, examined_at, stream_id) WHERE woken;
CREATE INDEX agenda_policy ON memfold.agenda (tenant_id, policy_version, examined_at, stream_id);

CREATE TABLE memfold.parked (
    tenant_id bigint NOT NULL,
    job text NOT NULL,
    stream_id uuid NOT NULL,
    key bytea NOT NULL,
    position bigint,
    reason text NOT NULL,
    attempts integer NOT NULL,
    first_at timestamptz NOT NULL,
    next_at timestamptz,
    parked boolean NOT NULL,
    CONSTRAINT parked_pkey PRIMARY KEY (tenant_id, job, stream_id, key)
);
CREATE INDEX parked_stream ON memfold.parked (tenant_id, stream_id);
CREATE INDEX parked_next ON memfold.parked (tenant_id, job, next_at, stream_id) WHERE next_at IS NOT NULL;
"""


def upgrade() -> None:
    run(TABLES)
    run_file("directory")
    run_file("forget")  # whose functions drop a session here too
    grant()
