-- The spine is never changed: nobody updates, deletes or truncates it, not even the owner by accident.
CREATE FUNCTION memfold.refuse_change() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'memfold.events is immutable: % is refused', TG_OP USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER events_immutable BEFORE UPDATE OR DELETE ON memfold.events
    FOR EACH ROW EXECUTE FUNCTION memfold.refuse_change();
CREATE TRIGGER events_no_truncate BEFORE TRUNCATE ON memfold.events
    FOR EACH STATEMENT EXECUTE FUNCTION memfold.refuse_change();
