-- Append one request, the key of whose first event is bound to other events: it is stored only while all their keys stand,
-- under the locks that forgetting them needs too. Arguments as in append, for one request.
CREATE FUNCTION memfold.append_bound(
    p_tenant bigint,
    r_stream uuid[], r_user uuid[], r_kek int[], r_at timestamptz[], r_key bytea[], r_commitment bytea[], r_expected int[], r_events int[],
    e_request int[], e_offset int[], e_event uuid[], e_memory uuid[], e_type smallint[], e_schema smallint[],
    e_digest bytea[], e_payload bytea[], e_wrapped bytea[], p_sources uuid[],
    OUT verdict int[], OUT version int[], OUT recorded timestamptz[], OUT positions bigint[]
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
DECLARE
    standing int;
BEGIN
    SELECT a.verdict, a.version, a.recorded, a.positions INTO verdict, version, recorded, positions
    FROM memfold.append(p_tenant, r_stream, r_user, r_kek, r_at, r_key, r_commitment, r_expected, r_events, e_request, e_offset,
                        e_event, e_memory, e_type, e_schema, e_digest, e_payload, e_wrapped) a;
    IF verdict[1] <> 0 THEN
        RETURN;
    END IF;
    PERFORM FROM keys k WHERE k.tenant_id = p_tenant AND k.position IN (
        SELECT e.position FROM events e
        WHERE e.tenant_id = p_tenant AND e.stream_id = r_stream[1] AND e.event_id = ANY (p_sources)
    ) ORDER BY k.position FOR KEY SHARE;
    GET DIAGNOSTICS standing = ROW_COUNT;
    IF standing <> cardinality(p_sources) THEN
        RAISE EXCEPTION 'a source was forgotten meanwhile' USING ERRCODE = 'MF002';
    END IF;
    UPDATE keys SET wrap_kind = 3, kek_version = 0, sources = p_sources
    WHERE tenant_id = p_tenant AND position = positions[1];
END $$;
