-- What summarizers have charged: one row a tenant, day and model, that only grows.

-- Add what was charged.
CREATE FUNCTION memfold.spend(
    p_tenant bigint, p_day date, p_model text, p_prompt_tokens bigint, p_completion_tokens bigint, p_cost double precision, p_calls bigint
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, memfold, memfold_keys, pg_temp AS $$
BEGIN
    IF least(p_prompt_tokens, p_completion_tokens, p_calls) < 0 OR NOT p_cost BETWEEN 0 AND 1e15 THEN
        RAISE 'nobody is paid for summarizing' USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO spending AS s (tenant_id, day, model, prompt_tokens, completion_tokens, cost, calls)
    VALUES (p_tenant, p_day, p_model, p_prompt_tokens, p_completion_tokens, p_cost, p_calls)
    ON CONFLICT (tenant_id, day, model) DO UPDATE SET
        prompt_tokens = s.prompt_tokens + excluded.prompt_tokens,
        completion_tokens = s.completion_tokens + excluded.completion_tokens,
        cost = s.cost + excluded.cost,
        calls = s.calls + excluded.calls;
END $$;
