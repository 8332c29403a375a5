-- Users and sessions are deletable rows with random ids, found by a keyed hash of their name. Two processes that open the
-- same name at once get the same row.

CREATE FUNCTION memfold.open_tenant(p_name_hmac bytea, p_tenant bigint, p_stream uuid, p_wrapped bytea, p_at timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
BEGIN
    INSERT INTO tenants (tenant_id, name_hmac, stream_id, wrapped_key, key_version)
    VALUES (p_tenant, p_name_hmac, p_stream, p_wrapped, 1) ON CONFLICT (name_hmac) DO NOTHING;
    IF FOUND THEN
        INSERT INTO heads (tenant_id, stream_id, version, recorded_at, closed) VALUES (p_tenant, p_stream, 0, p_at, false);
    END IF;
END $$;

CREATE FUNCTION memfold.open_master(p_wrapped_lookup bytea) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
    INSERT INTO memfold_keys.master (wrapped_lookup) VALUES (p_wrapped_lookup) ON CONFLICT (singleton) DO NOTHING
$$;

CREATE FUNCTION memfold.open_user(p_tenant bigint, p_user uuid, p_name_hmac bytea, p_sealed_name bytea, p_wrapped bytea) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
    INSERT INTO memfold_keys.users (tenant_id, user_id, name_hmac, sealed_name, wrapped_key, key_version)
    VALUES (p_tenant, p_user, p_name_hmac, p_sealed_name, p_wrapped, 1) ON CONFLICT (tenant_id, name_hmac) DO NOTHING
$$;

-- False if the user's key is gone: open the user again. The user row is locked first, as everywhere.
CREATE FUNCTION memfold.open_session(
    p_tenant bigint, p_stream uuid, p_name_hmac bytea, p_user uuid, p_kek int, p_sealed_name bytea, p_at timestamptz
) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
BEGIN
    PERFORM FROM users WHERE tenant_id = p_tenant AND user_id = p_user AND key_version = p_kek FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO sessions (tenant_id, stream_id, name_hmac, user_id, sealed_name, created_at)
    VALUES (p_tenant, p_stream, p_name_hmac, p_user, p_sealed_name, p_at) ON CONFLICT (tenant_id, name_hmac) DO NOTHING;
    IF FOUND THEN
        INSERT INTO heads (tenant_id, stream_id, version, recorded_at, closed) VALUES (p_tenant, p_stream, 0, p_at, false);
    END IF;
    RETURN true;
END $$;
