//! Which endpoint a request path names, whether every upstream would read the path as we do, and which models a target names.
//! It sees the path and the query alone: bytes in, a value out.

pub use crate::codec::error::Protocol;

/// The endpoints that are told apart. `…` is any prefix, also none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Endpoint {
    /// `…/responses`
    Responses,
    /// `…/responses/compact`
    ResponsesCompact,
    /// `…/chat/completions`
    ChatCompletions,
    /// `/messages`, `…/v1/messages`
    Messages,
    /// A path of the configuration's `tier_paths`.
    Extra,
    /// `…/embeddings`
    Embeddings,
    /// `…/completions`, the legacy one.
    Completions,
    /// `…/responses/{id}` and below: a response that was created before.
    ResponsesItem,
    /// All else: it takes no service tier and is never touched.
    Other,
}

/// What a request path says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// [`Endpoint::Other`] where the path is ambiguous.
    pub endpoint: Endpoint,
    /// Some upstream may read it as another path. Such a request is refused.
    pub ambiguous: bool,
    /// `…/batches`, where a file of requests is handed in.
    pub batches: bool,
}

impl Endpoint {
    /// The word for it in the access log.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The endpoint that the access log calls so.
    pub fn logged_as(name: &str) -> Option<Endpoint> {
        name.parse().ok()
    }

    /// The protocol whose shape of error its callers expect.
    pub fn protocol(self) -> Protocol {
        match self {
            Endpoint::Messages => Protocol::Anthropic,
            _ => Protocol::OpenAi,
        }
    }

    /// Whether requests to it may carry a `service_tier`.
    pub fn takes_tier(self) -> bool {
        match self {
            Endpoint::Responses
            | Endpoint::ResponsesCompact
            | Endpoint::ChatCompletions
            | Endpoint::Messages
            | Endpoint::Extra => true,
            Endpoint::Embeddings
            | Endpoint::Completions
            | Endpoint::ResponsesItem
            | Endpoint::Other => false,
        }
    }

    /// Whether responses of it may tell a model and usage, so that they are asked for without a content coding.
    pub fn tells_usage(self) -> bool {
        self != Endpoint::Other
    }

    /// Whether a good response to a request that makes something always tells what was used.
    pub fn must_tell_usage(self) -> bool {
        match self {
            Endpoint::Responses
            | Endpoint::ResponsesCompact
            | Endpoint::ChatCompletions
            | Endpoint::Messages
            | Endpoint::Embeddings
            | Endpoint::Completions => true,
            Endpoint::Extra | Endpoint::ResponsesItem | Endpoint::Other => false,
        }
    }
}

impl Path {
    const AMBIGUOUS: Path = Path {
        endpoint: Endpoint::Other,
        ambiguous: true,
        batches: false,
    };

    fn of_segments(path: &[u8], tier_paths: &[String], cut: Cut) -> Path {
        let endpoint = match tier_endpoint(path, cut) {
            Endpoint::Other if is_listed(path, tier_paths, cut) => Endpoint::Extra,
            Endpoint::Other => untouched_endpoint(path, cut),
            endpoint => endpoint,
        };
        let batches = cut.matches(last_segment(path).0, b"batches");
        Path {
            endpoint,
            ambiguous: false,
            batches,
        }
    }

    fn is_gated(&self) -> bool {
        self.endpoint.takes_tier() || self.batches
    }
}

/// Classifies a raw path without its query: ASCII case does not matter, nor does one trailing slash. `tier_paths` are
/// whole paths as the configuration has them, in lower case and without a slash at the end.
pub fn classify(path: &[u8], tier_paths: &[String]) -> Path {
    let path_given = path;
    let path = path.strip_suffix(b"/").unwrap_or(path);
    if !path_given.starts_with(b"/") || has_ambiguous_byte(path) || has_ambiguous_segment(path) {
        return Path::AMBIGUOUS;
    }
    let plain = Path::of_segments(path, tier_paths, Cut::Nothing);
    // Some servers choose a handler by less of the name than others.
    let may_be_cut = path.iter().any(|byte| b";%.".contains(byte));
    if !plain.is_gated()
        && may_be_cut
        && Path::of_segments(path, tier_paths, Cut::Suffix).is_gated()
    {
        return Path::AMBIGUOUS;
    }
    plain
}

