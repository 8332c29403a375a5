-- Forgetting appends its facts and destroys in one transaction, under the locks of the streams it touches: nothing that was
-- decided before can be appended behind it, and nothing derived can be stored behind it.

-- Forget the memories that the appended facts name (one fact a memory, in one stream). Arguments as in append.
CREATE OR REPLACE FUNCTION memfold.forget_memories(
    p_tenant bigint,
    r_stream uuid[], r_user uuid[], r_kek int[], r_at timestamptz[], r_key bytea[], r_commitment bytea[], r_expected int[], r_events int[],
    e_request int[], e_offset int[], e_event uuid[], e_memory uuid[], e_type smallint[], e_schema smallint[],
    e_digest bytea[], e_payload bytea[], e_wrapped bytea[],
    OUT verdict int[], OUT version int[], OUT recorded timestamptz[], OUT positions bigint[]
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
DECLARE
    doomed bigint[];
BEGIN
    SELECT a.verdict, a.version, a.recorded, a.positions INTO verdict, version, recorded, positions
    FROM memfold.append(p_tenant, r_stream, r_user, r_kek, r_at, r_key, r_commitment, r_expected, r_events, e_request, e_offset,
                        e_event, e_memory, e_type, e_schema, e_digest, e_payload, e_wrapped) a;
    IF verdict[1] <> 0 THEN
        RETURN;
    END IF;
    SELECT array_agg(e.position) INTO doomed FROM events e
    WHERE e.tenant_id = p_tenant AND e.memory_id = ANY (e_memory) AND e.position <> ALL (positions);
    PERFORM memfold.destroy(p_tenant, doomed);
END $$;

-- Forget whole streams: one closing fact per stream, after which it takes no more. With `p_user`, the user's key goes too,
-- and the streams must be all the user has, else nothing happens and `verdict` is {1}: read again.
CREATE OR REPLACE FUNCTION memfold.forget_streams(
    p_tenant bigint, p_user uuid, p_name_hmac bytea,
    r_stream uuid[], r_user uuid[], r_kek int[], r_at timestamptz[], r_key bytea[], r_commitment bytea[], r_expected int[], r_events int[],
    e_request int[], e_offset int[], e_event uuid[], e_memory uuid[], e_type smallint[], e_schema smallint[],
    e_digest bytea[], e_payload bytea[], e_wrapped bytea[], p_closing uuid[],
    OUT verdict int[], OUT version int[], OUT recorded timestamptz[], OUT positions bigint[]
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
DECLARE
    doomed bigint[];
    owned uuid[];
BEGIN
    IF p_user IS NOT NULL THEN
        PERFORM FROM users WHERE tenant_id = p_tenant AND user_id = p_user FOR UPDATE;
        IF NOT FOUND THEN
            verdict := '{1}';
            RETURN;
        END IF;
        SELECT coalesce(array_agg(s.stream_id), '{}') INTO owned FROM sessions s WHERE s.tenant_id = p_tenant AND s.user_id = p_user;
        IF NOT (owned <@ p_closing AND p_closing <@ owned) THEN
            verdict := '{1}';
            RETURN;
        END IF;
    END IF;
    SELECT a.verdict, a.version, a.recorded, a.positions INTO verdict, version, recorded, positions
    FROM memfold.append(p_tenant, r_stream, r_user, r_kek, r_at, r_key, r_commitment, r_expected, r_events, e_request, e_offset,
                        e_event, e_memory, e_type, e_schema, e_digest, e_payload, e_wrapped) a;
    IF 0 <> ANY (verdict) THEN
        -- One of the streams was closed by another: undo the facts that were written for the others.
        RAISE EXCEPTION 'a stream was closed meanwhile' USING ERRCODE = 'MF001';
    END IF;
    SELECT array_agg(e.position) INTO doomed FROM events e
    WHERE e.tenant_id = p_tenant AND e.stream_id = ANY (p_closing) AND e.position <> ALL (positions);
    PERFORM memfold.destroy(p_tenant, doomed);
    UPDATE heads SET closed = true WHERE tenant_id = p_tenant AND stream_id = ANY (p_closing);
    DELETE FROM sessions WHERE tenant_id = p_tenant AND stream_id = ANY (p_closing);
    DELETE FROM idempotency WHERE tenant_id = p_tenant AND stream_id = ANY (p_closing);
    PERFORM memfold.drop_sessions(p_tenant, p_closing);
    DELETE FROM users WHERE tenant_id = p_tenant AND user_id = p_user;
    INSERT INTO erasures (tenant_id, name_hmac, position, streams)
    VALUES (p_tenant, p_name_hmac, positions[cardinality(positions)], p_closing)
    ON CONFLICT (tenant_id, name_hmac) DO UPDATE SET position = excluded.position, streams = excluded.streams;
END $$;

-- Delete keys first: whoever stores something derived holds the key row, so we wait for them and then see what they stored.
-- With the keys die those that are bound to them, at any depth. Of these the row stays, without its key: it says what the event
-- was made from.
CREATE OR REPLACE FUNCTION memfold.destroy(p_tenant bigint, doomed bigint[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
DECLARE
    dying bigint[];
BEGIN
    PERFORM FROM keys k WHERE k.tenant_id = p_tenant AND k.position = ANY (doomed) ORDER BY k.position FOR UPDATE;
    WITH RECURSIVE gone AS (
        SELECT e.event_id, e.position FROM events e WHERE e.tenant_id = p_tenant AND e.position = ANY (doomed)
        UNION
        SELECT e.event_id, e.position FROM gone
        JOIN keys k ON k.tenant_id = p_tenant AND k.wrap_kind = 3 AND k.sources @> ARRAY[gone.event_id]
        JOIN events e ON e.tenant_id = p_tenant AND e.position = k.position
    )
    SELECT array_agg(g.position ORDER BY g.position) INTO dying FROM gone g WHERE g.position <> ALL (doomed);
    DELETE FROM keys k WHERE k.tenant_id = p_tenant AND k.position = ANY (doomed);
    DELETE FROM payloads p WHERE p.tenant_id = p_tenant AND p.position = ANY (doomed);
    DELETE FROM embeddings v WHERE v.tenant_id = p_tenant AND v.position = ANY (doomed);
    IF dying IS NOT NULL THEN
        PERFORM FROM keys k WHERE k.tenant_id = p_tenant AND k.position = ANY (dying) ORDER BY k.position FOR UPDATE;
        UPDATE keys k SET wrapped = '' WHERE k.tenant_id = p_tenant AND k.position = ANY (dying);
        DELETE FROM payloads p WHERE p.tenant_id = p_tenant AND p.position = ANY (dying);
        DELETE FROM embeddings v WHERE v.tenant_id = p_tenant AND v.position = ANY (dying);
    END IF;
END $$;

-- Store what was derived from events, only where the event's key still stands; returns how many were stored.
CREATE OR REPLACE FUNCTION memfold.store_embeddings(p_tenant bigint, p_model text, p_positions bigint[], p_sealed bytea[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
DECLARE
    stored bigint;
BEGIN
    INSERT INTO embeddings (tenant_id, position, model, sealed)
    SELECT p_tenant, k.position, p_model, v.sealed
    FROM (SELECT position FROM keys WHERE tenant_id = p_tenant AND position = ANY (p_positions) AND wrapped <> ''
          ORDER BY position FOR KEY SHARE) k
    JOIN unnest(p_positions, p_sealed) v(position, sealed) USING (position)
    ON CONFLICT (tenant_id, position, model) DO NOTHING;
    GET DIAGNOSTICS stored = ROW_COUNT;
    RETURN stored;
END $$;
