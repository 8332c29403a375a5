-- Where the log stands, and who may still owe a position at or below it. The two steps must stay in this order: whoever drew
-- a position at or below `head` held its lock on events before we look for holders (see docs/log.md).
CREATE FUNCTION memfold.tick(known bigint, waiting boolean, OUT head bigint, OUT holders text[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the settled position must be read under READ COMMITTED: rows would be read with an older snapshot';
    END IF;
    -- Not SELECT last_value: that reads the sequence's page without its lock, and nextval, when it logs ahead, puts a value 32
    -- further there for a moment. This function takes the lock. It says NULL to whoever lacks the privilege; the owner does not.
    head := coalesce(pg_sequence_last_value('memfold.position'::regclass), 0);
    IF head > known OR waiting THEN
        holders := ARRAY(SELECT virtualtransaction FROM pg_locks
                         WHERE locktype = 'relation' AND relation = 'memfold.events'::regclass
                           AND mode = 'RowExclusiveLock' AND granted
                           AND database = (SELECT oid FROM pg_database WHERE datname = current_database()));
    END IF;
END $$;
