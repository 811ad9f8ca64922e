//! Texts that were to be completed before anybody reads them. Shells, Compose, Helm and systemd put variables into the files
//! that they read; here a text is what it says, and one with a variable in it names a file or a value that nobody meant.

/// What is said of such a text.
pub(crate) const NOT_PUT_IN: &str = "variables are not put in here; write out what is meant";

/// Shortest name of a variable that is taken for one after a bare `$`.
const LEAST_NAME: usize = 2;

/// Whether a text has a variable or an expression of a template in it: `$NAME`, or what [`has_expression`] sees.
pub(crate) fn has_variable(text: &str) -> bool {
    let is_of_name = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    let is_name = |rest: &str| {
        let name = rest.bytes().take_while(|byte| is_of_name(*byte));
        !rest.starts_with(|first: char| first.is_ascii_digit()) && name.count() >= LEAST_NAME
    };
    let mut after_signs = text.split('$').skip(1);
    has_expression(text) || after_signs.any(is_name)
}

/// Whether a text has a variable in brackets in it: `${NAME}`, `$(…)`, `{{…}}` or `%(name)s`. A secret may have a `$` before
/// letters.
pub(crate) fn has_expression(text: &str) -> bool {
    let mut starts = ["${", "$(", "{{", "%("].iter();
    starts.any(|start| text.contains(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_seen_in_each_of_its_forms() {
        for text in [
            "${HOME}/a.log",
            "$HOME/a.log",
            "/run/$(hostname).sock",
            "/var/$HOST_1.log",
            "team-{{ .Values.team }}",
            "%(here)s/a.log",
        ] {
            assert!(has_variable(text), "{text}");
        }
        for text in ["a.log", "a$b", "5$", "$1", "$10", "100%", "{a}", "x$Y", ""] {
            assert!(!has_variable(text), "{text}");
        }
        assert!(has_expression("Bearer ${TOKEN}") && !has_expression("p$AB1"));
    }
}
