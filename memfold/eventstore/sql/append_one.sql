-- The same contract for the most frequent request, one event without a decision and without an idempotency key: a third of
-- the CPU, because nothing is an array. The same locks in the same order.
CREATE FUNCTION memfold.append_one(
    p_tenant bigint, p_stream uuid, p_user uuid, p_kek int, p_at timestamptz,
    p_event uuid, p_memory uuid, p_type smallint, p_schema smallint, p_digest bytea, p_payload bytea, p_wrapped bytea,
    OUT verdict int, OUT version int, OUT recorded timestamptz, OUT "position" bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
DECLARE
    nobody CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
BEGIN
    IF p_user <> nobody THEN
        PERFORM FROM users WHERE tenant_id = p_tenant AND user_id = p_user AND key_version = p_kek FOR KEY SHARE;
        IF NOT FOUND THEN
            -- A closed stream outweighs a missing key, as in append: the caller looks the session up anew either way.
            verdict := 2;
            RETURN;
        END IF;
    END IF;
    UPDATE heads h SET version = h.version + 1, recorded_at = greatest(h.recorded_at, p_at)
    WHERE h.tenant_id = p_tenant AND h.stream_id = p_stream AND NOT h.closed
    RETURNING h.version, h.recorded_at INTO version, recorded;
    IF NOT FOUND THEN
        verdict := 3;
        RETURN;
    END IF;
    INSERT INTO events AS e (tenant_id, stream_id, version, event_id, memory_id, type, schema_version, recorded_at, digest)
    VALUES (p_tenant, p_stream, append_one.version, p_event, p_memory, p_type, p_schema, recorded, p_digest)
    RETURNING e.position INTO append_one."position";
    INSERT INTO payloads (tenant_id, position, sealed) VALUES (p_tenant, append_one."position", p_payload);
    INSERT INTO keys (tenant_id, position, wrap_kind, kek_version, wrapped)
    VALUES (p_tenant, append_one."position", CASE WHEN p_user = nobody THEN 2 ELSE 1 END, p_kek, p_wrapped);
    verdict := 0;
END $$;
