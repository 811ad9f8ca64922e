-- The access log in ClickHouse: the table, an import that may be repeated, and the questions of billing.
--
-- Every line has an `event_id` of its own, and the table keeps one row for each. A file may be imported again after it has
-- grown, by two shippers, or after a failure in between: with FINAL no line counts twice. `make test-ecosystem` runs this
-- file on a log that the proxy wrote.

-- A WebSocket has a line for the connection (`turn` 0) beside those of its responses; only these are counted.

-- == table ==

CREATE DATABASE IF NOT EXISTS tiergate;

CREATE TABLE IF NOT EXISTS tiergate.access
(
    schema                 UInt8,
    event_id               String,
    seq                    UInt64,
    instance               UUID,
    time                   DateTime64(6, 'UTC'),
    duration_ms            Float64,
    ttfb_ms                Nullable(Float64),
    request_id             UUID,
    turn                   UInt32,
    client                 Nullable(String),
    user_agent             Nullable(String),
    key                    LowCardinality(Nullable(String)),
    `group`                LowCardinality(Nullable(String)),
    platform               LowCardinality(Nullable(String)),
    policy                 LowCardinality(String),
    method                 LowCardinality(String),
    path                   String,
    endpoint               LowCardinality(String),
    transport              LowCardinality(String),
    model                  LowCardinality(Nullable(String)),
    service_tier           LowCardinality(Nullable(String)),
    service_tier_client    LowCardinality(Nullable(String)),
    service_tier_served    LowCardinality(Nullable(String)),
    service_tier_billed    LowCardinality(Nullable(String)),
    tier_reason            LowCardinality(Nullable(String)),
    tier_billed_by         LowCardinality(Nullable(String)),
    downgraded             Bool,
    upstream               LowCardinality(Nullable(String)),
    upstream_status        Nullable(UInt16),
    upstream_request_id    Nullable(String),
    response_id            Nullable(String),
    status                 Nullable(UInt16),
    outcome                LowCardinality(String),
    error                  LowCardinality(Nullable(String)),
    usage_state            LowCardinality(String),
    terminal_event         LowCardinality(Nullable(String)),
    input_tokens           Nullable(UInt64),
    cached_input_tokens    Nullable(UInt64),
    cache_write_tokens     Nullable(UInt64),
    output_tokens          Nullable(UInt64),
    reasoning_tokens       Nullable(UInt64),
    -- Exact: the log holds it as a string. More than 18 decimals would not be kept.
    cost_usd               Nullable(Decimal(38, 18)),
    request_bytes          UInt64,
    upstream_request_bytes UInt64,
    response_bytes         UInt64,
    -- Added since the first release: a table that was made before gets them by `ALTER TABLE … ADD COLUMN` as they stand here.
    model_served           LowCardinality(Nullable(String)),
    tier_refused           Bool,
    upstream_error         LowCardinality(Nullable(String)),
    cache_write_long_tokens Nullable(UInt64),
    of_request             Nullable(UUID),
    bridge                 LowCardinality(Nullable(String)),
    bridge_dropped         Nullable(String),
    key_id                 LowCardinality(Nullable(String)),
    prices                 LowCardinality(Nullable(String)),
    model_upstream         LowCardinality(Nullable(String))
)
-- Rows are made one only within a partition: `time` is of the line, so a line always comes to the same one.
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(time)
ORDER BY event_id;

-- == import ==
-- On the server's own disk, below its `user_files_path`. From elsewhere:
--   clickhouse client --date_time_input_format=best_effort \
--     --query 'INSERT INTO tiergate.access FORMAT JSONEachRow' < access.log
-- `.gz` and `.zst` files are read as they are.

INSERT INTO tiergate.access
SELECT * FROM file('access.log*', 'JSONEachRow')
SETTINGS date_time_input_format = 'best_effort', input_format_skip_unknown_fields = 1;

-- == invoice ==
-- What each key used in each month (UTC), by the tier that is billed. `unpriced` has to be 0 before the sum is an invoice:
-- these requests used tokens for which the price file had no price. `cache_write_long_tokens` are a part of
-- `cache_write_tokens`, and those of the input; the price is that of the model that served, where the upstream is trusted.

