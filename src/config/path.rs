//! Paths of URLs as settings have them.

/// Whether a path can be read in one way only: it begins with a slash, no segment but the last is empty, none is `.` or
/// `..`, and every byte stands for itself (RFC 3986 section 3.3, without escapes).
pub(crate) fn is_plain(path: &str) -> bool {
    let is_plain_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@/".contains(&byte);
    let Some(segments) = path.strip_prefix('/') else {
        return false;
    };
    let mut segments = segments.strip_suffix('/').unwrap_or(segments).split('/');
    path.bytes().all(is_plain_byte) && segments.all(|segment| !matches!(segment, "" | "." | ".."))
}

/// A path as requests' paths are compared with it: in lower case and without a trailing slash. `None` if no request could
/// match it.
pub(crate) fn normalise(path: &str) -> Option<String> {
    let trimmed = path.strip_suffix('/').unwrap_or(path);
    is_plain(path).then(|| trimmed.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_path_with_one_reading_is_taken() {
        assert_eq!(normalise("/V1/Agents/").as_deref(), Some("/v1/agents"));
        assert_eq!(normalise("/v1/a.b:c").as_deref(), Some("/v1/a.b:c"));
        for path in [
            "", "/", "v1", "//a", "/a//b", "/./a", "/a/..", "/a?b", "/a#b", "/%61", "/a b",
            "/a\\b", "/a;b", "/é", "/a//",
        ] {
            assert_eq!(normalise(path), None, "{path}");
        }
    }
}
