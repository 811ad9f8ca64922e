//! Pages in browsers as clients: preflights are answered here, and responses say which pages may read them. It is the CORS
//! protocol of the Fetch standard (<https://fetch.spec.whatwg.org/#http-cors-protocol>), for keys in headers; cookies and
//! other credentials of the browser's own are never allowed.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use pingora_core::Result;
use pingora_http::ResponseHeader;

use crate::config::Cors;

/// How long a browser may go on without asking again, in seconds. Chromium takes no more than two hours.
const MAX_AGE: &str = "7200";
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE";

/// What an upstream says of pages: its response is for its own origin, not for the proxy's.
const OF_UPSTREAM: [HeaderName; 6] = [
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::ACCESS_CONTROL_MAX_AGE,
];

/// The response to a preflight of a page that may call the proxy; none for every other request.
///
/// # Errors
/// Where a header cannot be made.
pub(super) fn preflight(
    cors: Option<&Cors>,
    method: &Method,
    request: &HeaderMap,
) -> Result<Option<ResponseHeader>> {
    let asks = request.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let Some(origin) = allowed_origin(cors, request).filter(|_| asks && method == Method::OPTIONS)
    else {
        return Ok(None);
    };
    let mut response = ResponseHeader::build(StatusCode::NO_CONTENT, Some(8))?;
    response.insert_header(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin)?;
    response.insert_header(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS)?;
    // By name, for `*` does not stand for `Authorization`.
    if let Some(names) = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        response.insert_header(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone())?;
    }
    response.insert_header(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE)?;
    response.insert_header(header::VARY, "Origin, Access-Control-Request-Headers")?;
    Ok(Some(response))
}

/// Says in a response, whoever made it, whether the page that asked may read it. Without the setting it stays as it is.
///
/// # Errors
/// Where a header cannot be made.
pub(super) fn allow(
    cors: Option<&Cors>,
    request: &HeaderMap,
    response: &mut ResponseHeader,
) -> Result<()> {
    if cors.is_none() || response.status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(());
    }
    for name in OF_UPSTREAM {
        response.remove_header(&name);
    }
    // A cache must not give one page's response to another.
    response.append_header(header::VARY, "Origin")?;
    let Some(origin) = allowed_origin(cors, request) else {
        return Ok(());
    };
    response.insert_header(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin)?;
    response.insert_header(header::ACCESS_CONTROL_EXPOSE_HEADERS, "*")
}

/// The origin of the page that asks, if pages of it may.
fn allowed_origin(cors: Option<&Cors>, request: &HeaderMap) -> Option<HeaderValue> {
    let origin = request.get(header::ORIGIN)?;
    let is_allowed = cors?.allow_origins.allow(origin.to_str().ok()?);
    is_allowed.then(|| origin.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AllowedOrigins;

    fn request(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let lines = lines.iter().map(|(name, value)| {
            let value = HeaderValue::from_static(value);
            (HeaderName::from_static(name), value)
        });
        lines.collect()
    }

    fn cors(origins: &[&str]) -> Cors {
        let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
        Cors {
            allow_origins: AllowedOrigins::Listed(origins),
        }
    }

    #[test]
    fn only_what_a_browser_asks_for_an_allowed_page_is_a_preflight() {
        let cors = cors(&["https://a.example"]);
        let asks = ("access-control-request-method", "POST");
        let (ours, other) = (
            ("origin", "https://a.example"),
            ("origin", "https://b.example"),
        );
        let is_preflight = |method: Method, lines: &[_]| {
            let answer = preflight(Some(&cors), &method, &request(lines));
            answer.unwrap().is_some()
        };
        assert!(is_preflight(Method::OPTIONS, &[ours, asks]));
        assert!(!is_preflight(Method::OPTIONS, &[other, asks]));
        assert!(!is_preflight(Method::OPTIONS, &[ours]));
        assert!(!is_preflight(Method::POST, &[ours, asks]));
        let without = preflight(None, &Method::OPTIONS, &request(&[ours, asks]));
        assert!(without.unwrap().is_none());
    }

    #[test]
    fn what_the_upstream_says_of_pages_is_replaced_and_what_else_varies_stays() {
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in [
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("vary", "accept"),
        ] {
            response.append_header(name, value).unwrap();
        }
        let asked = request(&[("origin", "https://b.example")]);
        allow(Some(&cors(&["https://a.example"])), &asked, &mut response).unwrap();
        let left: Vec<_> = response.headers.iter().collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert_eq!(response.headers.get_all("vary").iter().count(), 2);
    }
}
