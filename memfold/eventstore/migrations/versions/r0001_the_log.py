"""The log: spine, vault and keyring, the functions that write them, and the role that may call those.

There is no way down: a log is not taken apart.
"""

from memfold.eventstore.migrations.running import grant, run, run_file

revision = "0001"
down_revision = None

TABLES = """
CREATE SEQUENCE memfold.position AS bigint CACHE 1;

CREATE TABLE memfold.events (
    tenant_id bigint NOT NULL,
    position bigint NOT NULL DEFAULT nextval('memfold.position'),
    stream_id uuid NOT NULL,
    version integer NOT NULL,
    event_id uuid NOT NULL,
    memory_id uuid,
    type smallint NOT NULL,
    schema_version smallint NOT NULL,
    recorded_at timestamptz NOT NULL,
    digest bytea NOT NULL,
    CONSTRAINT events_pkey PRIMARY KEY (tenant_id, position),
    CONSTRAINT events_stream_version UNIQUE (tenant_id, stream_id, version),
    CONSTRAINT events_event_id UNIQUE (tenant_id, event_id)
);
CREATE INDEX events_memory ON memfold.events (tenant_id, memory_id);

CREATE TABLE memfold.payloads (
    tenant_id bigint NOT NULL,
    position bigint NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT payloads_pkey PRIMARY KEY (tenant_id, position)
);
ALTER TABLE memfold.payloads ALTER sealed SET STORAGE EXTERNAL;

CREATE TABLE memfold.embeddings (
    tenant_id bigint NOT NULL,
    position bigint NOT NULL,
    model text NOT NULL,
    sealed bytea NOT NULL,
    CONSTRAINT embeddings_pkey PRIMARY KEY (tenant_id, position, model)
);
ALTER TABLE memfold.embeddings ALTER sealed SET STORAGE EXTERNAL;

CREATE TABLE memfold.heads (
    tenant_id bigint NOT NULL,
    stream_id uuid NOT NULL,
    version integer NOT NULL,
    recorded_at timestamptz NOT NULL,
    closed boolean NOT NULL,
    CONSTRAINT heads_pkey PRIMARY KEY (tenant_id, stream_id)
) WITH (fillfactor = 50);

CREATE TABLE memfold.sessions (
    tenant_id bigint NOT NULL,
    stream_id uuid NOT NULL,
    name_hmac bytea NOT NULL,
    user_id uuid NOT NULL,
    sealed_name bytea NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT sessions_pkey PRIMARY KEY (tenant_id, stream_id),
    CONSTRAINT sessions_name UNIQUE (tenant_id, name_hmac)
);
CREATE INDEX sessions_created ON memfold.sessions (tenant_id, created_at, stream_id);
CREATE INDEX sessions_user ON memfold.sessions (tenant_id, user_id, created_at, stream_id);

CREATE TABLE memfold.idempotency (
    tenant_id bigint NOT NULL,
    stream_id uuid NOT NULL,
    key_hmac bytea NOT NULL,
    first_version integer NOT NULL,
    last_version integer NOT NULL,
    commitment bytea NOT NULL,
    CONSTRAINT idempotency_pkey PRIMARY KEY (tenant_id, stream_id, key_hmac)
);

CREATE TABLE memfold.erasures (
    tenant_id bigint NOT NULL,
    name_hmac bytea NOT NULL,
    position bigint NOT NULL,
    streams uuid[] NOT NULL,
    CONSTRAINT erasures_pkey PRIMARY KEY (tenant_id, name_hmac)
);

CREATE TABLE memfold_keys.master (
    singleton boolean NOT NULL DEFAULT true CONSTRAINT master_singleton CHECK (singleton),
    wrapped_lookup bytea NOT NULL,
    CONSTRAINT master_pkey PRIMARY KEY (singleton)
);

CREATE TABLE memfold_keys.tenants (
    tenant_id bigint NOT NULL,
    name_hmac bytea NOT NULL,
    stream_id uuid NOT NULL,
    wrapped_key bytea NOT NULL,
    key_version integer NOT NULL,
    CONSTRAINT tenants_pkey PRIMARY KEY (tenant_id),
    CONSTRAINT tenants_name UNIQUE (name_hmac)
);

CREATE TABLE memfold_keys.users (
    tenant_id bigint NOT NULL,
    user_id uuid NOT NULL,
    name_hmac bytea NOT NULL,
    sealed_name bytea NOT NULL,
    wrapped_key bytea NOT NULL,
    key_version integer NOT NULL,
    CONSTRAINT users_pkey PRIMARY KEY (tenant_id, user_id),
    CONSTRAINT users_name UNIQUE (tenant_id, name_hmac)
);

CREATE TABLE memfold_keys.keys (
    tenant_id bigint NOT NULL,
    position bigint NOT NULL,
    wrap_kind smallint NOT NULL,
    kek_version integer NOT NULL,
    sources uuid[],
    wrapped bytea NOT NULL,
    CONSTRAINT keys_pkey PRIMARY KEY (tenant_id, position)
);
COMMENT ON COLUMN memfold_keys.keys.wrap_kind IS '1: under a user''s key, 2: under the tenant''s key, 3: bound to its sources';
"""


def upgrade() -> None:
    # The schemas stand already: the version table lives in one of them.
    run(TABLES)
    for name in ("immutable", "append", "append_one", "destroy", "forget", "sessions", "tick"):
        run_file(name)
    grant()
