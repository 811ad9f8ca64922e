//! What the Content-Type of a request says of who may read its body. The type itself does not matter, for the path says what
//! the body is.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

use crate::codec::error::{Cause, Refusal};
use crate::codec::framing::list_members;
use crate::codec::service_tier::MEMBER;

/// The longest name of a field that may be the tier's: one more than each byte of it escaped.
const NAME_BYTES: usize = 3 * MEMBER.len() + 1;

/// What a server may take a body for by its Content-Type, where it does not read JSON whatever the type says.
pub(super) enum Form {
    /// JSON, in an encoding of Unicode.
    Json,
    /// A form, which some servers take the same members from as from JSON
    /// (`http_parsing_utils.py` of <https://github.com/BerriAI/litellm>).
    Fields(FieldNames),
    /// What is not looked at: a form in parts, or a text whose characters are not the bytes of ASCII.
    Other,
}

/// Looks for the tier among the names of a form's fields.
#[derive(Default)]
pub(super) struct FieldNames {
    /// The name under way, as far as it may be the tier's.
    name: Vec<u8>,
    /// What came is the value of a field.
    in_value: bool,
    /// A field has the tier's name.
    pub has_tier: bool,
}

/// What a Content-Type says, in lower case.
struct MediaType {
    name: String,
    charsets: Vec<String>,
}

impl Form {
    pub fn of(headers: &HeaderMap) -> Self {
        let types: Vec<MediaType> = media_types(headers).collect();
        let is_other = |media: &MediaType| {
            media.is_multipart() || !media.charsets.iter().all(|charset| extends_ascii(charset))
        };
        if types.iter().any(is_other) {
            Form::Other
        } else if types.iter().any(MediaType::is_form) {
            Form::Fields(FieldNames::default())
        } else {
            Form::Json
        }
    }
}

impl FieldNames {
    /// Looks at the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                // Python's readers take both.
                b'&' | b';' => self.next(),
                b'=' => {
                    self.has_tier |= !self.in_value && self.is_tier();
                    self.in_value = true;
                }
                _ if self.in_value || self.name.len() >= NAME_BYTES => {}
                byte => self.name.push(*byte),
            }
        }
    }

    fn next(&mut self) {
        self.name.clear();
        self.in_value = false;
    }

    fn is_tier(&self) -> bool {
        percent_decode(&self.name).eq(MEMBER.bytes())
    }
}

impl MediaType {
    fn of(value: &str) -> Self {
        let parts = value.split(';').map(str::trim);
        let charset = |part: &str| {
            let (name, charset) = part.split_once('=')?;
            let is_charset = name.trim() == "charset";
            is_charset.then(|| charset.trim().trim_matches('"').to_owned())
        };
        Self {
            name: parts.clone().next().unwrap_or_default().to_owned(),
            charsets: parts.filter_map(charset).collect(),
        }
    }

    fn is_multipart(&self) -> bool {
        self.name.starts_with("multipart/")
    }

    fn is_form(&self) -> bool {
        self.name == "application/x-www-form-urlencoded"
    }
}

/// The bytes of a name of a form.
fn percent_decode(mut name: &[u8]) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let (first, rest) = name.split_first()?;
        let digits = rest.get(..2).filter(|_| *first == b'%');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        name = if code.is_some() { &rest[2..] } else { rest };
        Some(code.unwrap_or(*first))
    })
}

/// Of several lines that became one, any may count.
fn media_types(headers: &HeaderMap) -> impl Iterator<Item = MediaType> {
    list_members(headers, &CONTENT_TYPE)
        .map(|value| MediaType::of(&String::from_utf8_lossy(value).to_ascii_lowercase()))
}

/// Refuses a body in parts or in another charset: the upstream could read it as something that was not looked at here.
pub(super) fn check(headers: &HeaderMap) -> Result<(), Refusal> {
    let is_json = |media: MediaType| {
        let is_utf_8 = |charset: &String| matches!(&**charset, "utf-8" | "utf8" | "us-ascii");
        !media.is_multipart() && media.charsets.iter().all(is_utf_8)
    };
    match media_types(headers).all(is_json) {
        true => Ok(()),
        false => Err(Cause::UnsupportedContentType.into()),
    }
}

/// Whether ASCII is the same in this charset, or is known from it by its zeros.
fn extends_ascii(charset: &str) -> bool {
    const FAMILIES: [&str; 8] = [
        "utf-8",
        "utf8",
        "utf-16",
        "utf-32",
        "us-ascii",
        "iso-8859-",
        "latin1",
        "windows-125",
    ];
    FAMILIES.iter().any(|family| charset.starts_with(family))
}
