-- The application role can call the functions and read, nothing else. Where roles may not be made, triggers stand alone,
-- and start-up and doctor say so.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'memfold_app') THEN
        CREATE ROLE memfold_app NOLOGIN;
    END IF;
    EXECUTE format('GRANT memfold_app TO %I', current_user);
EXCEPTION
    WHEN insufficient_privilege OR duplicate_object OR unique_violation THEN NULL;
END $$;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'memfold_app') THEN
        GRANT USAGE ON SCHEMA memfold, memfold_keys TO memfold_app;
        GRANT SELECT ON ALL TABLES IN SCHEMA memfold, memfold_keys TO memfold_app;
        GRANT SELECT ON SEQUENCE memfold.position TO memfold_app;
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA memfold TO memfold_app;
        REVOKE EXECUTE ON FUNCTION memfold.destroy(bigint, bigint[]) FROM memfold_app; -- only the forgetting functions call it
    END IF;
END $$;
