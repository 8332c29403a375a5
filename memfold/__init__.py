"""memfold: an event-sourced memory store for AI agents. Memory is a fold over events.

Importing this package opens nothing and loads none of the heavy libraries; each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memfold.api.aio import AsyncMemoryStore
    from memfold.api.store import MemoryStore
    from memfold.consolidator.extractive import ExtractiveSummarizer
    from memfold.consolidator.llm import LLMSummarizer
    from memfold.consolidator.summarizer import Source, Summarizer, Summary, Usage, Window
    from memfold.embedding import (
        CrossEncoderReranker,
        Embedder,
        Reranker,
        SentenceTransformerEmbedder,
    )
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
        PolicyError,
        RankingFileError,
        RerankerFailed,
        SchemaTooNew,
        ScopeTooLarge,
        SessionOwnerConflict,
        SettingsError,
        StoreClosed,
        StoreUnavailable,
        SummarizerFailed,
        VersionConflict,
    )
    from memfold.eventstore.keyservice import KeyService
    from memfold.minilm import MiniLMEmbedder, StaticEmbedder
    from memfold.model import (
        UNSET,
        CategoryStats,
        Change,
        CompressedWindow,
        Consolidation,
        Context,
        DayStats,
        Erasure,
        FailedWindow,
        JobStatus,
        Memory,
        NearLimit,
        NewMemory,
        Page,
        ParkedWork,
        Recollection,
        Recollections,
        Session,
        SessionConsolidation,
        SessionPage,
        Stats,
        StoredEvent,
        WorkStatus,
    )
    from memfold.policies import Effective, Fading, Keep, Policy, Retention, Windows
    from memfold.settings import Settings

__version__ = "0.1.0"

_HOMES = {
    "memfold.api.aio": ("AsyncMemoryStore",),
    "memfold.api.store": ("MemoryStore",),
    "memfold.consolidator.extractive": ("ExtractiveSummarizer",),
    "memfold.consolidator.llm": ("LLMSummarizer",),
    "memfold.consolidator.summarizer": ("Source", "Summarizer", "Summary", "Usage", "Window"),
    "memfold.embedding": ("CrossEncoderReranker", "Embedder", "Reranker", "SentenceTransformerEmbedder"),
    "memfold.errors": (
        *("Contended", "CorruptEvent", "DataFolderVersion", "DatabaseUnsuitable", "EmbeddedServerError", "EmbedderFailed"),
        *("EmbeddingTimeout", "FilterError", "ForkedStore", "IdempotencyConflict", "InvalidMemory", "InvalidQuery"),
        *("KeyUnavailable", "MemfoldError", "MemoryForgotten", "MemoryNotFound", "ModelFileError", "PolicyError"),
        *("RankingFileError", "RerankerFailed", "SchemaTooNew", "ScopeTooLarge", "SessionOwnerConflict", "SettingsError"),
        *("StoreClosed", "StoreUnavailable", "SummarizerFailed", "VersionConflict"),
    ),
    "memfold.eventstore.keyservice": ("KeyService",),
    "memfold.minilm": ("MiniLMEmbedder", "StaticEmbedder"),
    "memfold.model": (
        *("UNSET", "CategoryStats", "Change", "CompressedWindow", "Consolidation", "Context"),
        *("DayStats", "Erasure", "FailedWindow", "JobStatus", "Memory", "NearLimit", "NewMemory", "Page"),
        *("ParkedWork", "Recollection", "Recollections", "Session", "SessionConsolidation", "SessionPage"),
        *("Stats", "StoredEvent", "WorkStatus"),
    ),
    "memfold.policies": ("Effective", "Fading", "Keep", "Policy", "Retention", "Windows"),
    "memfold.settings": ("Settings",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "UNSET",
    "AsyncMemoryStore",
    "CategoryStats",
    "Change",
    "CompressedWindow",
    "Consolidation",
    "Contended",
    "Context",
    "CorruptEvent",
    "CrossEncoderReranker",
    "DataFolderVersion",
    "DatabaseUnsuitable",
    "DayStats",
    "Effective",
    "EmbeddedServerError",
    "Embedder",
    "EmbedderFailed",
    "EmbeddingTimeout",
    "Erasure",
    "ExtractiveSummarizer",
    "Fading",
    "FailedWindow",
    "FilterError",
    "ForkedStore",
    "IdempotencyConflict",
    "InvalidMemory",
    "InvalidQuery",
    "JobStatus",
    "Keep",
    "KeyService",
    "KeyUnavailable",
    "LLMSummarizer",
    "MemfoldError",
    "Memory",
    "MemoryForgotten",
    "MemoryNotFound",
    "MemoryStore",
    "MiniLMEmbedder",
    "ModelFileError",
    "NearLimit",
    "NewMemory",
    "Page",
    "ParkedWork",
    "Policy",
    "PolicyError",
    "RankingFileError",
    "Recollection",
    "Recollections",
    "Reranker",
    "RerankerFailed",
    "Retention",
    "SchemaTooNew",
    "ScopeTooLarge",
    "SentenceTransformerEmbedder",
    "Session",
    "SessionConsolidation",
    "SessionOwnerConflict",
    "SessionPage",
    "Settings",
    "SettingsError",
    "Source",
    "StaticEmbedder",
    "Stats",
    "StoreClosed",
    "StoreUnavailable",
    "StoredEvent",
    "Summarizer",
    "SummarizerFailed",
    "Summary",
    "Usage",
    "VersionConflict",
    "Window",
    "Windows",
    "WorkStatus",
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
