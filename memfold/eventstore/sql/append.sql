-- Append many requests in one round trip. A request is one or more events of one stream, all or nothing.
--
-- Locks, always in this order, so that no two callers wait for each other: users (shared), heads (exclusive), events.
-- Per request: stream, the user whose key version it was sealed under (the nil uuid: the tenant's own key), the time, an
-- idempotency key with its commitment (empty: none), the stream version a decision was read at (-1: no decision; below: the
-- decision was about the whole stream, at version -2 - expected), and how many events it has. Per event, in request order: everything the three tables keep.
--
-- A decision conflicts if one of its memories was touched after the version it was read at; other memories of the stream
-- may have moved on, unless it was about the whole stream.
--
-- Verdicts: 0 accepted, 1 conflict, 2 key gone, 3 stream gone, 4 duplicate. `version` is the first version written, of a
-- duplicate the first version written then, of a conflict the head's. `positions` holds those of the accepted events in order.
CREATE OR REPLACE FUNCTION memfold.append(
    p_tenant bigint,
    r_stream uuid[], r_user uuid[], r_kek int[], r_at timestamptz[], r_key bytea[], r_commitment bytea[], r_expected int[], r_events int[],
    e_request int[], e_offset int[], e_event uuid[], e_memory uuid[], e_type smallint[], e_schema smallint[],
    e_digest bytea[], e_payload bytea[], e_wrapped bytea[],
    OUT verdict int[], OUT version int[], OUT recorded timestamptz[], OUT positions bigint[]
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
DECLARE
    nobody CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
    requests CONSTANT int := cardinality(r_stream);
    u_id uuid[]; u_version int[];
    h_stream uuid[]; h_version int[]; h_at timestamptz[]; h_closed boolean[]; h_before int[];
    base int[] := array_fill(-1, ARRAY[requests]);
    touched uuid[] := '{}';
    ids uuid[];
    earlier record;
    h int; u int;
    first_event int := 1;
    accepted int := 0;
BEGIN
    SELECT array_agg(k.user_id), array_agg(k.key_version) INTO u_id, u_version
    FROM (SELECT user_id, key_version FROM users
          WHERE tenant_id = p_tenant AND user_id = ANY (r_user) ORDER BY user_id FOR KEY SHARE) k;

    SELECT array_agg(k.stream_id), array_agg(k.version), array_agg(k.recorded_at), array_agg(k.closed)
    INTO h_stream, h_version, h_at, h_closed
    FROM (SELECT s.stream_id, s.version, s.recorded_at, s.closed FROM heads s
          WHERE s.tenant_id = p_tenant AND s.stream_id = ANY (r_stream) ORDER BY s.stream_id FOR UPDATE) k;
    h_before := h_version;

    verdict := array_fill(0, ARRAY[requests]);
    version := array_fill(0, ARRAY[requests]);
    recorded := r_at;

    FOR i IN 1 .. requests LOOP
        h := array_position(h_stream, r_stream[i]);
        u := array_position(u_id, r_user[i]);
        IF h IS NULL OR h_closed[h] THEN
            verdict[i] := 3;
        ELSIF r_user[i] <> nobody AND (u IS NULL OR u_version[u] <> r_kek[i]) THEN
            verdict[i] := 2;
        ELSE
            IF r_key[i] <> '' THEN
                SELECT d.first_version INTO earlier FROM idempotency d
                WHERE d.tenant_id = p_tenant AND d.stream_id = r_stream[i] AND d.key_hmac = r_key[i];
                IF FOUND THEN
                    verdict[i] := 4;
                    version[i] := earlier.first_version;
                END IF;
            END IF;
            IF verdict[i] = 0 AND r_expected[i] < -1 AND h_version[h] <> -2 - r_expected[i] THEN
                verdict[i] := 1;
                version[i] := h_version[h];
            END IF;
            IF verdict[i] = 0 AND r_expected[i] <> -1 THEN
                ids := e_memory[first_event : first_event + r_events[i] - 1];
                IF r_expected[i] >= 0 AND (ids && touched OR (h_before[h] > r_expected[i] AND EXISTS (
                    SELECT FROM events e WHERE e.tenant_id = p_tenant AND e.memory_id = ANY (ids)
                    AND e.stream_id = r_stream[i] AND e.version > r_expected[i]))) THEN
                    verdict[i] := 1;
                    version[i] := h_version[h];
                ELSE
                    touched := touched || ids;
                END IF;
            END IF;
            IF verdict[i] = 0 THEN
                base[i] := h_version[h];
                version[i] := h_version[h] + 1;
                recorded[i] := greatest(h_at[h], r_at[i]);
                h_version[h] := h_version[h] + r_events[i];
                h_at[h] := recorded[i];
                accepted := accepted + r_events[i];
                IF r_key[i] <> '' THEN
                    INSERT INTO idempotency (tenant_id, stream_id, key_hmac, first_version, last_version, commitment)
                    VALUES (p_tenant, r_stream[i], r_key[i], version[i], h_version[h], r_commitment[i]);
                END IF;
            END IF;
        END IF;
        first_event := first_event + r_events[i];
    END LOOP;

    IF accepted = 0 THEN
        RETURN;
    END IF;

    -- Positions are drawn in the order of the sort, after the lock on events is taken: readers rely on both.
    WITH written AS (
        INSERT INTO events (tenant_id, stream_id, version, event_id, memory_id, type, schema_version, recorded_at, digest)
        SELECT p_tenant, r_stream[e.request], base[e.request] + e.place, e.event_id, e.memory_id, e.type, e.schema_version,
               recorded[e.request], e.digest
        FROM unnest(e_request, e_offset, e_event, e_memory, e_type, e_schema, e_digest)
             WITH ORDINALITY e(request, place, event_id, memory_id, type, schema_version, digest, n)
        WHERE base[e.request] >= 0 ORDER BY e.n
        RETURNING position)
    SELECT array_agg(w.position) INTO positions FROM written w;

    IF accepted < cardinality(e_request) THEN
        SELECT array_agg(e.payload ORDER BY e.n), array_agg(e.wrapped ORDER BY e.n), array_agg(e.request ORDER BY e.n)
        INTO e_payload, e_wrapped, e_request
        FROM unnest(e_payload, e_wrapped, e_request) WITH ORDINALITY e(payload, wrapped, request, n)
        WHERE base[e.request] >= 0;
    END IF;

    INSERT INTO payloads (tenant_id, position, sealed)
    SELECT p_tenant, e.position, e.payload FROM unnest(positions, e_payload) e(position, payload);

    INSERT INTO keys (tenant_id, position, wrap_kind, kek_version, wrapped)
    SELECT p_tenant, e.position, CASE WHEN r_user[e.request] = nobody THEN 2 ELSE 1 END, r_kek[e.request], e.wrapped
    FROM unnest(positions, e_request, e_wrapped) e(position, request, wrapped);

    UPDATE heads s SET version = n.version, recorded_at = n.at
    FROM unnest(h_stream, h_version, h_at, h_before) n(stream_id, version, at, before)
    WHERE s.tenant_id = p_tenant AND s.stream_id = n.stream_id AND n.version <> n.before;
END $$;