/// Adds the models that the target of a request names for upstreams which take theirs from there, whatever the body says: what
/// stands in the path between `deployments`, as Azure OpenAI has it, `engines` or `models`, and the endpoint's own segments;
/// and the query's `model`, which LiteLLM prefers to both. Of several segments either the first or all of them are the model.
pub fn add_models(models: &mut Vec<String>, path: &str, query: &[u8], endpoint: Endpoint) {
    let own_segments = match endpoint {
        Endpoint::ChatCompletions | Endpoint::ResponsesCompact | Endpoint::Messages => 2,
        Endpoint::Responses | Endpoint::Embeddings | Endpoint::Completions | Endpoint::Extra => 1,
        Endpoint::ResponsesItem | Endpoint::Other => return,
    };
    if let Some(model) = model_in_path(path, own_segments) {
        models.push(model.to_owned());
        models.extend(model.split_once('/').map(|(first, _)| first.to_owned()));
    }
    let members = form_urlencoded::parse(query);
    let named =
        members.filter(|(name, model)| name.eq_ignore_ascii_case("model") && !model.is_empty());
    models.extend(named.map(|(_, model)| model.into_owned()));
}

fn model_in_path(path: &str, own_segments: usize) -> Option<&str> {
    const MARKS: [&str; 3] = ["deployments", "engines", "models"];
    let path = path.strip_suffix('/').unwrap_or(path);
    let mut rest = path.rsplitn(own_segments + 1, '/').nth(own_segments)?;
    while let Some((segment, behind)) = rest.split_once('/') {
        rest = behind;
        let is_mark = |mark: &&str| Cut::Suffix.matches(segment.as_bytes(), mark.as_bytes());
        if MARKS.iter().any(is_mark) {
            return Some(rest);
        }
    }
    None
}

/// What of a segment is compared.
#[derive(Clone, Copy, PartialEq)]
enum Cut {
    Nothing,
    /// The part before a suffix that some servers drop.
    Suffix,
}

impl Cut {
    fn matches(self, segment: &[u8], name: &[u8]) -> bool {
        let compared = match self {
            Cut::Nothing => segment,
            Cut::Suffix => without_suffix(segment),
        };
        compared.eq_ignore_ascii_case(name)
    }
}

fn tier_endpoint(path: &[u8], cut: Cut) -> Endpoint {
    let (last, before) = last_segment(path);
    let (second, further) = last_segment(before);
    let ends_with =
        |first: &[u8], then: &[u8]| cut.matches(second, first) && cut.matches(last, then);
    if cut.matches(last, b"responses") {
        Endpoint::Responses
    } else if ends_with(b"responses", b"compact") {
        Endpoint::ResponsesCompact
    } else if ends_with(b"chat", b"completions") {
        Endpoint::ChatCompletions
    } else if ends_with(b"v1", b"messages")
        || (cut.matches(last, b"messages") && second.is_empty() && further.is_empty())
    {
        Endpoint::Messages
    } else {
        Endpoint::Other
    }
}

/// An endpoint that takes no tier.
fn untouched_endpoint(path: &[u8], cut: Cut) -> Endpoint {
    let (last, _) = last_segment(path);
    if is_response_item(path, cut) {
        Endpoint::ResponsesItem
    } else if cut.matches(last, b"embeddings") {
        Endpoint::Embeddings
    } else if cut.matches(last, b"completions") {
        Endpoint::Completions
    } else {
        Endpoint::Other
    }
}

/// Whether a segment `responses` is followed by an id: by any other than the names of its own endpoints.
fn is_response_item(path: &[u8], cut: Cut) -> bool {
    let mut segments = path.split(|byte| *byte == b'/');
    segments.any(|segment| cut.matches(segment, b"responses"))
        && segments.next().is_some_and(|id| {
            let names: [&[u8]; 2] = [b"compact", b"input_tokens"];
            !names.iter().any(|name| cut.matches(id, name))
        })
}

/// The id in a path below `…/responses/`, as it stands there.
pub fn response_id_in_path(path: &str) -> Option<&str> {
    let mut segments = path.split('/');
    segments.find(|segment| segment.eq_ignore_ascii_case("responses"))?;
    segments.next().filter(|id| !id.is_empty())
}

