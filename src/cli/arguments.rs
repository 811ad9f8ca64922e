//! What can be asked of the program: commands, their options, and what `--help` says of them.

use std::path::PathBuf;

use clap::builder::TypedValueParser;
use clap::builder::{PossibleValuesParser, StyledStr};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use http::Method;
use log::LevelFilter;
use strum::IntoStaticStr;

use crate::cli::report::column::{Rate, Sort, Sum};
use crate::cli::report::filter::Filter;
use crate::cli::report::group_by::GroupBy;
use crate::cli::report::table::Format;
use crate::cli::{probe, reconcile};

/// [`crate::cli::report::DEFAULT_BY`] as it would be given.
const DEFAULT_BY: &str = "group,key,service_tier_billed";

/// A reverse proxy that decides, per group of API keys, on which service tier every request runs.
#[derive(Parser)]
#[command(
    version,
    subcommand_required = true,
    arg_required_else_help = false,
    after_help = "Begin with `tiergate demo`, then `tiergate init DIR`.\n\n\
        Exit codes: 0 done, 1 failed at run time, 2 wrong usage, 78 bad configuration."
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Command,
    /// How much is told on stderr; RUST_LOG is read where it is not given.
    #[arg(
        long,
        global = true,
        value_name = "LEVEL",
        value_parser = PossibleValuesParser::new(["off", "error", "warn", "info", "debug", "trace"])
            .try_map(|level| level.parse::<LevelFilter>())
    )]
    pub(super) log_level: Option<LevelFilter>,
}

