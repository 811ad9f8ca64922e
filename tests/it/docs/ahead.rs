//! What the documentation tells of before the program has it. Take an entry out when its feature lands; the tests hold either way.

/// Names of tables that are not compared yet, by what they are names of.
const NAMES: [(&str, &[&str]); 9] = [
    (
        "commands",
        &["new-key", "reconcile", "completions", "man", "init"],
    ),
    ("errors", &["budget_exhausted"]),
    (
        "fields",
        &[
            "key_id",
            "model_served",
            "tier_refused",
            "upstream_error",
            "cache_write_long_tokens",
            "of_request",
            "prices",
        ],
    ),
    (
        "metrics",
        &[
            "tiergate_tier_refused_total",
            "tiergate_cost_usd_total",
            "tiergate_usage_missing_total",
            "tiergate_budget_used_ratio",
            "tiergate_build_info",
            "tiergate_prices_reloads_total",
            "tiergate_prices_info",
            "tiergate_prices_last_success_timestamp_seconds",
        ],
    ),
    (
        "options",
        &[
            "check --strict",
            "explain --name",
            "explain --digest",
            "explain --exit-code",
            "diff --prices",
            "diff --exit-code",
            "report --time-zone",
            "report --month",
            "report --where",
            "report --sort",
            "report --top",
            "report --columns",
            "report --premium",
            "report --rate",
            "report --html",
        ],
    ),
    (
        "columns",
        &[
            "refused",
            "without_usage",
            "cache_write_long_tokens",
            "cost_share",
        ],
    ),
    (
        "alerts",
        &[
            "TiergateUsageMissing",
            "TiergateTierRefused",
            "TiergatePricesReloadFailing",
            "TiergateBudgetNearlyUsed",
        ],
    ),
    ("targets", &["make assets"]),
    ("fuzz targets", &["http1"]),
];

/// Settings, by the beginning of their path.
const SETTINGS: [&str; 15] = [
    "upstreams.*.forwarded_headers",
    "upstreams.*.headers",
    "upstreams.*.chat_stream_usage",
    "upstreams.*.http2.enabled",
    "state",
    "health_path",
    "cors",
    "groups.*.force_tier",
    "groups.*.except_models",
    "groups.*.only_models",
    "groups.*.on_tier_refused",
    "groups.*.budget",
    "prices.*.tiers.*.cache_write_long",
    "prices.*.tiers.*.long.cache_write_long",
    "codex_gateway",
];

/// Words by which a YAML block is known that does not pass `check` yet.
const IN_BLOCKS: [&str; 4] = ["headers:", "except_models", "force_tier", "budget:"];

/// Rooms of the source that are still to be moved into.
const ROOMS: [&str; 0] = [];

/// Whether `conf/schema/` has yet to come.
pub const SCHEMA: bool = true;

pub fn is_ahead(what: &str, name: &str) -> bool {
    match what {
        "settings" => SETTINGS.iter().any(|begin| name.starts_with(begin)),
        "rooms" => ROOMS.contains(&name),
        _ => NAMES
            .iter()
            .any(|(of, names)| *of == what && names.contains(&name)),
    }
}

pub fn block_is_ahead(block: &str) -> bool {
    IN_BLOCKS.iter().any(|word| block.contains(word))
}