fn is_listed(path: &[u8], tier_paths: &[String], cut: Cut) -> bool {
    tier_paths.iter().any(|listed| {
        let is_slash = |byte: &u8| *byte == b'/';
        let mut segments = path.split(is_slash);
        let mut names = listed.as_bytes().split(is_slash);
        names.all(|name| {
            segments
                .next()
                .is_some_and(|segment| cut.matches(segment, name))
        }) && segments.next().is_none()
    })
}

/// The last segment and the path before its slash.
fn last_segment(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[slash + 1..], &path[..slash]),
        None => (path, b""),
    }
}

/// The segment without `;parameters`, and without spaces and dots at its end, which Windows drops. They may be escaped:
/// whoever stands behind a server that decodes sees them plain.
fn without_suffix(segment: &[u8]) -> &[u8] {
    let begins_parameters = |at: &usize| match segment[*at] {
        b'%' => escaped_byte(&segment[at + 1..]) == Some(b';'),
        byte => byte == b';',
    };
    let end = (0..segment.len()).find(begins_parameters);
    let mut name = &segment[..end.unwrap_or(segment.len())];
    while let Some(shorter) = name.strip_suffix(b".").or_else(|| without_space(name)) {
        name = shorter;
    }
    name
}

/// The segment without the escaped space that it ends with, if it does.
fn without_space(segment: &[u8]) -> Option<&[u8]> {
    let mut before = segment.strip_suffix(b"20")?;
    while let Some(shorter) = before.strip_suffix(b"25") {
        before = shorter;
    }
    before.strip_suffix(b"%")
}

/// Bytes that a path may not hold, or that servers are known to fold into others: a backslash is a slash to some, an
/// escape of an unreserved character is that character by RFC 3986 §6.2.2.2, `%2f` may be decoded before routing, an
/// encoded control character may end the path (`%00`), and so may `%3f` and `%23` where one server hands a decoded path
/// to the next.
fn has_ambiguous_byte(path: &[u8]) -> bool {
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'%' => match escaped_byte(tail) {
                Some(byte) if !is_foldable(byte) => rest = &tail[2..],
                _ => return true,
            },
            b'\\' | b'#' | b'?' | 0..=b' ' | 0x7f.. => return true,
            _ => {}
        }
    }
    false
}

/// Empty and dot segments, also those that are so without their suffix: `..;` climbs on some servers. `path` has lost its
/// one trailing slash.
fn has_ambiguous_segment(path: &[u8]) -> bool {
    let mut segments = path.split(|&byte| byte == b'/').skip(1);
    segments.any(|segment| without_suffix(segment).is_empty())
}

/// What `%` and the bytes after it come to, however often they are decoded: `%2572` is `r` to whoever decodes twice.
fn escaped_byte(after_percent: &[u8]) -> Option<u8> {
    let mut byte = byte_of_digits(after_percent)?;
    let mut rest = &after_percent[2..];
    while byte == b'%'
        && let Some(inner) = byte_of_digits(rest)
    {
        (byte, rest) = (inner, &rest[2..]);
    }
    Some(byte)
}

