-- The access log in DuckDB, read from the files as they are: `duckdb < duckdb.sql` in the folder of the logs.
-- DISTINCT ON makes one row of a line that stands in two files. `make test-ecosystem` runs this on a log that the proxy wrote.

-- All rows and columns, whatever the width of the terminal: an invoice is not to be cut in the middle.
.maxrows -1
.maxwidth -1

CREATE OR REPLACE VIEW access AS
SELECT DISTINCT ON (event_id) *
FROM read_json('access.log*', format = 'newline_delimited', union_by_name = true, columns = {
    event_id: 'VARCHAR', seq: 'UBIGINT', instance: 'UUID', time: 'TIMESTAMP', key: 'VARCHAR', key_id: 'VARCHAR', "group": 'VARCHAR',
    model: 'VARCHAR', model_served: 'VARCHAR', endpoint: 'VARCHAR', transport: 'VARCHAR', turn: 'UINTEGER', upstream: 'VARCHAR', outcome: 'VARCHAR', service_tier: 'VARCHAR',
    service_tier_billed: 'VARCHAR', downgraded: 'BOOLEAN', tier_refused: 'BOOLEAN', upstream_error: 'VARCHAR', usage_state: 'VARCHAR',
    of_request: 'UUID', input_tokens: 'UBIGINT', cached_input_tokens: 'UBIGINT', cache_write_tokens: 'UBIGINT',
    cache_write_long_tokens: 'UBIGINT', output_tokens: 'UBIGINT', reasoning_tokens: 'UBIGINT', cost_usd: 'DECIMAL(38, 18)', prices: 'VARCHAR'});

-- What each team used in each month (UTC), by key, model and the tier that is billed; last a row for the month and team,
-- then one for each month and the total. `unpriced` has to be 0 before a sum is an invoice.
SELECT strftime(date_trunc('month', time), '%Y-%m') AS month, "group", key, model, model_served, service_tier_billed,
       count(*) AS requests, sum(input_tokens) AS input_tokens, sum(cached_input_tokens) AS cached_input_tokens,
       sum(cache_write_tokens) AS cache_write_tokens, sum(output_tokens) AS output_tokens, sum(cost_usd) AS cost_usd,
       count(*) FILTER (usage_state IN ('final', 'partial') AND cost_usd IS NULL) AS unpriced
FROM access
-- Without the line of a WebSocket's connection, which stands beside those of its responses.
WHERE upstream IS NOT NULL AND NOT (transport = 'websocket' AND turn = 0)
GROUP BY GROUPING SETS ((month, "group", key, model, model_served, service_tier_billed), (month, "group"), (month), ())
ORDER BY month NULLS LAST, "group" NULLS LAST, key NULLS LAST, model NULLS LAST, model_served NULLS LAST, service_tier_billed NULLS LAST;
