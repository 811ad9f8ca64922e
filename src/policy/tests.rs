//! What the policy makes of requests, by its files.

use super::*;
use crate::codec::service_tier::{Edit, Observer, RequestFields, Tier};
use crate::config::Config;
use crate::config::pattern::Pattern;
use crate::policy::api_key::key_id;
use http::HeaderValue;
use proptest::prelude::*;

const CONFIG: &str = "
policy: policy.yaml
upstreams:
  tier: {url: http://u}
  beta: {url: http://u, messages: beta}
  both: {url: http://u, kind: gateway}
  off: {url: http://u, kind: anthropic}
";
const POLICY: &str = "
version: 1
groups:
  forced-tier: {platform: openai, upstream: tier, force_fast_mode: true}
  forced-beta: {platform: openai, upstream: beta, force_fast_mode: true}
  forced-both: {platform: openai, upstream: both, force_openai_fast: true}
  forced-off: {platform: openai, upstream: off, force_fast_mode: true}
  plain-tier: {platform: openai, upstream: tier}
  plain-beta: {platform: openai, upstream: beta}
  plain-both: {platform: openai, upstream: both}
  plain-off: {platform: openai, upstream: off}
  nobeta: {platform: openai, upstream: tier, fast_mode_beta: false}
  claude: {platform: anthropic, upstream: tier, force_fast_mode: true}
  other: {platform: other, upstream: tier, force_fast_mode: true}
  allowed: {platform: openai, upstream: tier, force_fast_mode: true, batches: allow}
  closed: {platform: openai, upstream: tier, enabled: false}
keys:
  k-forced-tier: {group: forced-tier, name: ann}
  k-forced-beta: {group: forced-beta, name: ann}
  k-forced-both: {group: forced-both}
  k-forced-off: forced-off
  k-plain-tier: plain-tier
  k-plain-beta: plain-beta
  k-plain-both: plain-both
  k-plain-off: plain-off
  k-nobeta: nobeta
  k-claude: claude
  k-other: other
  k-allowed: allowed
  k-closed: closed
  k-off: {group: plain-tier, name: off, enabled: false}
  0123: plain-tier
";
const SET: Edit = Edit::Set(Tier::Priority);

fn config() -> Config {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiergate.yaml");
    std::fs::write(&path, CONFIG).unwrap();
    Config::load(&path).unwrap().0
}

fn parse(text: &str) -> Result<Policy, String> {
    let told = |diagnostics: Vec<Diagnostic>| {
        diagnostics
            .iter()
            .map(|diagnostic| format!("{diagnostic}\n"))
            .collect()
    };
    Policy::parse(Path::new("policy.yaml"), text.as_bytes(), &config())
        .map(|(policy, _)| policy)
        .map_err(told)
}

fn decide(
    policy: &Policy,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Result<Decision, Denied> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, HeaderValue::from_str(value).unwrap());
    }
    policy.decide(&Head {
        method: &Method::POST,
        path: path.as_bytes(),
        query: b"",
        headers: &map,
    })
}

fn bearer(group: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer k-{group}"))
}

/// What is done for a group's key, or the error code.
fn action(
    group: &str,
    path: &str,
    beta: &[&str],
) -> Result<Option<(TierReason, Edit, bool)>, &'static str> {
    let policy = parse(POLICY).unwrap();
    let (name, value) = bearer(group);
    let mut headers = vec![(name, value.as_str())];
    headers.extend(beta.iter().map(|line| ("anthropic-beta", *line)));
    match decide(&policy, path, &headers) {
        Ok(decision) => Ok(decision.action.map(|action| {
            (
                action.reason,
                action.body,
                action.beta_header == BetaHeader::Set,
            )
        })),
        Err(denied) => Err(denied.cause.code()),
    }
}

fn cause(headers: &[(&'static str, &str)]) -> &'static str {
    decide(&parse(POLICY).unwrap(), "/v1/responses", headers)
        .unwrap_err()
        .cause
        .code()
}

#[test]
fn a_forced_group_is_forced_on_every_endpoint_with_a_tier_but_messages() {
    for path in [
        "/v1/responses",
        "/v1/responses/compact",
        "/v1/chat/completions",
        "/v1/agents",
        "/v1/agents/sessions/",
    ] {
        for group in [
            "forced-tier",
            "forced-beta",
            "forced-both",
            "forced-off",
            "allowed",
        ] {
            for beta in [&[][..], &[FAST_MODE_BETA]] {
                assert_eq!(
                    action(group, path, beta),
                    Ok(Some((TierReason::GroupForce, SET, false))),
                    "{group} {path}"
                );
            }
        }
    }
}

#[test]
fn on_messages_a_forced_group_is_forced_as_its_upstream_wants_it() {
    let force = |body, beta_header| Ok(Some((TierReason::GroupForce, body, beta_header)));
    for beta in [&[][..], &[FAST_MODE_BETA]] {
        assert_eq!(
            action("forced-tier", "/v1/messages", beta),
            force(SET, false)
        );
        assert_eq!(
            action("forced-beta", "/v1/messages", beta),
            force(Edit::Remove, true)
        );
        assert_eq!(
            action("forced-both", "/v1/messages", beta),
            force(SET, true)
        );
        assert_eq!(
            action("forced-off", "/v1/messages", beta),
            Err("messages_not_forced")
        );
    }
}

#[test]
fn on_messages_a_client_of_an_unforced_group_may_ask_by_the_beta() {
    let asked = |body, beta_header| Ok(Some((TierReason::FastModeBeta, body, beta_header)));
    let beta = &["x, fast-mode-2026-02-01 ,y"];
    assert_eq!(
        action("plain-tier", "/v1/messages", beta),
        asked(SET, false)
    );
    assert_eq!(
        action("plain-beta", "/v1/messages", beta),
        asked(Edit::Remove, true)
    );
    assert_eq!(action("plain-both", "/v1/messages", beta), asked(SET, true));
    for group in ["plain-off", "nobeta", "claude", "other"] {
        assert_eq!(action(group, "/v1/messages", beta), Ok(None), "{group}");
    }
    assert_eq!(action("plain-tier", "/v1/responses", beta), Ok(None));
}

#[test]
fn the_beta_token_is_matched_exactly_over_all_lines() {
    let asks = |lines: &[&str]| action("plain-tier", "/messages", lines).unwrap().is_some();
    assert!(asks(&["other", "more,fast-mode-2026-02-01"]));
    assert!(asks(&["\tfast-mode-2026-02-01 "]));
    for lines in [
        &[][..],
        &[""],
        &["fast-mode-2026-02-01-preview"],
        &["FAST-MODE-2026-02-01"],
        &["\"fast-mode-2026-02-01\""],
        &["x fast-mode-2026-02-01"],
    ] {
        assert!(!asks(lines), "{lines:?}");
    }
}

#[test]
fn nothing_is_done_to_other_endpoints_and_other_platforms() {
    for path in [
        "/v1/embeddings",
        "/v1/responses/input_tokens",
        "/v1/messages/count_tokens",
        "/",
    ] {
        assert_eq!(
            action("forced-both", path, &[FAST_MODE_BETA]),
            Ok(None),
            "{path}"
        );
    }
    for path in ["/v1/responses", "/v1/messages", "/v1/batches", "/v1/agents"] {
        assert_eq!(action("claude", path, &[]), Ok(None), "{path}");
        assert_eq!(action("other", path, &[]), Ok(None), "{path}");
    }
}

/// A group of the policy above, changed.
fn group(name: &str, change: impl FnOnce(&mut Group)) -> Group {
    let policy = parse(POLICY).unwrap();
    let found = policy.groups.into_iter().find(|group| &*group.name == name);
    let mut group = Arc::into_inner(found.unwrap()).unwrap();
    change(&mut group);
    group
}

#[test]
fn every_tier_is_forced_as_its_upstream_can_be_told() {
    use BetaHeader::{Keep, Remove};
    let upstreams = ["forced-tier", "forced-beta", "forced-both", "forced-off"];
    let table = [
        "Set(Priority) Keep, Remove Set, Set(Priority) Set, refused",
        "Set(Flex) Remove, refused, Set(Flex) Remove, refused",
        "Set(Default) Remove, Remove Remove, Set(Default) Remove, refused",
        "Remove Remove, Remove Remove, Remove Remove, Remove Remove",
    ];
    let tiers = [
        ForcedTier::Priority,
        ForcedTier::Flex,
        ForcedTier::Default,
        ForcedTier::None,
    ];
    for (forced, row) in tiers.into_iter().zip(table) {
        for (name, expected) in upstreams.into_iter().zip(row.split(", ")) {
            let group = group(name, |group| group.force = Some(forced));
            let action = group.action(Endpoint::Messages, &[], true);
            let done = match action {
                Ok(action) => action.map(|done| format!("{:?} {:?}", done.body, done.beta_header)),
                Err(Cause::MessagesNotForced) => Some("refused".to_owned()),
                Err(other) => panic!("{other:?}"),
            };
            assert_eq!(done.as_deref(), Some(expected), "{forced:?} {name}");
            let action = action.ok().flatten();
            let fast = forced == ForcedTier::Priority;
            assert!(action.is_none_or(|action| action.remove_fast_speed != fast));
            for endpoint in [
                Endpoint::Responses,
                Endpoint::ChatCompletions,
                Endpoint::Extra,
            ] {
                let action = group.action(endpoint, &[], false).unwrap().unwrap();
                assert_eq!(action.body, forced.tier().map_or(Edit::Remove, Edit::Set));
                assert_eq!(action.beta_header, if fast { Keep } else { Remove });
            }
            for endpoint in [
                Endpoint::Embeddings,
                Endpoint::ResponsesItem,
                Endpoint::Other,
            ] {
                assert_eq!(group.action(endpoint, &[], true).unwrap(), None);
            }
        }
    }
}

#[test]
fn a_model_that_the_force_is_not_for_leaves_the_request_as_it_came() {
    let mini = vec![Pattern::new("*-mini")];
    let group = group("forced-tier", |group| {
        group.models = ModelRule::Except(mini)
    });
    let action = group
        .action(Endpoint::Responses, &[], false)
        .unwrap()
        .unwrap();
    assert_eq!(action.condition, Condition::ModelRule);
    let settled = group
        .settle(action, &read(r#"{"model":"gpt-mini"}"#))
        .unwrap();
    assert_eq!(settled, TierAction::none(TierReason::ModelExempt));
    assert!(!settled.changes());
    for body in [
        r#"{"model":"gpt"}"#,
        "{}",
        r#"{"model":"gpt-mini","Model":"gpt"}"#,
    ] {
        let settled = group.settle(action, &read(body)).unwrap();
        assert_eq!((settled.body, settled.condition), (SET, Condition::Always));
    }
}

#[test]
fn a_model_of_the_target_that_the_force_is_for_is_forced_whatever_the_body_says() {
    let group = |prefix: &str| {
        let policy = parse(&POLICY.replace(
            "upstream: tier, force_fast_mode: true}\n  forced-beta",
            "upstream: tier, force_fast_mode: true, only_models: [gpt]}\n  forced-beta",
        ));
        let group = policy.unwrap().group("forced-tier").unwrap().clone();
        let mut group = Arc::into_inner(group).unwrap();
        Arc::make_mut(&mut group.upstream).urls[0].prefix = prefix.to_owned();
        group
    };
    for (prefix, path, condition) in [
        ("", "/v1/responses", Condition::ModelRule),
        ("", "/deployments/other/responses", Condition::ModelRule),
        ("", "/deployments/gpt/responses", Condition::Always),
        ("", "/deployments/gpt/other/responses", Condition::Always),
        ("/deployments/gpt", "/responses", Condition::Always),
        ("/deployments", "/GPT/responses", Condition::Always),
    ] {
        let group = group(prefix);
        let models = group.models_in_target(path, b"", Endpoint::Responses);
        let action = group.action(Endpoint::Responses, &models, false);
        assert_eq!(
            action.unwrap().unwrap().condition,
            condition,
            "{prefix}{path}"
        );
    }
}

#[test]
fn the_speed_in_the_body_asks_where_the_group_says_so_and_the_header_does_not() {
    let group = group("plain-both", |group| {
        group.fast_mode_beta = FastModeSignal::Speed
    });
    for beta in [true, false] {
        assert_eq!(group.action(Endpoint::Responses, &[], beta), Ok(None));
        let action = group
            .action(Endpoint::Messages, &[], beta)
            .unwrap()
            .unwrap();
        assert_eq!(action.condition, Condition::FastSpeed);
        assert_eq!(group.settle(action, &read(r#"{"speed":"standard"}"#)), None);
        assert_eq!(group.settle(action, &read("{}")), None);
        let fast = group.settle(action, &read(r#"{"speed":"fast"}"#)).unwrap();
        assert_eq!((fast.reason, fast.body), (TierReason::FastModeBeta, SET));
    }
}

#[test]
fn past_its_budget_a_group_goes_as_it_came_or_is_refused_and_only_for_priority() {
    use crate::policy::budget::Budgets;
    use crate::policy::group::{AtLimit, Period, Scope};
    let now = "2026-11-30T23:59:00Z".parse().unwrap();
    let key = [3; 32];
    for (then, expected) in [
        (
            AtLimit::Standard,
            Ok(TierAction::none(TierReason::BudgetExhausted)),
        ),
        (AtLimit::Refuse, Err(60)),
    ] {
        let rule = BudgetRule {
            usd: "0.03".parse().unwrap(),
            per: Period::Day,
            scope: Scope::Key,
            then,
            time_zone: jiff::tz::TimeZone::UTC,
        };
        let group = group("forced-both", |group| group.budget = Some(rule));
        let budgets = Budgets::default();
        let action = group
            .action(Endpoint::Responses, &[], false)
            .unwrap()
            .unwrap();
        let within = |action, own, key| group.within_budget(action, own, key, &budgets, now);
        group.charge(&key, Some("default"), "9".parse().unwrap(), &budgets, now);
        group.charge(
            &key,
            Some("priority"),
            "0.029".parse().unwrap(),
            &budgets,
            now,
        );
        assert_eq!(within(Some(action), None, &key), Ok(Some(action)));
        group.charge(
            &key,
            Some("priority"),
            "0.016".parse().unwrap(),
            &budgets,
            now,
        );
        assert_eq!(within(Some(action), None, &key), expected.map(Some));
        assert_eq!(within(Some(action), None, &[4; 32]), Ok(Some(action)));
        // What the client asks for itself is only refused, never changed.
        let own = expected.map(|_| None);
        for tier in ["priority", "fast"] {
            assert_eq!(within(None, Some(tier), &key), own);
            assert_eq!(within(None, Some(tier), &[4; 32]), Ok(None));
        }
        assert_eq!(within(None, Some("flex"), &key), Ok(None));
        let flex = TierAction {
            body: Edit::Set(Tier::Flex),
            ..action
        };
        assert_eq!(within(Some(flex), Some("priority"), &key), Ok(Some(flex)));
    }
}

fn read(body: &str) -> RequestFields {
    let mut observer = Observer::new();
    observer.feed(body.as_bytes());
    observer.finish()
}

#[test]
fn a_forced_group_may_not_use_batches_unless_allowed() {
    for path in ["/v1/batches", "/V1/Batches/", "/v1/messages/batches"] {
        assert_eq!(
            action("forced-off", path, &[]),
            Err("batches_not_forced"),
            "{path}"
        );
        for group in ["allowed", "plain-tier"] {
            assert_eq!(action(group, path, &[]), Ok(None), "{group} {path}");
        }
    }
}

#[test]
fn an_ambiguous_path_is_refused_for_every_group_once_the_key_is_known() {
    for group in ["forced-tier", "plain-tier", "claude", "other"] {
        assert_eq!(
            action(group, "/v1//responses", &[]),
            Err("ambiguous_path"),
            "{group}"
        );
    }
    assert_eq!(
        action("nobody", "/v1//responses", &[]),
        Err("invalid_api_key")
    );
    assert_eq!(
        action("closed", "/v1//responses", &[]),
        Err("group_disabled")
    );
}

#[test]
fn a_key_comes_as_a_bearer_or_as_x_api_key() {
    let policy = parse(POLICY).unwrap();
    let header = |headers: &[(&'static str, &str)]| {
        decide(&policy, "/v1/responses", headers)
            .unwrap()
            .credential
            .header
    };
    let (authorization, direct) = (CredentialHeader::Authorization, CredentialHeader::XApiKey);
    assert_eq!(
        header(&[("authorization", "bEaReR \t k-claude ")]),
        authorization
    );
    assert_eq!(header(&[("x-api-key", " k-claude ")]), direct);
    assert_eq!(
        header(&[("x-api-key", "k-claude"), ("authorization", "Basic abc")]),
        direct
    );
    assert_eq!(
        header(&[("x-api-key", "k-claude"), ("authorization", "Bearer ")]),
        direct
    );
    let both = [
        ("x-api-key", "k-claude"),
        ("authorization", "Bearer k-claude"),
        ("x-api-key", "k-claude"),
    ];
    assert_eq!(header(&both), authorization);
}

#[test]
fn a_key_that_is_missing_unknown_or_not_one_is_refused() {
    for headers in [
        &[][..],
        &[("authorization", "Bearer")],
        &[("authorization", "Bearer  ")],
        &[("authorization", "k-claude")],
        &[("authorization", "Basic eDp5")],
        &[("x-api-key", "")],
    ] {
        assert_eq!(cause(headers), "missing_api_key", "{headers:?}");
    }
    let listed = hash_key(b"k-claude");
    for key in [
        "k-claud",
        "k-claudex",
        "K-CLAUDE",
        &listed,
        &listed[7..],
        "123",
    ] {
        assert_eq!(cause(&[("x-api-key", key)]), "invalid_api_key", "{key}");
    }
    assert_eq!(cause(&[("x-api-key", "k-off")]), "key_disabled");
    assert_eq!(cause(&[("x-api-key", "k-closed")]), "group_disabled");
}

#[test]
fn of_several_keys_the_one_that_is_listed_decides_and_goes_on_alone() {
    let policy = parse(POLICY).unwrap();
    let names = ["authorization", "x-api-key", "api-key"];
    let line = |name: &str, key: &str| match name {
        "authorization" => format!("Bearer {key}"),
        _ => key.to_owned(),
    };
    for (listed, foreign) in names.iter().flat_map(|a| names.map(|b| (*a, b))) {
        for foreign_first in [true, false] {
            let mut lines = [
                (listed, line(listed, "k-claude")),
                (foreign, line(foreign, "k-x")),
            ];
            if foreign_first {
                lines.reverse();
            }
            let headers = lines
                .each_ref()
                .map(|(name, value)| (*name, value.as_str()));
            let credential = decide(&policy, "/", &headers).unwrap().credential;
            assert_eq!(credential.key.digest, api_key::digest(b"k-claude"));
            assert_eq!(credential.header.name(), listed);
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(name, HeaderValue::from_str(value).unwrap());
            }
            let (removed, (name, value)) = credential.without_others(&map).unwrap();
            removed.iter().for_each(|name| drop(map.remove(*name)));
            map.insert(name, value);
            let left: Vec<_> = map
                .iter()
                .map(|(name, value)| (name.as_str(), value))
                .collect();
            let expected = HeaderValue::from_str(&line(listed, "k-claude")).unwrap();
            assert_eq!(left, [(listed, &expected)], "{lines:?}");
        }
    }
}

#[test]
fn several_keys_of_which_two_or_none_are_listed_are_refused() {
    let default_group = parse(&format!("{POLICY}default_group: forced-tier\n")).unwrap();
    for policy in [parse(POLICY).unwrap(), default_group] {
        let cause = |headers: &[(&'static str, &str)]| {
            let denied = decide(&policy, "/", headers).unwrap_err();
            let id = denied
                .credential
                .map(|credential| key_id(&credential.key.digest));
            let id = id.map(|id| String::from_utf8(id.to_vec()).unwrap());
            (denied.cause.code(), id)
        };
        let id = |key: &[u8]| Some(hash_key(key)[7..15].to_owned());
        let two = [("x-api-key", "k-claude"), ("api-key", "k-other")];
        assert_eq!(cause(&two), ("conflicting_api_keys", id(b"k-claude")));
        let two = [("x-api-key", "k-claude"), ("x-api-key", "k-other")];
        assert_eq!(cause(&two), ("conflicting_api_keys", id(b"k-claude")));
        let none = [("authorization", "Bearer x"), ("api-key", "y")];
        assert_eq!(cause(&none), ("invalid_api_key", id(b"x")));
        assert_eq!(cause(&[]), ("missing_api_key", None));
    }
}

#[test]
fn one_key_in_several_headers_is_one() {
    let policy = parse(POLICY).unwrap();
    let same = [("x-api-key", "k-claude"), ("api-key", "k-claude")];
    let credential = decide(&policy, "/", &same).unwrap().credential;
    assert_eq!(credential.header, CredentialHeader::XApiKey);
    assert!(!credential.has_others);
    let credential = decide(&policy, "/", &[("api-key", "k-claude")])
        .unwrap()
        .credential;
    assert_eq!(credential.header, CredentialHeader::ApiKey);
}

#[test]
fn a_refusal_tells_what_was_found_out_before() {
    let policy = parse(POLICY).unwrap();
    let unknown = decide(&policy, "/v1/messages", &[]).unwrap_err();
    assert_eq!(
        (unknown.endpoint, unknown.key, unknown.group.is_none()),
        (Endpoint::Messages, None, true)
    );
    let off = decide(&policy, "/v1/messages", &[("x-api-key", "k-off")]).unwrap_err();
    assert_eq!(
        (off.key.as_deref(), &*off.group.unwrap().name),
        (Some("off"), "plain-tier")
    );
}

#[test]
fn a_key_is_named_by_the_policy_or_after_its_digest_and_keeps_its_spelling() {
    let policy = parse(POLICY).unwrap();
    let seen = |key: &str| {
        let decision = decide(&policy, "/", &[("x-api-key", key)]).unwrap();
        (
            decision.key.unwrap().to_string(),
            decision.key_location.unwrap().line,
        )
    };
    assert_eq!(seen("k-forced-tier"), ("ann".to_owned(), 18));
    assert_eq!(seen("k-forced-beta"), ("ann".to_owned(), 19));
    assert_eq!(
        seen("k-forced-both"),
        (format!("key-{}", &hash_key(b"k-forced-both")[7..15]), 20)
    );
    assert_eq!(seen("0123").1, 32);
}

#[test]
fn a_key_listed_by_its_digest_in_any_case_is_found() {
    for digits in [
        hash_key(b"k-1")[7..].to_lowercase(),
        hash_key(b"k-1")[7..].to_uppercase(),
    ] {
        let text = format!(
            "version: 1\ngroups: {{a: {{platform: other, upstream: tier}}}}\nkeys: {{\"sha256:{digits}\": a}}\n"
        );
        assert!(decide(&parse(&text).unwrap(), "/", &[("x-api-key", "k-1")]).is_ok());
    }
}

#[test]
fn the_default_group_takes_unlisted_keys_and_never_a_missing_one() {
    let policy = parse(&format!("{POLICY}default_group: forced-tier\n")).unwrap();
    let decision = decide(&policy, "/v1/responses", &[("x-api-key", "anything")]).unwrap();
    assert_eq!((decision.key, &*decision.group.name), (None, "forced-tier"));
    assert!(decision.action.is_some());
    assert_eq!(
        decide(&policy, "/", &[]).unwrap_err().cause,
        Cause::MissingApiKey
    );
    assert_eq!(
        decide(&policy, "/", &[("x-api-key", "k-off")])
            .unwrap_err()
            .cause,
        Cause::KeyDisabled
    );
}

#[test]
fn a_further_turn_is_decided_by_the_policy_of_its_time() {
    let before = parse(POLICY).unwrap();
    let first = decide(&before, "/v1/responses", &[("x-api-key", "k-plain-tier")]).unwrap();
    assert_eq!(first.action, None);
    let again = |text: &str| {
        parse(text)
            .unwrap()
            .decide_turn(&first.credential, first.endpoint, &[])
    };
    let forced =
        again(&POLICY.replace("k-plain-tier: plain-tier", "k-plain-tier: forced-tier")).unwrap();
    assert_eq!(forced.action.unwrap().reason, TierReason::GroupForce);
    let removed = again(&POLICY.replace("k-plain-tier:", "k-new:")).unwrap_err();
    assert_eq!(removed.cause, Cause::InvalidApiKey);
    let disabled =
        again(&POLICY.replace("upstream: tier}", "upstream: tier, enabled: false}")).unwrap_err();
    assert_eq!(disabled.cause, Cause::GroupDisabled);
}

#[test]
fn no_debug_output_shows_a_digest() {
    let policy = parse(POLICY).unwrap();
    let decision = decide(&policy, "/", &[("x-api-key", "k-claude")]).unwrap();
    let [first, second, ..] = decision.credential.key.digest;
    assert!(!format!("{policy:?} {decision:?}").contains(&format!("{first}, {second}")));
}

#[test]
fn the_revision_is_of_the_bytes() {
    assert_eq!(
        parse(POLICY).unwrap().revision(),
        &hash_key(POLICY.as_bytes())[..19]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever an editor or a crash leaves of a file: no panic, and no key in what is said about it.
    #[test]
    fn a_damaged_file_is_told_without_its_keys(at in 0..400usize, gone in 0..40usize, put in "[ -~\n\t]{0,6}") {
        let config = config();
        let mut text = String::from("version: 1\ngroups:\n  a: {platform: openai, upstream: tier}\nkeys:\n");
        for index in 0..4 {
            text += &format!("  sk-Zq{index}ZqZqZqZqZqZq: {{group: a, name: n{index}}}\n  \"sk-Xq{index}XqXqXqXqXqXq\": a\n");
        }
        let at = at.min(text.len());
        text.replace_range(at..(at + gone).min(text.len()), &put);
        if let Err(diagnostics) = Policy::parse(Path::new("p"), text.as_bytes(), &config) {
            for diagnostic in &diagnostics {
                let told = diagnostic.to_string();
                prop_assert!(!told.contains("Zq") && !told.contains("Xq"), "{}", told);
            }
            prop_assert!(!diagnostics.is_empty());
        }
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let config = config();
        prop_assert!(Policy::parse(Path::new("p"), &bytes, &config).is_err());
    }

    #[test]
    fn every_listed_key_is_found_and_no_other(count in 0..300usize) {
        let lines: String = (0..count).map(|index| format!("  k{index}: {{group: a, name: n{index}}}\n")).collect();
        let policy = parse(&format!("version: 1\ngroups: {{a: {{platform: other, upstream: tier}}}}\nkeys:\n{lines}")).unwrap();
        for index in 0..count {
            let decision = decide(&policy, "/", &[("x-api-key", &format!("k{index}"))]).unwrap();
            prop_assert_eq!(decision.key.unwrap().to_string(), format!("n{index}"));
        }
        let unlisted = format!("k{count}");
        prop_assert!(decide(&policy, "/", &[("x-api-key", &unlisted)]).is_err());
    }
}