fn byte_of_digits(text: &[u8]) -> Option<u8> {
    let digit = |at: usize| (*text.get(at)? as char).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

fn is_foldable(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~/\\?#".contains(&byte) || byte.is_ascii_control()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint(path: &str) -> Endpoint {
        let extra = ["/v1/agents".to_owned(), "/v1/agents/sessions".to_owned()];
        let seen = classify(path.as_bytes(), &extra);
        assert!(!seen.ambiguous, "{path} is ambiguous");
        seen.endpoint
    }

    fn is_ambiguous(path: &[u8]) -> bool {
        let seen = classify(path, &[]);
        assert!(!seen.ambiguous || (seen.endpoint == Endpoint::Other && !seen.batches));
        seen.ambiguous
    }

    #[test]
    fn any_prefix_any_case_and_one_trailing_slash_name_the_endpoint() {
        for line in [
            "responses /responses /v1/responses /V1/Responses/ /backend-api/codex/responses /a/b/c/responses",
            "responses_compact /responses/compact /v1/Responses/COMPACT/",
            "chat_completions /chat/completions /openai/v1/chat/completions/ /V1/CHAT/COMPLETIONS",
            "messages /messages /messages/ /v1/messages /api/V1/Messages/",
            "extra /v1/agents /v1/AGENTS/ /v1/agents/sessions",
            "embeddings /embeddings /v1/Embeddings/ /openai/v1/embeddings",
            "completions /completions /v1/completions /V1/Completions/",
            "responses_item /responses/resp_1 /v1/Responses/resp_1/ /v1/responses/resp_1/cancel /v1/responses/resp_1/input_items",
        ] {
            let (expected, paths) = line.split_once(' ').unwrap();
            for path in paths.split(' ') {
                assert_eq!(endpoint(path).as_str(), expected, "{path}");
            }
        }
    }

    #[test]
    fn everything_near_a_tier_endpoint_is_other() {
        for path in "/ /v1 /v1/responses/input_tokens /v1/responses/input_tokens/x /v1/responses/compact/x /v1/messages/count_tokens \
            /v1/threads/t/messages /v1/embeddings/x /v1/completions/x /v1/xresponses /v1/responsesx /v1/chat /compact /v1/responses.json \
            /v2/messages /xv1/messages /x/v1/agents /v1/agents/x /v1/files/a;b /v1/files/a%20b /v1/models/ft%3Agpt /v1/%C3%A9"
            .split_ascii_whitespace()
        {
            assert_eq!(endpoint(path), Endpoint::Other, "{path}");
        }
    }

    #[test]
    fn an_endpoint_without_a_tier_is_never_ambiguous_by_its_parameters() {
        for path in ["/v1/embeddings;x", "/v1/completions;x", "/v1/responses/a;b"] {
            assert!(!is_ambiguous(path.as_bytes()), "{path}");
        }
        assert!(!endpoint("/v1/embeddings").takes_tier());
        assert!(endpoint("/v1/embeddings").tells_usage());
    }

    #[test]
    fn a_listed_path_takes_a_tier_whatever_it_is_called() {
        let tier_paths = ["/v1/embeddings".to_owned()];
        let seen = classify(b"/v1/embeddings", &tier_paths);
        assert_eq!(seen.endpoint, Endpoint::Extra);
    }

    #[test]
    fn batches_are_seen_under_any_prefix() {
        for path in [
            "/v1/batches",
            "/V1/Batches/",
            "/openai/v1/batches",
            "/v1/messages/batches",
            "/batches",
        ] {
            assert!(classify(path.as_bytes(), &[]).batches, "{path}");
        }
        for path in ["/v1/batches/b_1", "/v1/xbatches", "/v1/responses"] {
            assert!(!classify(path.as_bytes(), &[]).batches, "{path}");
        }
    }

    #[test]
    fn a_path_that_somebody_may_read_as_another_is_ambiguous() {
        for path in "// //v1/responses /v1//responses /v1/responses// /v1/./responses /v1/../v1/responses /v1/responses/. \
            /v1/responses/.. /v1\\responses /v1/%72esponses /v1%2fresponses /v1/responses%2F /v1/%2e/responses /v1/%5Cresponses \
            /v1/x%7Ey /v1/%2D /v1/%5F /v1/%41 /v1/responses%00 /v1/a%0ab /v1/responses#x /v1/responses%3Fx /v1/responses%23x"
            .split_ascii_whitespace()
        {
            assert!(is_ambiguous(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn an_escape_is_what_it_comes_to_when_decoded_again_and_again() {
        for path in
            "/v1/%2572esponses /v1/%252572esponses /v1/a/%252e%252E/b /v1%252fresponses /v1/a%255cb"
                .split(' ')
        {
            assert!(is_ambiguous(path.as_bytes()), "{path}");
        }
        for path in
            "/v1/files/100%25 /v1/files/a%25zz /v1/files/a%2520b /v1/models/ft%253Agpt".split(' ')
        {
            assert!(!is_ambiguous(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn a_malformed_path_is_ambiguous() {
        for path in [
            &b""[..],
            b"*",
            b"v1/responses",
            b"/v1/%",
            b"/v1/%2",
            b"/v1/%zz",
            b"/v1/a b",
            b"/v1/\xc3\xa9",
            b"/v1/\x7f",
            b"/v1/\t",
        ] {
            assert!(is_ambiguous(path), "{path:?}");
        }
    }

    #[test]
    fn path_parameters_are_ambiguous_only_where_dropping_them_would_matter() {
        for path in [
            "/v1/responses;x=1",
            "/v1/chat;a/completions;b",
            "/v1;x/messages",
            "/v1/batches;x",
            "/v1/a/..;/b",
            "/v1/a/..%3B/b",
            "/v1/;x/b",
            "/v1/responses/;x",
            "/v1/responses%3bx",
            "/v1/responses%253bx",
        ] {
            assert!(is_ambiguous(path.as_bytes()), "{path}");
        }
        for path in ["/v1/files/a;b", "/v1;x/models", "/v1/files/a%3Bb"] {
            assert!(!is_ambiguous(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn spaces_and_dots_are_ambiguous_only_where_dropping_them_would_matter() {
        for path in "/v1/responses%20 /v1/responses. /v1/responses%20.%2520/ /v1/chat%20/completions /v1/batches%20%20 \
            /v1/messages%20;x /v1/files/...  /v1/files/..%20/b /v1/files/%20"
            .split_ascii_whitespace()
        {
            assert!(is_ambiguous(path.as_bytes()), "{path}");
        }
        for path in "/v1/responses%20x /v1/responses2520 /v1/files/a%20 /v1/files/a. /v1/models/gpt-5.5 /v1/files/%C3%A9"
            .split_ascii_whitespace()
        {
            assert!(!is_ambiguous(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn path_parameters_do_not_hide_a_tier_path() {
        let tier_paths = ["/v1/agents/sessions".to_owned()];
        let is_ambiguous = |path: &str| classify(path.as_bytes(), &tier_paths).ambiguous;
        for path in [
            "/v1/agents/sessions;x",
            "/v1;a/Agents;b/sessions/",
            "/v1/agents%3b/sessions",
        ] {
            assert!(is_ambiguous(path), "{path}");
        }
        for path in ["/v1/agents;x", "/v1/agents/sessions/s;x"] {
            assert!(!is_ambiguous(path), "{path}");
        }
    }

    #[test]
    fn a_target_may_name_the_model() {
        for (target, models) in [
            (
                "/openai/deployments/gpt-5.5/chat/completions?api-version=1",
                "gpt-5.5",
            ),
            ("/Engines/a/chat/completions/", "a"),
            ("/models/org/a/chat/completions", "org/a org"),
            ("/v1/deployments/a/responses", "a"),
            ("/deployments/a/responses/compact", "a"),
            ("/deployments/chat/chat/completions", "chat"),
            ("/deployments/a/v1/messages", "a"),
            (
                "/deployments/a/embeddings?model=b&mod%65l=c%2Fd&models=e",
                "a b c/d",
            ),
            ("/v1/responses?x=1&Model=b", "b"),
            ("/models/chat/completions", ""),
            ("/v1/chat/completions", ""),
            ("/messages", ""),
            ("/v1/deployments/a", ""),
            ("/v1/realtime?model=a", ""),
            ("/xdeployments/a/responses", ""),
        ] {
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let mut found = Vec::new();
            add_models(&mut found, path, query.as_bytes(), endpoint(path));
            assert_eq!(found.join(" "), models, "{target}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn no_bytes_panic(path in proptest::collection::vec(any::<u8>(), 0..40)) {
            classify(&path, &[]);
        }

        /// Decoding, dropping parameters, spaces and dots, and resolving dots, as any upstream might, turns no accepted path
        /// that is not gated into one that is.
        #[test]
        fn an_accepted_path_stays_what_it_is(path in "(/(responses|v1|chat|completions|messages|compact|\\.|\\.\\.|%2e|%2F|r|;|%72|\\\\|%3b|%20){0,3}){1,5}") {
            let seen = classify(path.as_bytes(), &[]);
            let read = lenient_reading(&path);
            let again = classify(read.as_bytes(), &[]);
            prop_assert!(seen.ambiguous || seen.is_gated() || !again.is_gated(), "{} is read as {}", path, read);
        }
    }

    fn lenient_reading(path: &str) -> String {
        let decoded = path
            .replace("%2e", ".")
            .replace("%2F", "/")
            .replace("%72", "r")
            .replace("%20", " ")
            .replace('\\', "/");
        let mut segments: Vec<&str> = Vec::new();
        for segment in decoded.split('/') {
            match segment.split(';').next().unwrap().trim_end_matches(' ') {
                ".." => drop(segments.pop()),
                name => segments.push(name.trim_end_matches(['.', ' '])),
            }
        }
        segments.retain(|name| !name.is_empty());
        format!("/{}", segments.join("/"))
    }
}
