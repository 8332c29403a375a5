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
