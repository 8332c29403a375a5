"""How long does it take to find what is due among 1,000,000 sessions, and how does that grow?

One in a hundred sessions is due, each of the six ways in turn. The directory and the agenda are filled by SQL, the question is
`Directory.due`: the first 100, and all of them. Beside it the same question asked of the whole tables, row by row.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from common import Bar, Report, latencies, latency_ratio, options, parts, server, take_turns
from timing import Sample, repeat

from memfold.projections.directory import Directory

SIZES = (10_000, 100_000, 1_000_000)
NOW = datetime(2025, 1, 1, tzinfo=UTC)
OLD = timedelta(days=30)
DUE_SHARE, WAYS, POLICY = 100, 6, 7  # one in a hundred, by so many ways; the version of the policies

# Session n is due if n is a multiple of 100, by the way n / 100 modulo 6: never examined, time has come, woken, other policies
# (older, newer), set aside. One more in a hundred was never examined and is too young.
FILL = """
WITH session AS (
    SELECT n, md5(n::text || '-' || %(tenant)s)::uuid AS stream, n %% 100 = 0 AS is_due, (n / 100) %% 6 AS way,
        n %% 100 = 1 AS is_new, n %% 100 = 0 AND (n / 100) %% 6 = 0 AS is_old, %(now)s - make_interval(secs => n) AS past
    FROM generate_series(1, %(count)s) n
),
filled AS (
    INSERT INTO memfold.directory
        (tenant_id, stream_id, user_id, version, memories, first_at, last_at, changed_version, examined)
    SELECT %(tenant)s, stream, md5((n %% 5000)::text)::uuid, 100, 100,
        CASE WHEN is_new THEN %(now)s ELSE past - %(old)s END, %(now)s, 50, NOT (is_new OR is_old)
    FROM session
),
noted AS (
    INSERT INTO memfold.agenda
    SELECT %(tenant)s, stream, 60,
        CASE WHEN is_due AND way = 3 THEN %(policy)s - 1 WHEN is_due AND way = 4 THEN %(policy)s + 1 ELSE %(policy)s END,
        CASE WHEN is_due AND way = 1 THEN past ELSE %(now)s + make_interval(secs => n) END,
        200, past, is_due AND way = 2
    FROM session WHERE NOT (is_new OR is_old)
)
INSERT INTO memfold.parked
SELECT %(tenant)s, 'consolidate', stream, '', NULL, 'down', 1, past, past, false
FROM session WHERE is_due AND way = 5"""

ROW_BY_ROW = """
SELECT d.stream_id FROM memfold.directory d LEFT JOIN memfold.agenda a USING (tenant_id, stream_id)
WHERE tenant_id = %(tenant)s AND (
    a.stream_id IS NULL AND d.first_at <= %(now)s - %(old)s OR a.due_at <= %(now)s OR d.memories >= a.due_memories
    OR a.woken OR d.changed_version > a.examined_version OR a.policy_version <> %(policy)s
    OR EXISTS (SELECT FROM memfold.parked p
               WHERE p.tenant_id = d.tenant_id AND p.stream_id = d.stream_id AND p.next_at <= %(now)s))"""


def fill(connection: psycopg.Connection[Any], tenant: int, count: int) -> dict[str, Any]:
    """So many sessions of a tenant; the parameters they were made with."""
    values = {"tenant": tenant, "count": count, "now": NOW, "old": OLD, "policy": POLICY}
    connection.execute(FILL, values)
    return values


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    sizes, rounds = ((1_000, 10_000), 2) if args.quick else (SIZES, 5)
    report = Report(__doc__, args)
    with server() as at, at.store("memfold") as store, at.connect("memfold") as owner:
        contenders: dict[str, Callable[[], Sample]] = {}
        for tenant, count in enumerate(sizes, 1):
            values = fill(owner, tenant, count)
            directory = Directory(parts(store).database, tenant)
            assert len(directory.due(NOW, POLICY, OLD, count)) == count // DUE_SHARE
            for name, limit in (("first 100", 100), ("all due", count)):
                contenders[f"{count:,} sessions, {name}"] = lambda directory=directory, limit=limit: repeat(
                    lambda: directory.due(NOW, POLICY, OLD, limit), 5
                )
            contenders[f"{count:,} sessions, row by row"] = lambda values=values: repeat(
                lambda: owner.execute(ROW_BY_ROW, values).fetchall(), 1
            )
        at.analyze("memfold")
        samples = take_turns(contenders, rounds)
        report.samples(samples, "answers/s")
        most, least = f"{sizes[-1]:,} sessions", f"{sizes[0]:,} sessions"
        report.bars(
            [
                Bar(f"{most}, all due: ms", latencies(samples, f"{most}, all due", 0.5), 1_000, at_most=True),
                Bar(f"{most}, first 100: ms", latencies(samples, f"{most}, first 100", 0.5)),
            ],
            "p50 within a round",
        )
        report.bars(
            [
                Bar(f"{what}: {most} / {least}", latency_ratio(samples, f"{most}, {what}", f"{least}, {what}", 0.5))
                for what in ("first 100", "all due", "row by row")
            ]
        )
        report.machine(at)


if __name__ == "__main__":
    main()
