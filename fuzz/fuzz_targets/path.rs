//! Paths, held against readings of them by servers of many kinds: whoever finds an endpoint that takes a tier, or that of
//! batches, finds it where the proxy does, or the proxy refuses the path.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tiergate_fuzz::policy::endpoint::{Endpoint, classify};
use url::Url;

const TIER_PATHS: [&str; 2] = ["/v1/agents", "/v1/agents/sessions"];

/// What a server routes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    endpoint: Endpoint,
    batches: bool,
}

fuzz_target!(|path: &[u8]| {
    let tier_paths = TIER_PATHS.map(str::to_owned);
    let seen = classify(path, &tier_paths);
    if seen.ambiguous {
        assert!(!seen.endpoint.takes_tier() && !seen.batches);
        return;
    }
    // What takes no tier is told apart for the log only, and may be read in any way.
    let endpoint = match seen.endpoint {
        endpoint if endpoint.takes_tier() => endpoint,
        _ => Endpoint::Other,
    };
    let route = Route {
        endpoint,
        batches: seen.batches,
    };
    for (server, read) in readings(path) {
        let found = route_of(&read);
        let (found, read) = (found, String::from_utf8_lossy(&read));
        assert_eq!(found, route, "{server} reads `{read}`");
    }
});

/// By the whole path in lower case, without a slash at its end.
fn route_of(path: &[u8]) -> Route {
    let path = String::from_utf8_lossy(path).to_lowercase();
    let path = path.trim_end_matches('/');
    let endpoint = if path.ends_with("/responses") {
        Endpoint::Responses
    } else if path.ends_with("/responses/compact") {
        Endpoint::ResponsesCompact
    } else if path.ends_with("/chat/completions") {
        Endpoint::ChatCompletions
    } else if path == "/messages" || path.ends_with("/v1/messages") {
        Endpoint::Messages
    } else if TIER_PATHS.contains(&path) {
        Endpoint::Extra
    } else {
        Endpoint::Other
    };
    Route {
        endpoint,
        batches: path.ends_with("/batches"),
    }
}

fn readings(path: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let url = |path: &[u8]| {
        let path = String::from_utf8_lossy(path);
        // With a query behind it, as a space at the end of a URL would not count.
        let url = Url::parse(&format!("http://host{path}?")).expect("the path begins with a slash");
        url.path().as_bytes().to_vec()
    };
    let once = decode(path);
    let twice = decode(&once);
    vec![
        ("one that compares bytes", path.to_vec()),
        ("RFC 3986", remove_dots(&decode_unreserved(path))),
        ("nginx", remove_dots(&merge_slashes(&once))),
        ("nginx with merge_slashes off", remove_dots(&once)),
        ("net/http of Go", clean(&once)),
        ("a browser", url(path)),
        ("a browser behind a decoder", decode(&url(&once))),
        ("Tomcat", clean(&decode(&without_parameters(path)))),
        ("Tomcat behind a decoder", clean(&without_parameters(&once))),
        ("IIS", clean(&with_slashes(&once))),
        ("Windows", clean(&without_ends(&clean(&once)))),
        ("one behind a decoder", clean(&with_slashes(&twice))),
        ("one behind two decoders", clean(&decode(&twice))),
        (
            "one that looks for a query behind a decoder",
            until(&once, b"?#").to_vec(),
        ),
        ("C", until(&once, b"\0").to_vec()),
    ]
}

/// All escapes once; what is none stays.
fn decode(path: &[u8]) -> Vec<u8> {
    decode_where(path, |_| true)
}

/// RFC 3986 §6.2.2.2.
fn decode_unreserved(path: &[u8]) -> Vec<u8> {
    decode_where(path, |byte| {
        byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
    })
}

fn decode_where(path: &[u8], wanted: impl Fn(u8) -> bool) -> Vec<u8> {
    let (mut decoded, mut rest) = (Vec::new(), path);
    while let [first, behind @ ..] = rest {
        let digits = rest
            .get(1..3)
            .and_then(|digits| str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        (decoded, rest) = match byte.filter(|byte| *first == b'%' && wanted(*byte)) {
            Some(byte) => ([&decoded[..], &[byte]].concat(), &rest[3..]),
            None => ([&decoded[..], &[*first]].concat(), behind),
        };
    }
    decoded
}

/// RFC 3986 §5.2.4, on segments: an empty one is one.
fn remove_dots(path: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let segments: Vec<&[u8]> = path.split(|&byte| byte == b'/').skip(1).collect();
    for (index, segment) in segments.iter().enumerate() {
        let is_last = index + 1 == segments.len();
        match *segment {
            b"." => {}
            b".." => drop(kept.pop()),
            name => {
                kept.push(name);
                continue;
            }
        }
        if is_last {
            kept.push(b"");
        }
    }
    [b"/", &kept.join(&b'/')[..]].concat()
}

fn merge_slashes(path: &[u8]) -> Vec<u8> {
    let mut merged = path.to_vec();
    merged.dedup_by(|a, b| *a == b'/' && *b == b'/');
    merged
}

/// `path.Clean` of Go.
fn clean(path: &[u8]) -> Vec<u8> {
    remove_dots(&merge_slashes(path))
}

fn with_slashes(path: &[u8]) -> Vec<u8> {
    let turned = |&byte: &u8| if byte == b'\\' { b'/' } else { byte };
    path.iter().map(turned).collect()
}

/// Each segment up to its first `;`.
fn without_parameters(path: &[u8]) -> Vec<u8> {
    let segments = path.split(|&byte| byte == b'/');
    let plain: Vec<&[u8]> = segments.map(|segment| until(segment, b";")).collect();
    plain.join(&b'/')
}

/// Each segment without spaces and dots at its end.
fn without_ends(path: &[u8]) -> Vec<u8> {
    let segments = path.split(|&byte| byte == b'/');
    let plain: Vec<&[u8]> = segments
        .map(|segment| {
            let end = segment.iter().rposition(|byte| !b" .".contains(byte));
            &segment[..end.map_or(0, |last| last + 1)]
        })
        .collect();
    plain.join(&b'/')
}

fn until<'a>(path: &'a [u8], ends: &[u8]) -> &'a [u8] {
    let end = path.iter().position(|byte| ends.contains(byte));
    &path[..end.unwrap_or(path.len())]
}