SELECT
    toStartOfMonth(time) AS month,
    `group`,
    key,
    model,
    service_tier_billed,
    count() AS requests,
    sum(input_tokens) AS input_tokens,
    sum(cached_input_tokens) AS cached_input_tokens,
    sum(cache_write_tokens) AS cache_write_tokens,
    sum(output_tokens) AS output_tokens,
    sum(reasoning_tokens) AS reasoning_tokens,
    sum(cost_usd) AS cost_usd,
    countIf(usage_state IN ('final', 'partial') AND line.cost_usd IS NULL) AS unpriced
FROM tiergate.access AS line FINAL
WHERE upstream IS NOT NULL AND NOT (transport = 'websocket' AND turn = 0)
GROUP BY month, `group`, key, model, service_tier_billed
ORDER BY month, `group`, key, model, service_tier_billed;

-- == teams ==
-- The same by month and team, then one row for each month, and the total: rows of a sum have no team, or no month either.

SELECT
    if(grouping(month) = 1, NULL, toString(month)) AS of_month,
    if(grouping(team) = 1, 'total', team) AS of_team,
    count() AS requests,
    sum(input_tokens) AS input_tokens,
    sum(output_tokens) AS output_tokens,
    sum(cost_usd) AS cost_usd,
    countIf(usage_state IN ('final', 'partial') AND line.cost_usd IS NULL) AS unpriced
FROM (
    SELECT *, toStartOfMonth(time) AS month, ifNull(`group`, '') AS team
    FROM tiergate.access FINAL
) AS line
WHERE upstream IS NOT NULL AND NOT (transport = 'websocket' AND turn = 0)
GROUP BY GROUPING SETS ((month, team), (month), ())
ORDER BY of_month NULLS LAST, grouping(team), of_team;

-- == models ==
-- Where another model served than was asked for: what was sent where, and what it cost.

SELECT `group`, upstream, model, model_served, count() AS requests, sum(cost_usd) AS cost_usd
FROM tiergate.access FINAL
WHERE model_served IS NOT NULL AND ifNull(model, '') != model_served
GROUP BY `group`, upstream, model, model_served
ORDER BY requests DESC, `group`, upstream, model, model_served;

-- == refusals ==
-- What upstreams refused, and why; `tier_refused` is the number of those that named the service tier.

SELECT upstream, model, upstream_status, upstream_error, count() AS requests, countIf(tier_refused) AS tier_refused
FROM tiergate.access FINAL
WHERE upstream_error IS NOT NULL
GROUP BY upstream, model, upstream_status, upstream_error
ORDER BY requests DESC, upstream, model, upstream_status, upstream_error;

-- == tiers ==
-- What was asked for, sent and served. `not_priority` has to be 0 for `group_force` and `fast_mode_beta`; `downgraded` is
-- what was sent as priority and, by a trusted upstream's own word, served otherwise.

SELECT
    `group`,
    tier_reason,
    count() AS requests,
    countIf(ifNull(service_tier_client, '') != 'priority') AS changed_from_client,
    countIf(upstream_request_bytes > 0 AND ifNull(service_tier, '') != 'priority') AS not_priority,
    countIf(downgraded) AS downgraded,
    sumIf(cost_usd, service_tier_billed = 'priority') AS priority_usd
FROM tiergate.access FINAL
WHERE upstream IS NOT NULL AND endpoint != 'other' AND NOT (transport = 'websocket' AND turn = 0)
GROUP BY `group`, tier_reason
ORDER BY `group`, tier_reason;

-- == unbilled ==
-- What reached an upstream and cannot be billed from its line alone: no usage, or only a part of it; `deferred` comes with a
-- line of its own, whose `of_request` is this `request_id`. Compare with the upstream's own invoice by
-- `upstream_request_id` and `response_id`.

SELECT upstream, endpoint, outcome, usage_state, count() AS requests, sum(response_bytes) AS response_bytes
FROM tiergate.access FINAL
WHERE upstream IS NOT NULL AND endpoint NOT IN ('other', 'responses_item') AND NOT (transport = 'websocket' AND turn = 0) AND usage_state != 'final'
GROUP BY upstream, endpoint, outcome, usage_state
ORDER BY requests DESC, upstream, endpoint, outcome, usage_state;

-- == lost ==
-- Lines that the table does not have. `seq` counts the lines of a process from 0; the newest lines of a running process
-- may still be under way, those between have to be there.

SELECT instance, count() AS lines, max(seq) + 1 - count() AS lost
FROM tiergate.access FINAL
GROUP BY instance
HAVING lost > 0
ORDER BY instance;
