-- What is derived from events and kept beside them may be made anew, and a follower of the log remembers how far it got.

-- Put other vectors in the place of stored ones, only where there is one; returns how many. `destroy` (forget.sql) waits for
-- the rows we hold and deletes them; where it was first, there is nothing to replace.
CREATE FUNCTION memfold.replace_embeddings(p_tenant bigint, p_model text, p_positions bigint[], p_sealed bytea[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
DECLARE
    replaced bigint;
BEGIN
    PERFORM FROM keys WHERE tenant_id = p_tenant AND position = ANY (p_positions) ORDER BY position FOR KEY SHARE;
    UPDATE embeddings e SET sealed = n.sealed
    FROM unnest(p_positions, p_sealed) n(position, sealed)
    WHERE e.tenant_id = p_tenant AND e.model = p_model AND e.position = n.position;
    GET DIAGNOSTICS replaced = ROW_COUNT;
    RETURN replaced;
END $$;

-- Move a checkpoint on, if it still stands where the caller read it (0: not there yet); says whether it did.
CREATE FUNCTION memfold.move_checkpoint(p_tenant bigint, p_name text, p_from bigint, p_to bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
BEGIN
    IF p_from = 0 THEN
        INSERT INTO checkpoints (tenant_id, name, position) VALUES (p_tenant, p_name, 0) ON CONFLICT (tenant_id, name) DO NOTHING;
    END IF;
    UPDATE checkpoints SET position = p_to WHERE tenant_id = p_tenant AND name = p_name AND position = p_from;
    RETURN FOUND;
END $$;
