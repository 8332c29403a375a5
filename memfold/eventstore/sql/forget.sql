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
