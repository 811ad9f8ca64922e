//! Patterns of model names, as they stand in the policy and in the price file: any characters, of which `*` stands for any
//! number of any, and letters in either case.

use std::fmt;

/// A pattern of model names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Box<str>);

impl Pattern {
    /// The pattern as it is written.
    pub fn new(text: &str) -> Pattern {
        Pattern(text.into())
    }

    /// Whether it stands for this name. Takes time in the product of both lengths at worst.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, text) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut t) = (0, 0);
        // Behind the latest star, and the first byte that it does not stand for.
        let mut retry = None;
        while t < text.len() {
            match (pattern.get(p), retry) {
                (Some(b'*'), _) => {
                    retry = Some((p + 1, t));
                    p += 1;
                }
                (Some(byte), _) if byte.eq_ignore_ascii_case(&text[t]) => (p, t) = (p + 1, t + 1),
                (_, Some((behind_star, from))) => {
                    retry = Some((behind_star, from + 1));
                    (p, t) = (behind_star, from + 1);
                }
                (_, None) => return false,
            }
        }
        pattern[p..].iter().all(|byte| *byte == b'*')
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters_and_case_does_not_matter() {
        let matches = |pattern: &str, name: &str| Pattern::new(pattern).matches(name);
        for (pattern, name) in [
            ("*", ""),
            ("gpt-5.5", "GPT-5.5"),
            ("*-mini", "gpt-5.5-mini"),
            ("*-mini", "a-mini-mini"),
            ("gpt-*-20*", "gpt-5.5-2026-04-24"),
            ("a*b*c", "aXbXbXc"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("", "a"),
            ("gpt", "gpt-5"),
            ("*-mini", "gpt-5.5-mini-x"),
            ("a*b*c", "acb"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
