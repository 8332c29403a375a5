-- What workers note about their jobs: one row a tenant and job, written by whoever has its lease.

-- A job begins.
CREATE FUNCTION memfold.job_started(p_tenant bigint, p_name text, p_worker text, p_at timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
BEGIN
    INSERT INTO jobs AS j (tenant_id, name, worker, last_started_at, beat_at, running, runs, failures)
    VALUES (p_tenant, p_name, p_worker, p_at, p_at, true, 0, 0)
    ON CONFLICT (tenant_id, name) DO UPDATE SET
        worker = p_worker, last_started_at = p_at, beat_at = p_at, running = true;
END $$;

-- A job is at it still, or it is known when it is to begin again. The one who was overtaken by another worker is not heard.
CREATE FUNCTION memfold.job_beat(p_tenant bigint, p_name text, p_worker text, p_at timestamptz, p_next_at timestamptz) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
BEGIN
    UPDATE jobs SET beat_at = p_at, next_at = coalesce(p_next_at, next_at)
    WHERE tenant_id = p_tenant AND name = p_name AND worker = p_worker;
    RETURN FOUND;
END $$;

-- A job has ended: well, or failed; and what there is to say about it, if anything.
CREATE FUNCTION memfold.job_finished(
    p_tenant bigint, p_name text, p_worker text, p_at timestamptz, p_failed boolean, p_reason text
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
BEGIN
    UPDATE jobs SET
        last_finished_at = p_at, beat_at = p_at, running = false, runs = runs + 1, reason = p_reason,
        failures = CASE WHEN p_failed THEN failures + 1 ELSE 0 END
    WHERE tenant_id = p_tenant AND name = p_name AND worker = p_worker;
    RETURN FOUND;
END $$;
