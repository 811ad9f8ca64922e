//! Patterns for names of models, as price files and groups have them.

use crate::config::variable::{NOT_PUT_IN, has_variable};

/// What Claude Code puts behind the name of a model for its longer context.
const LONG_CONTEXT: &str = "[1m]";
/// Characters of regular expressions, lists and other globs that no model has in its name.
const OTHER_SYNTAX: [char; 10] = ['^', '$', '|', ',', '?', '{', '}', '!', '\\', '"'];

/// The name of a model without what asks for its longer context, which no upstream has in its names.
pub(crate) fn without_long_context(model: &str) -> &str {
    model.strip_suffix(LONG_CONTEXT).unwrap_or(model)
}

/// Whether a text can be the name of a model, or a pattern of such.
///
/// # Errors
/// Why it cannot.
pub(crate) fn check_model(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err("expected the name of a model; it has no white space and is not empty");
    }
    if text.starts_with('/') {
        return Err("expected the name of a model; `/` is in it, not before it");
    }
    if has_variable(text) {
        return Err(NOT_PUT_IN);
    }
    Ok(())
}

/// A name in which `*` stands for any run of characters. ASCII case does not matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// The pattern of this text: any text is one.
    pub fn new(text: &str) -> Pattern {
        Pattern(text.to_ascii_lowercase())
    }

    /// The pattern of a text in a file.
    ///
    /// # Errors
    /// Where it is in another syntax, in which it would match nothing.
    pub(crate) fn parse(text: &str) -> Result<Pattern, &'static str> {
        check_model(text)?;
        let has_set = without_long_context(text).contains(['[', ']']);
        let is_regular = |at: usize| !text[..at].ends_with(|before: char| before.is_ascii_digit());
        let has_any = text.match_indices(".*").any(|(at, _)| is_regular(at));
        if has_set || has_any || text.contains(OTHER_SYNTAX) {
            return Err(
                "expected the name of a model, in which `*` stands for any text and all else for itself",
            );
        }
        Ok(Pattern::new(text))
    }

    /// Whether the name fits.
    pub fn matches(&self, name: &str) -> bool {
        glob(self.0.as_bytes(), name.as_bytes())
    }

    /// Whether every name that fits the other one fits this one too: a star of the other fits a star only.
    pub(crate) fn covers(&self, other: &Pattern) -> bool {
        glob(self.0.as_bytes(), other.0.as_bytes())
    }

    /// The pattern in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `text` fits `pattern`, in which `*` stands for any run of bytes, without regard to ASCII case. No recursion:
/// on a mismatch only the last star is tried again, one byte further, for what an earlier one could do it can do too.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            retry = Some((p + 1, t));
            p += 1;
        } else if pattern
            .get(p)
            .is_some_and(|byte| byte.eq_ignore_ascii_case(&text[t]))
        {
            p += 1;
            t += 1;
        } else if let Some((after_star, from)) = retry {
            retry = Some((after_star, from + 1));
            (p, t) = (after_star, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the pattern says, by recursion.
    fn fits(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|skip| fits(rest, &text[skip..])),
            Some((byte, rest)) => {
                text.first().is_some_and(|first| first == byte) && fits(rest, &text[1..])
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn patterns_agree_with_their_definition(pattern in "[ab*]{0,8}", text in "[ab]{0,12}") {
            prop_assert_eq!(Pattern::new(&pattern).matches(&text), fits(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn a_pattern_that_covers_another_fits_all_that_fits_that(one in "[ab*]{0,6}", other in "[ab*]{0,6}", text in "[ab]{0,8}") {
            let (one, other) = (Pattern::new(&one), Pattern::new(&other));
            prop_assert!(!one.covers(&other) || !other.matches(&text) || one.matches(&text));
        }
    }

    #[test]
    fn a_pattern_in_another_syntax_is_none() {
        for text in [
            "gpt-5.5",
            "*-mini",
            "gpt-5.*",
            "openai/gpt-5:free",
            "claude-opus-5-5[1m]",
            "publishers/x/models/gemini@001",
            "*",
        ] {
            assert!(Pattern::parse(text).is_ok(), "{text}");
        }
        for text in [
            "",
            " gpt",
            "gpt ",
            "^gpt",
            "gpt$",
            "a|b",
            "a,b",
            "gpt-?",
            "gpt-{5,6}",
            "gpt-[56]",
            "!gpt",
            "/gpt-.*/",
            ".*",
            "gpt-.*",
            "gpt-\\d",
        ] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn case_does_not_matter() {
        assert!(Pattern::new("GPT-*-Mini").matches("gpt-5.5-mini"));
        assert!(!Pattern::new("gpt-5.5").matches("gpt-5.5-mini"));
    }
}
