"""The tables, as SQLAlchemy metadata: what the migrations make. Only migrations and tests import this.

`memfold.events` is the spine (immutable), `memfold.payloads` the vault (deletable), `memfold_keys` the keyring
(destroyable; a schema of its own so that backups can leave it out). `tenant_id` leads every key. There are no foreign keys
among the three: the append functions are their only writer.
"""

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP

SCHEMA = "memfold"
KEYS = "memfold_keys"

metadata = MetaData()


def _required(name: str, type_: Any, **options: Any) -> Column[Any]:
    return Column(name, type_, nullable=False, **options)


events = Table(
    "events",
    metadata,
    _required("tenant_id", BigInteger),
    _required("position", BigInteger, server_default=text("nextval('memfold.position')")),
    _required("stream_id", Uuid),
    _required("version", Integer),
    _required("event_id", Uuid),
    Column("memory_id", Uuid),
    _required("type", SmallInteger),
    _required("schema_version", SmallInteger),
    _required("recorded_at", TIMESTAMP(timezone=True)),
    _required("digest", LargeBinary),
    PrimaryKeyConstraint("tenant_id", "position", name="events_pkey"),
    UniqueConstraint("tenant_id", "stream_id", "version", name="events_stream_version"),
    UniqueConstraint("tenant_id", "event_id", name="events_event_id"),
    schema=SCHEMA,
)
Index("events_memory", events.c.tenant_id, events.c.memory_id)

payloads = Table(
    "payloads",
    metadata,
    _required("tenant_id", BigInteger),
    _required("position", BigInteger),
    _required("sealed", LargeBinary),
    PrimaryKeyConstraint("tenant_id", "position", name="payloads_pkey"),
    schema=SCHEMA,
)

embeddings = Table(
    "embeddings",
    metadata,
    _required("tenant_id", BigInteger),
    _required("position", BigInteger),
    _required("model", Text),
    _required("sealed", LargeBinary),
    PrimaryKeyConstraint("tenant_id", "position", "model", name="embeddings_pkey"),
    schema=SCHEMA,
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _required("tenant_id", BigInteger),
    _required("name", Text),
    _required("position", BigInteger),
    PrimaryKeyConstraint("tenant_id", "name", name="checkpoints_pkey"),
    schema=SCHEMA,
)

spending = Table(
    "spending",
    metadata,
    _required("tenant_id", BigInteger),
    _required("day", Date),
    _required("model", Text),
    _required("prompt_tokens", BigInteger),
    _required("completion_tokens", BigInteger),
    _required("cost", Double),
    _required("calls", BigInteger),
    PrimaryKeyConstraint("tenant_id", "day", "model", name="spending_pkey"),
    schema=SCHEMA,
)

jobs = Table(
    "jobs",
    metadata,
    _required("tenant_id", BigInteger),
    _required("name", Text),
    _required("worker", Text),
    _required("last_started_at", TIMESTAMP(timezone=True)),
    Column("last_finished_at", TIMESTAMP(timezone=True)),
    Column("next_at", TIMESTAMP(timezone=True)),
    _required("beat_at", TIMESTAMP(timezone=True)),
    _required("running", Boolean),
    _required("runs", BigInteger),
    _required("failures", Integer),
    Column("reason", Text),
    PrimaryKeyConstraint("tenant_id", "name", name="jobs_pkey"),
    schema=SCHEMA,
)

heads = Table(
    "heads",
    metadata,
    _required("tenant_id", BigInteger),
    _required("stream_id", Uuid),
    _required("version", Integer),
    _required("recorded_at", TIMESTAMP(timezone=True)),
    _required("closed", Boolean),
    PrimaryKeyConstraint("tenant_id", "stream_id", name="heads_pkey"),
    schema=SCHEMA,
    postgresql_with={"fillfactor": "50"},
)

sessions = Table(
    "sessions",
    metadata,
    _required("tenant_id", BigInteger),
    _required("stream_id", Uuid),
    _required("name_hmac", LargeBinary),
    _required("user_id", Uuid),
    _required("sealed_name", LargeBinary),
    _required("created_at", TIMESTAMP(timezone=True)),
    PrimaryKeyConstraint("tenant_id", "stream_id", name="sessions_pkey"),
    UniqueConstraint("tenant_id", "name_hmac", name="sessions_name"),
    schema=SCHEMA,
)
Index("sessions_created", sessions.c.tenant_id, sessions.c.created_at, sessions.c.stream_id)
Index("sessions_user", sessions.c.tenant_id, sessions.c.user_id, sessions.c.created_at, sessions.c.stream_id)

idempotency = Table(
    "idempotency",
    metadata,
    _required("tenant_id", BigInteger),
    _required("stream_id", Uuid),
    _required("key_hmac", LargeBinary),
    _required("first_version", Integer),
    _required("last_version", Integer),
    _required("commitment", LargeBinary),
    PrimaryKeyConstraint("tenant_id", "stream_id", "key_hmac", name="idempotency_pkey"),
    schema=SCHEMA,
)

erasures = Table(
    "erasures",
    metadata,
    _required("tenant_id", BigInteger),
    _required("name_hmac", LargeBinary),
    _required("position", BigInteger),
    _required("streams", ARRAY(Uuid)),
    PrimaryKeyConstraint("tenant_id", "name_hmac", name="erasures_pkey"),
    schema=SCHEMA,
)

