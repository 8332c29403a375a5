-- The directory of sessions and what goes with it: counts, ids and times, no word of anybody. All of it but the agenda and what is
-- parked can be made anew from the log. Locks, always in this order: rows of the directory by stream, then the others'.

-- Apply what a batch of events says of sessions. `n_`: by how much each changed; memories and times are those of this batch.
-- `t_`: what living windows come to, of those whose windows were touched. `w_`: windows that are new or changed, their ids cut
-- from `w_ids`: sources up to `w_sources`, from there archived ones up to `w_archived`, each window behind the one before.
-- `gone`: positions of windows that are no more; `closed`: streams that are. Streams whose session was forgotten are passed over.
CREATE FUNCTION memfold.apply_directory(
    p_tenant bigint,
    n_stream uuid[], n_version int[], n_remembered int[], n_forgotten int[], n_first timestamptz[], n_last timestamptz[], n_changed int[],
    t_stream uuid[], t_summaries int[], t_archived int[], t_before bigint[], t_after bigint[],
    w_stream uuid[], w_position bigint[], w_summary uuid[], w_before int[], w_after int[], w_ids uuid[], w_sources int[], w_archived int[],
    p_gone bigint[], p_closed uuid[]
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
BEGIN
    INSERT INTO directory AS d (tenant_id, stream_id, user_id, version, memories, first_at, last_at, changed_version, examined)
    SELECT p_tenant, n.stream, s.user_id, n.version, n.remembered - n.forgotten,
           CASE WHEN n.remembered > 0 THEN n.first END, CASE WHEN n.remembered > 0 THEN n.last END, n.changed,
           EXISTS (SELECT FROM agenda a WHERE a.tenant_id = p_tenant AND a.stream_id = n.stream)
    FROM unnest(n_stream, n_version, n_remembered, n_forgotten, n_first, n_last, n_changed)
         n(stream, version, remembered, forgotten, first, last, changed)
    JOIN sessions s ON s.tenant_id = p_tenant AND s.stream_id = n.stream
    ORDER BY n.stream
    ON CONFLICT (tenant_id, stream_id) DO UPDATE SET
        version = excluded.version, memories = d.memories + excluded.memories,
        first_at = coalesce(d.first_at, excluded.first_at), last_at = coalesce(excluded.last_at, d.last_at),
        changed_version = greatest(d.changed_version, excluded.changed_version);

    DELETE FROM windows WHERE tenant_id = p_tenant AND position = ANY (p_gone);
    INSERT INTO windows AS w (tenant_id, position, stream_id, summary_id, sources, archived, tokens_before, tokens_after)
    SELECT p_tenant, n.position, n.stream, n.summary, w_ids[n.since + 1 : n.sources], w_ids[n.sources + 1 : n.archived], n.before, n.after
    FROM (SELECT u.*, coalesce(lag(u.archived) OVER (ORDER BY u.place), 0) AS since
          FROM unnest(w_stream, w_position, w_summary, w_before, w_after, w_sources, w_archived)
               WITH ORDINALITY u(stream, position, summary, before, after, sources, archived, place)) n
    WHERE EXISTS (SELECT FROM directory d WHERE d.tenant_id = p_tenant AND d.stream_id = n.stream)
    ON CONFLICT (tenant_id, position) DO UPDATE SET archived = excluded.archived;

    UPDATE directory d SET summaries = n.summaries, archived = n.archived, tokens_before = n.before, tokens_after = n.after
    FROM unnest(t_stream, t_summaries, t_archived, t_before, t_after) n(stream, summaries, archived, before, after)
    WHERE d.tenant_id = p_tenant AND d.stream_id = n.stream;

    -- After the rows of the directory are held: `examined` takes them first too, so neither misses what the other wrote.
    UPDATE agenda a SET woken = true FROM directory d
    WHERE a.tenant_id = p_tenant AND a.stream_id = ANY (n_stream) AND NOT a.woken
    AND d.tenant_id = p_tenant AND d.stream_id = a.stream_id
    AND (d.changed_version > a.examined_version OR d.memories >= a.due_memories);

    PERFORM memfold.drop_sessions(p_tenant, p_closed);
END $$;

-- Nothing is left of sessions that are gone. `forget_streams` calls it, and the projector where it comes upon the fact.
CREATE FUNCTION memfold.drop_sessions(p_tenant bigint, p_streams uuid[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
BEGIN
    PERFORM memfold.drop_directory(p_tenant, p_streams);
    DELETE FROM agenda WHERE tenant_id = p_tenant AND stream_id = ANY (p_streams);
    DELETE FROM parked WHERE tenant_id = p_tenant AND stream_id = ANY (p_streams);
END $$;

-- Take the derived rows of some sessions away, as before their first event.
CREATE FUNCTION memfold.drop_directory(p_tenant bigint, p_streams uuid[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
BEGIN
    PERFORM FROM directory WHERE tenant_id = p_tenant AND stream_id = ANY (p_streams) ORDER BY stream_id FOR UPDATE;
    DELETE FROM windows WHERE tenant_id = p_tenant AND stream_id = ANY (p_streams);
    DELETE FROM directory WHERE tenant_id = p_tenant AND stream_id = ANY (p_streams);
END $$;

-- Take the derived rows of up to `p_limit` sessions away; returns of how many.
CREATE FUNCTION memfold.clear_directory(p_tenant bigint, p_limit int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
DECLARE
    streams uuid[];
BEGIN
    SELECT array_agg(s.stream_id) INTO streams
    FROM (SELECT stream_id FROM directory WHERE tenant_id = p_tenant ORDER BY stream_id LIMIT p_limit) s;
    PERFORM memfold.drop_directory(p_tenant, streams);
    RETURN coalesce(cardinality(streams), 0);
END $$;

-- A session was examined as of a version; false if it is gone, or was examined at a later one.
CREATE FUNCTION memfold.examined(
    p_tenant bigint, p_stream uuid, p_version int, p_policy int, p_due_at timestamptz, p_due_memories int, p_at timestamptz
) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
DECLARE
    session record;
BEGIN
    SELECT d.memories, d.changed_version, d.examined INTO session
    FROM directory d WHERE d.tenant_id = p_tenant AND d.stream_id = p_stream FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO agenda AS a (tenant_id, stream_id, examined_version, policy_version, due_at, due_memories, examined_at, woken)
    VALUES (p_tenant, p_stream, p_version, p_policy, p_due_at, p_due_memories, p_at,
            session.changed_version > p_version OR coalesce(session.memories >= p_due_memories, false))
    ON CONFLICT (tenant_id, stream_id) DO UPDATE SET
        examined_version = excluded.examined_version, policy_version = excluded.policy_version, due_at = excluded.due_at,
        due_memories = excluded.due_memories, examined_at = excluded.examined_at, woken = excluded.woken
    WHERE a.examined_version <= excluded.examined_version;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF NOT session.examined THEN
        UPDATE directory SET examined = true WHERE tenant_id = p_tenant AND stream_id = p_stream;
    END IF;
    RETURN true;
END $$;

-- Set something of a stream aside for a job, once more if it was before; false if the stream is closed.
CREATE FUNCTION memfold.park(
    p_tenant bigint, p_job text, p_stream uuid, p_key bytea, p_position bigint, p_reason text, p_next_at timestamptz,
    p_parked boolean, p_at timestamptz
) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
BEGIN
    INSERT INTO parked AS p (tenant_id, job, stream_id, key, position, reason, attempts, first_at, next_at, parked)
    SELECT p_tenant, p_job, p_stream, p_key, p_position, p_reason, 1, p_at, p_next_at, p_parked
    FROM heads h WHERE h.tenant_id = p_tenant AND h.stream_id = p_stream AND NOT h.closed
    ON CONFLICT (tenant_id, job, stream_id, key) DO UPDATE SET
        position = excluded.position, reason = excluded.reason, attempts = p.attempts + 1, next_at = excluded.next_at,
        parked = excluded.parked;
    RETURN FOUND;
END $$;

-- What was set aside is no longer: of a job, or of one stream of it, or one thing of that (NULL: all); returns how many.
CREATE FUNCTION memfold.unpark(p_tenant bigint, p_job text, p_stream uuid, p_key bytea) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
DECLARE
    removed bigint;
BEGIN
    DELETE FROM parked p WHERE p.tenant_id = p_tenant AND p.job = p_job
    AND (p_stream IS NULL OR p.stream_id = p_stream) AND (p_key IS NULL OR p.key = p_key);
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN removed;
END $$;
