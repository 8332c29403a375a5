"""`AsyncMemoryStore`: the verbs of `MemoryStore` as coroutines, run in a bounded pool of threads.

There is no second implementation: each coroutine is made from the verb itself and keeps its signature and docstring.
"""

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import islice
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from memfold.api.opening import MasterKey, Target
from memfold.api.store import MemoryStore, utc_now
from memfold.consolidator.summarizer import Summarizer
from memfold.embedding import Embedder, Reranker
from memfold.model import StoredEvent
from memfold.projections.counting import CountTokens
from memfold.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

EVENTS_A_STEP = 500  # events handed over from the reading thread at a time


def _forward(
    verb: Callable[Concatenate[MemoryStore, P], T],
) -> Callable[Concatenate["AsyncMemoryStore", P], Coroutine[Any, Any, T]]:
    @functools.wraps(verb)
    async def forwarded(self: "AsyncMemoryStore", *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(verb, self._store, *args, **kwargs)

    return cast("Callable[Concatenate[AsyncMemoryStore, P], Coroutine[Any, Any, T]]", forwarded)


class AsyncMemoryStore:
    """`MemoryStore` for asyncio: the same verbs, awaited.

    Opening connects and may start a server, which takes a moment: construct it in a thread, or before the loop runs.
    A cancelled call goes on in its thread; a write that was under way may still be made.
    """

    def __init__(
        self,
        target: Target = None,
        *,
        tenant: str = "default",
        master_key: MasterKey = None,
        settings: Settings | None = None,
        clock: Callable[[], datetime] = utc_now,
        embedder: Embedder | None = None,
        count_tokens: CountTokens | None = None,
        ranking_weights: str | os.PathLike[str] | None = None,
        reranker: Reranker | None = None,
        summarizer: Summarizer | None = None,
        background: bool | Mapping[str, Any] = False,
    ) -> None:
        options: dict[str, Any] = {"tenant": tenant, "master_key": master_key, "clock": clock, "embedder": embedder}
        options |= {"count_tokens": count_tokens, "ranking_weights": ranking_weights, "reranker": reranker}
        options |= {"summarizer": summarizer, "background": background}
        self._store = MemoryStore(target, settings=settings, **options)
        self._threads = ThreadPoolExecutor((settings or Settings()).async_threads, thread_name_prefix="memfold")

    def __repr__(self) -> str:
        return f"Async{self._store!r}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the store. The embedded server stops when its last user closes. Closing twice is harmless.

        What is not embedded yet is left to the next process that remembers or recalls it. Work in the background finishes the
        step at hand.
        """
        await asyncio.to_thread(self._close)

    remember = _forward(MemoryStore.remember)
    remember_many = _forward(MemoryStore.remember_many)
    update = _forward(MemoryStore.update)
    flush = _forward(MemoryStore.flush)
    forget = _forward(MemoryStore.forget)
    forget_session = _forward(MemoryStore.forget_session)
    forget_user = _forward(MemoryStore.forget_user)
    forget_where = _forward(MemoryStore.forget_where)
    get = _forward(MemoryStore.get)
    find = _forward(MemoryStore.find)
    count = _forward(MemoryStore.count)
    recall = _forward(MemoryStore.recall)
    context = _forward(MemoryStore.context)
    consolidate = _forward(MemoryStore.consolidate)
    set_policy = _forward(MemoryStore.set_policy)
    policy = _forward(MemoryStore.policy)
    policies = _forward(MemoryStore.policies)
    parked = _forward(MemoryStore.parked)
    retry_parked = _forward(MemoryStore.retry_parked)
    sources = _forward(MemoryStore.sources)
    derived_from = _forward(MemoryStore.derived_from)
    restore = _forward(MemoryStore.restore)
    history = _forward(MemoryStore.history)
    sessions = _forward(MemoryStore.sessions)
    stats = _forward(MemoryStore.stats)
    work = _forward(MemoryStore.work)
    status = _forward(MemoryStore.status)

    @functools.wraps(MemoryStore.events)
    async def events(self, after: int = 0, *, session_id: str | None = None) -> AsyncIterator[StoredEvent]:
        source = await self._run(self._store.events, after, session_id=session_id)
        while step := await self._run(_step, source):
            for event in step:
                yield event

    async def _run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        self._store._check()
        call = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _close(self) -> None:
        self._store._end_work()  # it may be one of the threads
        self._threads.shutdown(wait=True)
        self._store.close()


def _step(source: Iterator[StoredEvent]) -> list[StoredEvent]:
    return list(islice(source, EVENTS_A_STEP))
