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

-- As before, and with the keys of some events die those that are bound to them, at any depth. Of these the row stays, without
-- its key: it says what the event was made from.
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

-- As before, but for keys that died with what they were bound to.
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