directory = Table(
    "directory",
    metadata,
    _required("tenant_id", BigInteger),
    _required("stream_id", Uuid),
    _required("user_id", Uuid),
    _required("version", Integer),
    _required("memories", Integer),
    _required("summaries", Integer, server_default=text("0")),
    _required("archived", Integer, server_default=text("0")),
    Column("first_at", TIMESTAMP(timezone=True)),
    Column("last_at", TIMESTAMP(timezone=True)),
    _required("changed_version", Integer),
    _required("tokens_before", BigInteger, server_default=text("0")),
    _required("tokens_after", BigInteger, server_default=text("0")),
    _required("examined", Boolean),
    PrimaryKeyConstraint("tenant_id", "stream_id", name="directory_pkey"),
    schema=SCHEMA,
    postgresql_with={"fillfactor": "70"},
)
Index("directory_user", directory.c.tenant_id, directory.c.user_id)
Index(
    "directory_new",
    directory.c.tenant_id,
    directory.c.first_at,
    directory.c.stream_id,
    postgresql_where=text("NOT examined"),
)

windows = Table(
    "windows",
    metadata,
    _required("tenant_id", BigInteger),
    _required("position", BigInteger),
    _required("stream_id", Uuid),
    Column("summary_id", Uuid),
    _required("sources", ARRAY(Uuid)),
    _required("archived", ARRAY(Uuid)),
    _required("tokens_before", Integer),
    _required("tokens_after", Integer),
    PrimaryKeyConstraint("tenant_id", "position", name="windows_pkey"),
    schema=SCHEMA,
)
Index("windows_stream", windows.c.tenant_id, windows.c.stream_id, windows.c.position)

agenda = Table(
    "agenda",
    metadata,
    _required("tenant_id", BigInteger),
    _required("stream_id", Uuid),
    _required("examined_version", Integer),
    _required("policy_version", Integer),
    Column("due_at", TIMESTAMP(timezone=True)),
    Column("due_memories", Integer),
    _required("examined_at", TIMESTAMP(timezone=True)),
    _required("woken", Boolean),
    PrimaryKeyConstraint("tenant_id", "stream_id", name="agenda_pkey"),
    schema=SCHEMA,
    postgresql_with={"fillfactor": "70"},
)
Index("agenda_due", agenda.c.tenant_id, agenda.c.due_at, agenda.c.stream_id, postgresql_where=text("due_at IS NOT NULL"))
Index("agenda_woken", agenda.c.tenant_id, agenda.c.examined_at, agenda.c.stream_id, postgresql_where=text("woken"))
Index("agenda_policy", agenda.c.tenant_id, agenda.c.policy_version, agenda.c.examined_at, agenda.c.stream_id)

parked = Table(
    "parked",
    metadata,
    _required("tenant_id", BigInteger),
    _required("job", Text),
    _required("stream_id", Uuid),
    _required("key", LargeBinary),
    Column("position", BigInteger),
    _required("reason", Text),
    _required("attempts", Integer),
    _required("first_at", TIMESTAMP(timezone=True)),
    Column("next_at", TIMESTAMP(timezone=True)),
    _required("parked", Boolean),
    PrimaryKeyConstraint("tenant_id", "job", "stream_id", "key", name="parked_pkey"),
    schema=SCHEMA,
)
Index("parked_stream", parked.c.tenant_id, parked.c.stream_id)
Index(
    "parked_next",
    parked.c.tenant_id,
    parked.c.job,
    parked.c.next_at,
    parked.c.stream_id,
    postgresql_where=text("next_at IS NOT NULL"),
)

master = Table(
    "master",
    metadata,
    _required("singleton", Boolean, server_default=text("true")),
    _required("wrapped_lookup", LargeBinary),
    PrimaryKeyConstraint("singleton", name="master_pkey"),
    CheckConstraint("singleton", name="master_singleton"),
    schema=KEYS,
)

tenants = Table(
    "tenants",
    metadata,
    _required("tenant_id", BigInteger),
    _required("name_hmac", LargeBinary),
    _required("stream_id", Uuid),
    _required("wrapped_key", LargeBinary),
    _required("key_version", Integer),
    PrimaryKeyConstraint("tenant_id", name="tenants_pkey"),
    UniqueConstraint("name_hmac", name="tenants_name"),
    schema=KEYS,
)

users = Table(
    "users",
    metadata,
    _required("tenant_id", BigInteger),
    _required("user_id", Uuid),
    _required("name_hmac", LargeBinary),
    _required("sealed_name", LargeBinary),
    _required("wrapped_key", LargeBinary),
    _required("key_version", Integer),
    PrimaryKeyConstraint("tenant_id", "user_id", name="users_pkey"),
    UniqueConstraint("tenant_id", "name_hmac", name="users_name"),
    schema=KEYS,
)

keys = Table(
    "keys",
    metadata,
    _required("tenant_id", BigInteger),
    _required("position", BigInteger),
    _required("wrap_kind", SmallInteger, comment="1: under a user's key, 2: under the tenant's key, 3: bound to its sources"),
    _required("kek_version", Integer),
    Column("sources", ARRAY(Uuid)),
    _required("wrapped", LargeBinary),
    PrimaryKeyConstraint("tenant_id", "position", name="keys_pkey"),
    CheckConstraint("wrap_kind <> 3 OR (sources IS NOT NULL AND cardinality(sources) > 0)", name="keys_sources"),
    schema=KEYS,
)
Index("keys_bound", keys.c.sources, postgresql_using="gin", postgresql_where=text("wrap_kind = 3"))
