//! How much the program says of itself on stderr. It only decides: the binary has the logger.

use log::LevelFilter;

/// Whose lines are never shown, whatever is asked for: Pingora's below errors quote request heads, and with them keys, and any
/// peer could fill the log with what it does in a handshake.
pub const SILENT: [&str; 2] = ["pingora", "rustls"];

/// What is shown where nothing is asked for.
const USUAL: LevelFilter = LevelFilter::Info;
/// The same of crates that the program uses.
const USUAL_OF_OTHERS: LevelFilter = LevelFilter::Warn;

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// Of this program.
    pub own: LevelFilter,
    /// Of crates that it uses, but for the [`SILENT`] ones.
    pub others: LevelFilter,
}

impl Levels {
    /// `option`: of the command line, before `rust_log`, of the environment. Of the latter a level alone and one for `tiergate`
    /// are taken; a level for another crate could let it show what must not be shown.
    pub fn new(option: Option<LevelFilter>, rust_log: Option<&str>) -> Levels {
        let directives = rust_log.unwrap_or_default().split(',').map(str::trim);
        let asked = option.or_else(|| directives.filter_map(own_level).next_back());
        let own = asked.unwrap_or(USUAL);
        Levels {
            own,
            others: own.min(USUAL_OF_OTHERS),
        }
    }
}

fn own_level(directive: &str) -> Option<LevelFilter> {
    let level = match directive.split_once('=') {
        Some(("tiergate", level)) => level,
        Some(_) => return None,
        None => directive,
    };
    level.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_comes_before_the_environment() {
        let own = |option, rust_log| Levels::new(option, rust_log).own;
        assert_eq!(own(None, None), LevelFilter::Info);
        assert_eq!(own(None, Some("debug")), LevelFilter::Debug);
        assert_eq!(own(None, Some("warn,tiergate=trace")), LevelFilter::Trace);
        assert_eq!(
            own(Some(LevelFilter::Error), Some("debug")),
            LevelFilter::Error
        );
        assert_eq!(own(None, Some("nonsense")), LevelFilter::Info);
    }

    #[test]
    fn no_environment_makes_another_crate_talk() {
        let levels = Levels::new(None, Some("pingora=trace,pingora_proxy=debug"));
        assert_eq!(levels, Levels::new(None, None));
        assert_eq!(Levels::new(None, Some("trace")).others, LevelFilter::Warn);
        assert_eq!(Levels::new(None, Some("off")).others, LevelFilter::Off);
    }
}
