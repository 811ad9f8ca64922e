-- The access log in DuckDB, read from the files as they are: `duckdb < duckdb.sql` in the folder of the logs.
-- DISTINCT ON makes one row of a line that stands in two files. `make test-ecosystem` runs this on a log that the proxy wrote.

CREATE OR REPLACE VIEW access AS
SELECT DISTINCT ON (event_id) *
FROM read_json('access.log*', format = 'newline_delimited', union_by_name = true, columns = {
    event_id: 'VARCHAR', seq: 'UBIGINT', instance: 'UUID', time: 'TIMESTAMP', key: 'VARCHAR', "group": 'VARCHAR',
    model: 'VARCHAR', endpoint: 'VARCHAR', transport: 'VARCHAR', turn: 'UINTEGER', upstream: 'VARCHAR', outcome: 'VARCHAR', service_tier: 'VARCHAR',
    service_tier_billed: 'VARCHAR', downgraded: 'BOOLEAN', usage_state: 'VARCHAR', input_tokens: 'UBIGINT',
    cached_input_tokens: 'UBIGINT', cache_write_tokens: 'UBIGINT', output_tokens: 'UBIGINT',
    reasoning_tokens: 'UBIGINT', cost_usd: 'DECIMAL(38, 18)'});

SELECT "group", key, model, service_tier_billed, count(*) AS requests, sum(input_tokens) AS input_tokens,
       sum(output_tokens) AS output_tokens, sum(cost_usd) AS cost_usd,
       count(*) FILTER (usage_state <> 'none' AND cost_usd IS NULL) AS unpriced
FROM access
-- Without the line of a WebSocket's connection, which stands beside those of its responses.
WHERE upstream IS NOT NULL AND NOT (transport = 'websocket' AND turn = 0)
GROUP BY ALL
ORDER BY ALL;
