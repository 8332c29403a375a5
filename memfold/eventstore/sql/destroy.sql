-- Delete keys first: whoever stores something derived holds the key row, so we wait for them and then see what they stored.
CREATE FUNCTION memfold.destroy(p_tenant bigint, doomed bigint[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
BEGIN
    PERFORM FROM keys k WHERE k.tenant_id = p_tenant AND k.position = ANY (doomed) ORDER BY k.position FOR UPDATE;
    DELETE FROM keys k WHERE k.tenant_id = p_tenant AND k.position = ANY (doomed);
    DELETE FROM payloads p WHERE p.tenant_id = p_tenant AND p.position = ANY (doomed);
    DELETE FROM embeddings v WHERE v.tenant_id = p_tenant AND v.position = ANY (doomed);
END $$;

-- Store what was derived from events, only where the event's key still stands; returns how many were stored.
CREATE FUNCTION memfold.store_embeddings(p_tenant bigint, p_model text, p_positions bigint[], p_sealed bytea[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
DECLARE
    stored bigint;
BEGIN
    INSERT INTO embeddings (tenant_id, position, model, sealed)
    SELECT p_tenant, k.position, p_model, v.sealed
    FROM (SELECT position FROM keys WHERE tenant_id = p_tenant AND position = ANY (p_positions) ORDER BY position FOR KEY SHARE) k
    JOIN unnest(p_positions, p_sealed) v(position, sealed) USING (position)
    ON CONFLICT (tenant_id, position, model) DO NOTHING;
    GET DIAGNOSTICS stored = ROW_COUNT;
    RETURN stored;
END $$;
