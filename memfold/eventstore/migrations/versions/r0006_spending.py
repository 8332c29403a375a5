"""What summarizers have charged."""

from memfold.eventstore.migrations.running import grant, run, run_file

revision = "0006"
down_revision = "0005"

TABLES = """
CREATE TABLE memfold.spending (
    tenant_id bigint NOT NULL,
    day date NOT NULL,
    model text NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cost double precision NOT NULL,
    calls bigint NOT NULL,
    CONSTRAINT spending_pkey PRIMARY KEY (tenant_id, day, model)
);
"""


def upgrade() -> None:
    run(TABLES)
    run_file("spending")
    grant()
