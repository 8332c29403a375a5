"""memfold: an event-sourced memory store for AI agents. Memory is a fold over events.

Importing this package opens nothing and loads none of the heavy libraries; each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memfold.api.aio import AsyncMemoryStore
    from memfold.api.store import MemoryStore
    from memfold.embedding import CrossEncoderReranker, Embedder, Reranker, SentenceTransformerEmbedder
    from memfold.errors import (
        Contended,
        CorruptEvent,
        DatabaseUnsuitable,
        DataFolderVersion,
        EmbeddedServerError,
        EmbedderFailed,
        EmbeddingTimeout,
        FilterError,
        ForkedStore,
        IdempotencyConflict,
        InvalidMemory,
        InvalidQuery,
        KeyUnavailable,
        MemfoldError,
        MemoryForgotten,
        MemoryNotFound,
        ModelFileError,
        RankingFileError,
        RerankerFailed,
        SchemaTooNew,
        ScopeTooLarge,
        SessionOwnerConflict,
        SettingsError,
        StoreClosed,
        StoreUnavailable,
        VersionConflict,
    )
    from memfold.eventstore.keyservice import KeyService
    from memfold.minilm import MiniLMEmbedder, StaticEmbedder
    from memfold.model import (
        UNSET,
        Change,
        Context,
        Erasure,
        Memory,
        NewMemory,
        Page,
        Recollection,
        Recollections,
        Session,
        SessionPage,
        Stats,
        StoredEvent,
    )
    from memfold.settings import Settings

__version__ = "0.1.0"

_HOMES = {
    "memfold.api.aio": ("AsyncMemoryStore",),
    "memfold.api.store": ("MemoryStore",),
    "memfold.eventstore.keyservice": ("KeyService",),
    "memfold.embedding": ("CrossEncoderReranker", "Embedder", "Reranker", "SentenceTransformerEmbedder"),
    "memfold.minilm": ("MiniLMEmbedder", "StaticEmbedder"),
    "memfold.settings": ("Settings",),
    "memfold.model": (
        *("UNSET", "Change", "Context", "Erasure", "Memory", "NewMemory", "Page", "Recollection", "Recollections"),
        *("Session", "SessionPage", "Stats", "StoredEvent"),
    ),
    "memfold.errors": (
        *("Contended", "CorruptEvent", "DataFolderVersion", "DatabaseUnsuitable", "EmbeddedServerError", "FilterError"),
        *("ForkedStore", "IdempotencyConflict", "InvalidMemory", "InvalidQuery", "KeyUnavailable", "MemfoldError"),
        *("MemoryForgotten", "MemoryNotFound", "SchemaTooNew", "SessionOwnerConflict", "SettingsError", "StoreClosed"),
        *(
            "StoreUnavailable",
            "VersionConflict",
            "EmbedderFailed",
            "EmbeddingTimeout",
            "ModelFileError",
            "RankingFileError",
            "RerankerFailed",
            "ScopeTooLarge",
        ),
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "UNSET",
    "AsyncMemoryStore",
    "Change",
    "Contended",
    "Context",
    "CorruptEvent",
    "CrossEncoderReranker",
    "DataFolderVersion",
    "DatabaseUnsuitable",
    "EmbeddedServerError",
    "Embedder",
    "EmbedderFailed",
    "EmbeddingTimeout",
    "Erasure",
    "FilterError",
    "ForkedStore",
    "IdempotencyConflict",
    "InvalidMemory",
    "InvalidQuery",
    "KeyService",
    "KeyUnavailable",
    "MemfoldError",
    "Memory",
    "MemoryForgotten",
    "MemoryNotFound",
    "MemoryStore",
    "MiniLMEmbedder",
    "ModelFileError",
    "NewMemory",
    "Page",
    "RankingFileError",
    "Recollection",
    "Recollections",
    "Reranker",
    "RerankerFailed",
    "SchemaTooNew",
    "ScopeTooLarge",
    "SentenceTransformerEmbedder",
    "Session",
    "SessionOwnerConflict",
    "SessionPage",
    "Settings",
    "SettingsError",
    "StaticEmbedder",
    "Stats",
    "StoreClosed",
    "StoreUnavailable",
    "StoredEvent",
    "VersionConflict",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'memfold' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
