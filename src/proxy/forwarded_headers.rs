//! Headers of requests that tell of the client's side of the proxy: a CDN, a balancer or a login in front has added them. A
//! provider behind the same CDN would take them for its own, and some are tokens that open the operator's own services.
//!
//! What clients send to a provider themselves is none of them, nor are ids of requests and traces: vendors have prefixes that are
//! used for both, such as `x-amz-`, `x-goog-` and `x-ms-`, of which parts are listed here. `docs/configuration.md` has the same
//! list.

/// How names begin that are used for nothing else.
const PREFIXES: [&str; 23] = [
    "cf-",
    "cloudfront-",
    "remote-",
    "ssl-client-",
    "tailscale-",
    "x-akamai-",
    "x-amzn-ava-",
    "x-amzn-lattice-",
    "x-amzn-mtls-",
    "x-amzn-oidc-",
    "x-appengine-",
    "x-auth-request-",
    "x-authentik-",
    "x-envoy-",
    "x-fd-",
    "x-forwarded-",
    "x-goog-authenticated-user-",
    "x-goog-iap-",
    "x-ms-client-principal-",
    "x-ms-token-",
    "x-pomerium-",
    "x-ssl-client-",
    "x-vercel-ip-",
];
/// Whole names.
const NAMES: [&str; 37] = [
    "akamai-origin-hop",
    "cdn-loop",
    "client-cert",
    "client-cert-chain",
    "client-ip",
    "do-connecting-ip",
    "fastly-client",
    "fastly-client-ip",
    "fastly-ff",
    "fly-client-ip",
    "fly-forwarded-port",
    "fly-region",
    "forwarded",
    "incap-client-ip",
    "teleport-jwt-assertion",
    "true-client-ip",
    "via",
    "x-arr-clientcert",
    "x-azure-clientip",
    "x-azure-fdid",
    "x-azure-ref",
    "x-azure-requestchain",
    "x-azure-socketip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-forwarded",
    "x-ms-client-principal",
    "x-nf-client-connection-ip",
    "x-original-forwarded-for",
    "x-real-ip",
    "x-remote-user",
    "x-serverless-authorization",
    "x-sucuri-clientip",
    "x-vercel-forwarded-for",
    "x-vercel-oidc-token",
    "x-vercel-proxied-for",
    "x-vercel-proxy-signature",
];

/// Whether a header of this name, in lower case, is one of them.
pub fn is_forwarded(name: &str) -> bool {
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_headers_are_those_that_are_documented() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
        let page = std::fs::read_to_string(page).unwrap();
        let (_, table) = page.split_once("\n| header | added by |\n").unwrap();
        let rows = table.lines().skip(1).take_while(|row| row.starts_with('|'));
        let quoted = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
        let documented: Vec<String> = quoted.map(str::to_lowercase).collect();
        let prefixes = PREFIXES.iter().map(|prefix| format!("{prefix}*"));
        let known = NAMES.iter().map(|name| (*name).to_owned()).chain(prefixes);
        assert_eq!(
            documented.iter().cloned().collect::<BTreeSet<_>>(),
            known.collect(),
        );
        assert_eq!(documented.len(), NAMES.len() + PREFIXES.len(), "each once");
    }

    #[test]
    fn what_logins_and_balancers_add_is_told_from_what_clients_send() {
        for name in [
            "x-amzn-oidc-accesstoken",
            "x-amzn-oidc-data",
            "x-amzn-mtls-clientcert-leaf",
            "x-goog-iap-jwt-assertion",
            "x-goog-authenticated-user-email",
            "x-appengine-user-ip",
            "x-ms-token-aad-access-token",
            "x-ms-client-principal",
            "x-ms-client-principal-id",
            "x-azure-socketip",
            "x-auth-request-access-token",
            "x-forwarded-access-token",
            "cf-access-jwt-assertion",
            "cloudfront-viewer-address",
            "x-envoy-external-address",
            "x-cluster-client-ip",
            "do-connecting-ip",
            "x-vercel-forwarded-for",
            "remote-user",
        ] {
            assert!(is_forwarded(name), "{name}");
        }
        for name in [
            "authorization",
            "x-amz-content-sha256",
            "x-amz-date",
            "x-amz-security-token",
            "x-amzn-bedrock-accept",
            "x-amzn-trace-id",
            "x-goog-api-key",
            "x-goog-user-project",
            "x-goog-api-client",
            "x-goog-request-params",
            "x-ms-client-request-id",
            "x-ms-useragent",
            "x-request-id",
            "x-client-request-id",
            "x-stainless-retry-count",
            "x-codex-routing-hint",
            "x-title",
            "openai-organization",
            "anthropic-beta",
            "fastly-key",
            "traceparent",
            "tracestate",
            "user-agent",
            "origin",
            "referer",
        ] {
            assert!(!is_forwarded(name), "{name}");
        }
    }
}
