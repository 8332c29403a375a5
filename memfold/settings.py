"""Settings of a store, and the only place that looks at the environment.

Values arrive through constructors; nothing here is global. `Settings()` holds the defaults, each with its unit in its name.
"""

import os
from pathlib import Path

import msgspec
import platformdirs

from memfold.errors import SettingsError

MAY_BE_ZERO = ("importance_weight", "recency_weight", "llm_retries_max", "llm_prompt_price", "llm_completion_price")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a store behaves. Every value has a default that serves a laptop.

    - `pool_connections_max`: database connections this process may hold.
    - `append_connections`: how many of them may commit at once; callers beyond that share a commit.
    - `append_events_max`: events one commit takes at most.
    - `views_bytes_max`, `view_idle_s`: RAM for folded views, and when an unused one is dropped.
    - `query_vectors_max`: vectors of queries kept in RAM, each for `view_idle_s`.
    - `retries_max`: how often a decision about a memory is taken again after a lost race.
    - `connect_timeout_s`: how long to wait for a connection, `statement_timeout_s` for an answer on it.
    - `settle_timeout_s`: how long `events` waits for transactions in flight before it ends at what is settled.
    - `async_threads`: threads of an `AsyncMemoryStore`.
    - `importance_weight`, `recency_weight`: what these count in a recall, against 1 for the answer itself; 0 is off.
    - `recency_half_life_days`: after how many days a memory's recency counts half.
    - `llm_timeout_s`: how long one call of a language model may take; `llm_total_timeout_s`: all calls for one window together.
    - `llm_retries_max`: calls for one window beyond the first.
    - `llm_prompt_price`, `llm_completion_price`: of a million tokens, read and written, in any currency.
    - `llm_tokens_a_run_max`: after how many tokens a run of the consolidator stops.
    - `llm_tokens_a_day_max`, `llm_cost_a_day_max`: after how many tokens, or how much, it stops for a tenant till the next day.
    """

    pool_connections_max: int = 16
    append_connections: int = 2
    append_events_max: int = 10_000
    views_bytes_max: int = 1024 * 1024 * 1024
    view_idle_s: float = 300.0
    query_vectors_max: int = 1_000
    retries_max: int = 32
    connect_timeout_s: float = 10.0
    statement_timeout_s: float = 60.0
    settle_timeout_s: float = 10.0
    async_threads: int = 16
    importance_weight: float = 0.0
    recency_weight: float = 0.0
    recency_half_life_days: float = 30.0
    llm_timeout_s: float = 60.0
    llm_total_timeout_s: float = 180.0
    llm_retries_max: int = 3
    llm_prompt_price: float = 0.0
    llm_completion_price: float = 0.0
    llm_tokens_a_run_max: int = 1_000_000
    llm_tokens_a_day_max: int = 5_000_000
    llm_cost_a_day_max: float = 10.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            least = 0 if name in MAY_BE_ZERO else None
            value = getattr(self, name)
            if not value > 0 and value != least:
                raise SettingsError(name, "must be greater than zero" if least is None else "must not be below zero")
        if self.append_connections + 2 > self.pool_connections_max:
            raise SettingsError("append_connections", "must leave two connections for readers: raise pool_connections_max")


class Environment(msgspec.Struct, frozen=True):
    """What the environment says: `MEMFOLD_MASTER_KEY`, `MEMFOLD_TARGET`, where run-time files may live, and which model
    summarizes: `MEMFOLD_LLM_MODEL`, `MEMFOLD_LLM_BASE_URL`, `MEMFOLD_LLM_API_KEY`.
    """

    master_key: str | None
    target: str | None
    runtime_folder: Path | None
    llm_model: str | None = None
    llm_base_url: str | None = None
    llm_api_key: str | None = None

    def __repr__(self) -> str:
        return "Environment(…)"


def environment() -> Environment:
    """Read the environment, once, at the edge."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    llm_base_url = os.environ.get("MEMFOLD_LLM_BASE_URL") or None
    # OpenAI's own key is for OpenAI: it is not shown to another endpoint because it happens to be set.
    openai_key = os.environ.get("OPENAI_API_KEY") if llm_base_url is None else None
    return Environment(
        master_key=os.environ.get("MEMFOLD_MASTER_KEY") or None,
        target=os.environ.get("MEMFOLD_TARGET") or None,
        runtime_folder=Path(runtime) if runtime else None,
        llm_model=os.environ.get("MEMFOLD_LLM_MODEL") or None,
        llm_base_url=llm_base_url,
        llm_api_key=os.environ.get("MEMFOLD_LLM_API_KEY") or openai_key or None,
    )


def child_environment() -> dict[str, str]:
    """The environment for PostgreSQL's programs: ours without `PG…`, which would lead them astray, and in English."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def default_folder() -> Path:
    """The folder of the embedded store in the user's data folder."""
    return Path(platformdirs.user_data_dir("memfold", appauthor=False))