#[derive(IntoStaticStr, Subcommand)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum Command {
    /// Serve until told to stop.
    #[command(after_help = "Example:\n  tiergate run -c /etc/tiergate/tiergate.yaml")]
    Run(RunArguments),
    /// Load everything that `run` would load, and print every mistake as `path:line:column: message`; warnings have the word
    /// `warning:` before the message.
    #[command(
        after_help = "Example:\n  tiergate check -c tiergate.yaml --strict && systemctl reload tiergate\n\n\
        Exit code: 78 where there is a diagnostic, or with --strict a warning."
    )]
    Check(CheckArguments),
    /// Have the running proxy read its files now, and wait for how that goes.
    #[command(
        after_help = "Example:\n  tiergate reload -c /etc/tiergate/tiergate.yaml\n\n\
        The process is found by the admin listener that the configuration names, and sent SIGHUP. A changed configuration \
        itself takes effect at a restart or an upgrade (SIGUSR2), which is said.\n\n\
        Exit code: 1 where a file could not be taken; 78 where the configuration has a diagnostic."
    )]
    Reload(ReloadArguments),
    /// Ask the running proxy whether it is ready: what `/readyz` of the admin listener that the configuration names says.
    #[command(
        after_help = "Example:\n  tiergate health -c /etc/tiergate/tiergate.yaml\n\n\
        Exit code: 1 where it is not ready or does not answer."
    )]
    Health(ConfigArgument),
    /// Show how much of each budget is used, and when it begins anew.
    #[command(after_help = "Examples:\n  \
        tiergate budget -c /etc/tiergate/tiergate.yaml\n  \
        tiergate budget -c /etc/tiergate/tiergate.yaml --format csv > budgets.csv\n\n\
        Sums are read from `state`. Without it they are in the memory of the running process, which is asked at its admin \
        listener.\n\n\
        Exit code: 1 where they cannot be read.")]
    Budget(BudgetArguments),
    /// Say what would happen to a request, and which line of which file decides it. Nothing of it is sent.
    #[command(after_help = "Examples:\n  \
        tiergate explain -c tiergate.yaml --name alice\n  \
        tiergate explain -c tiergate.yaml --name alice --path https://gateway.example/v1/messages --body body.json\n  \
        pass show alice | tiergate explain -c tiergate.yaml --key - --exit-code\n\n\
        Exit code: with --exit-code 1 where the request would be refused.")]
    Explain(ExplainArguments),
    /// Say what another policy would change: for which groups and keys, and for how much of a log.
    #[command(after_help = "Examples:\n  \
        tiergate diff policy.yaml new.yaml -c tiergate.yaml\n  \
        tiergate diff policy.yaml new.yaml -c tiergate.yaml --log access.log --prices prices.yaml\n\n\
        Exit code: with --exit-code 1 where the policies differ.")]
    Diff(DiffArguments),
    /// Make an API key: the key on stdout, and on stderr the line for the policy's `keys`.
    #[command(after_help = "Example:\n  \
        tiergate new-key --name alice --group codex-fast >alice.key 2>>policy.yaml\n\n\
        The key is shown this once; the policy has its digest only.")]
    NewKey(NewKeyArguments),
    /// Read API keys from stdin, one to a line, and print their digests for the policy file.
    #[command(after_help = "Examples:\n  \
        tiergate hash-key                          (asks for a key, and does not show it)\n  \
        tiergate hash-key < keys.txt\n\n\
        Exit code: 1 where a line cannot be a key; the others have their digests.")]
    HashKey,
    /// Write a commented configuration, a policy with a fresh key, and the next steps.
    #[command(after_help = "Example:\n  tiergate init tiergate")]
    Init {
        /// A folder that is not there yet, or is empty.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Show what the proxy does: a few requests through it to an upstream of its own. Needs no file and no network.
    #[command(after_help = "Example:\n  tiergate demo")]
    Demo,
    /// Send four small real requests to each group's upstream, and say what it made of the tier. They cost money.
    #[command(after_help = "Examples:\n  \
        tiergate probe -c tiergate.yaml --key - --model gpt-5.5 < key\n  \
        tiergate probe -c tiergate.yaml --key - --model gpt-5.5 --through http://127.0.0.1:8080 < key\n\n\
        Exit code: 1 where a tier was not honoured, or an upstream gave no answer, or none but errors.")]
    Probe(ProbeArguments),
    /// Sum requests, tokens and cost out of access logs, by any of their fields.
    #[command(after_help = report_help())]
    Report(Box<ReportArguments>),
    /// Compare access logs with what OpenAI's usage API says.
    #[command(after_help = "\
        FILE is a saved answer of GET /v1/organization/usage/completions with bucket_width=1d and \
        group_by=model,service_tier: one page, an array of pages, or pages one after the other.\n\n\
        Example:\n  \
        tiergate reconcile access.log* --usage usage.json --where upstream=openai\n\n\
        Exit code: 0 where both agree to the token, 1 where they do not.")]
    Reconcile(ReconcileArguments),
    /// Print the completions of a shell.
    #[command(
        after_help = "Example:\n  tiergate completions bash > ~/.local/share/bash-completion/completions/tiergate"
    )]
    Completions { shell: Shell },
    /// Print the manual page, or write one for each command.
    #[command(
        after_help = "Examples:\n  tiergate man | man -l -\n  tiergate man --dir /usr/local/share/man/man1"
    )]
    Man {
        /// Write `tiergate.1` and the pages of all commands into this folder.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Args)]
pub(super) struct ConfigArgument {
    /// The server configuration; it names the policy.
    #[arg(short, long, env = "TIERGATE_CONFIG", value_name = "FILE")]
    pub(super) config: PathBuf,
}

#[derive(Args)]
pub(super) struct RunArguments {
    #[command(flatten)]
    pub(super) config: ConfigArgument,
    /// Take the listening sockets over from the process that serves on the same `upgrade_socket`; it then drains and ends.
    #[arg(long)]
    pub(super) takeover: bool,
}

#[derive(Args)]
pub(super) struct CheckArguments {
    #[command(flatten)]
    pub(super) config: ConfigArgument,
    /// Leave keys and certificates unread: systemd shows the service's credentials to the service alone.
    #[arg(long)]
    pub(super) without_secrets: bool,
    /// Take warnings for mistakes.
    #[arg(long)]
    pub(super) strict: bool,
    /// An access log: warns of models in it that the price file has no price for. May be given several times.
    #[arg(long = "log", value_name = "FILE")]
    pub(super) logs: Vec<PathBuf>,
}

#[derive(Args)]
pub(super) struct BudgetArguments {
    #[command(flatten)]
    pub(super) config: ConfigArgument,
    /// How the answer is written.
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

#[derive(Args)]
pub(super) struct ReloadArguments {
    #[command(flatten)]
    pub(super) config: ConfigArgument,
    /// The process, where it is known: after an upgrade the old one goes on for a while.
    #[arg(long)]
    pub(super) pid: Option<u32>,
}

#[derive(Args)]
pub(super) struct ExplainArguments {
    #[command(flatten)]
    pub(super) config: ConfigArgument,
    #[command(flatten)]
    pub(super) caller: Caller,
    /// The method of the request.
    #[arg(long, default_value = "POST")]
    pub(super) method: Method,
    /// The path as the client would send it, or the whole URL.
    #[arg(long, value_name = "PATH|URL", default_value = "/v1/responses")]
    pub(super) path: String,
    /// A header of the request; may be given several times.
    #[arg(long = "header", value_name = "NAME: VALUE")]
    pub(super) headers: Vec<String>,
    /// The request's body; `-` reads it from stdin. Without it the body is `{}`, or none with GET and its like.
    #[arg(long, value_name = "FILE|-")]
    pub(super) body: Option<PathBuf>,
    /// Print one JSON object with the access log's field names, and `denied`: an error code or null.
    #[arg(long)]
    pub(super) json: bool,
    /// End with 1 where the request would be refused.
    #[arg(long)]
    pub(super) exit_code: bool,
}

/// Whose request it is.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(super) struct Caller {
    /// The client's API key; `-` reads it from stdin, so that it is in no shell history.
    #[arg(long, value_name = "KEY|-")]
    pub(super) key: Option<String>,
    /// The key's name in the policy.
    #[arg(long)]
    pub(super) name: Option<String>,
    /// The key's digest, as in the policy.
    #[arg(long, value_name = "sha256:…")]
    pub(super) digest: Option<String>,
}

#[derive(Args)]
pub(super) struct DiffArguments {
    /// The policy as it is.
    #[arg(value_name = "OLD")]
    pub(super) old: PathBuf,
    /// The policy as it would be.
    #[arg(value_name = "NEW")]
    pub(super) new: PathBuf,
    #[command(flatten)]
    pub(super) config: ConfigArgument,
    /// An access log: how much of it would have been touched. May be given several times.
    #[arg(long = "log", value_name = "FILE")]
    pub(super) logs: Vec<PathBuf>,
    /// Say what the change would have cost or saved, by this price file.
    #[arg(long, value_name = "FILE", requires = "logs")]
    pub(super) prices: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
    /// End with 1 where the policies differ.
    #[arg(long)]
    pub(super) exit_code: bool,
}

#[derive(Args)]
pub(super) struct NewKeyArguments {
    /// The key's name in the log; without it the log has the first digits of its digest.
    #[arg(long)]
    pub(super) name: Option<String>,
    /// The group of the policy that it is for.
    #[arg(long, default_value = "GROUP")]
    pub(super) group: String,
}

#[derive(Args)]
pub(super) struct ProbeArguments {
    #[command(flatten)]
    pub(super) config: ConfigArgument,
    #[command(flatten)]
    pub(super) options: probe::Options,
    /// How the answer is written.
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

#[derive(Args)]
pub(super) struct ReportArguments {
    /// Access logs, also rotated and compressed ones (.gz, .zst); `-` is stdin.
    #[arg(required = true, value_name = "LOG")]
    pub(super) logs: Vec<PathBuf>,
    /// What to group by: fields, and hour, day, week or month.
    #[arg(long, value_name = "FIELD,...", value_delimiter = ',', default_value = DEFAULT_BY)]
    pub(super) by: Vec<GroupBy>,
    /// Only requests whose field has this value, or has not; may be given several times, and all must hold.
    #[arg(long = "where", value_name = "FIELD=VALUE|FIELD!=VALUE")]
    pub(super) filters: Vec<Filter>,
    /// Only requests that began at this time or later: a date, RFC 3339, `today`, `yesterday`, or `12h`, `7d`, `4w` before now.
    #[arg(long, value_name = "TIME")]
    pub(super) since: Option<String>,
    /// Only requests that began before this time.
    #[arg(long, value_name = "TIME")]
    pub(super) until: Option<String>,
    /// Only requests of this month.
    #[arg(long, value_name = "YYYY-MM", conflicts_with_all = ["since", "until"])]
    pub(super) month: Option<String>,
    /// Whose hours, days, weeks and months are meant.
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    pub(super) time_zone: String,
    /// Price every request by this file, and not by the cost that its line holds.
    #[arg(long, value_name = "FILE")]
    pub(super) prices: Option<PathBuf>,
    /// Tell by this price file what priority cost above the default tier; the cost stays that of the lines.
    #[arg(long, value_name = "FILE")]
    pub(super) premium: Option<PathBuf>,
    /// Also tell the cost in another currency: how much of it a dollar is. May be given several times.
    #[arg(long = "rate", value_name = "EUR=0.92")]
    pub(super) rates: Vec<Rate>,
    /// The columns, in this order.
    #[arg(long, value_name = "COLUMN,...", value_delimiter = ',')]
    pub(super) columns: Option<Vec<String>>,
    /// Order of the rows, by a column: sums from the largest on, all else from the smallest on.
    #[arg(long, value_name = "COLUMN[:asc|:desc]")]
    pub(super) sort: Option<Sort>,
    /// Show so many rows: the costliest, if --sort does not say otherwise. The total has all.
    #[arg(long, value_name = "N")]
    pub(super) top: Option<usize>,
    /// How the report is written.
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
    /// Also write a page with charts, in one file.
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct ReconcileArguments {
    #[command(flatten)]
    pub(super) options: reconcile::Options,
    /// How the answer is written.
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

/// With every field and column, as those who ask for help look for them.
fn report_help() -> StyledStr {
    let list = |names: Vec<&str>| {
        let mut lines = vec![String::from(" ")];
        for name in names {
            if lines[lines.len() - 1].len() + name.len() > 98 {
                lines.push(String::from(" "));
            }
            let last = lines.len() - 1;
            lines[last] += &format!(" {name}");
        }
        lines.join("\n")
    };
    let text = format!(
        "Fields, for --by and --where:\n{}\n\nSums, for --columns and --sort beside those of --by:\n{}\n\n\
         The last row is the total; in csv and json its values of --by are empty. `requests` counts all, `refused` those of \
         them that did not reach an upstream.\n\n\
         Examples:\n  \
         tiergate report access.log* --month 2026-10 --by group --rate EUR=0.92\n  \
         tiergate report access.log --since 7d --by day,service_tier_billed --where group=codex-fast\n  \
         tiergate report access.log* --by key --top 10 --premium prices.yaml\n  \
         tiergate report access.log* --month 2026-10 --format csv > october.csv\n\n\
         Exit code: 1 where a log could not be read whole; the report then has what could be read.",
        list(GroupBy::names().collect()),
        list(Sum::names().collect()),
    );
    text.into()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::report;

    #[test]
    fn a_report_groups_by_the_default_fields_where_none_are_given() {
        let arguments = Arguments::try_parse_from(["tiergate", "report", "x"]).unwrap();
        let Command::Report(arguments) = arguments.command else {
            panic!("another command")
        };
        assert_eq!(arguments.by, report::DEFAULT_BY);
    }

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_help_has_an_example() {
        for command in Arguments::command().get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example"), "{}", command.get_name());
        }
    }
}
