//! The lines of several logs, one after the other: each once, and none that is no line of the access log. It keeps what is to
//! be said about them.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::accounting::access_log::line::{Field, Line, Wanted};
use crate::cli::report::ReportError;
use crate::cli::report::dedup::Dedup;
use crate::cli::report::log_reader::{LogReader, RawLine};

const EVENT_ID: Field = Field::named("event_id");
const INSTANCE: Field = Field::named("instance");
const SEQ: Field = Field::named("seq");

/// Unreadable lines that are told one by one; beyond, they are only counted.
const LINES_TOLD: u64 = 10;

/// Reads logs line by line.
pub(crate) struct Lines {
    wanted: Wanted,
    dedup: Dedup,
    repeated: u64,
    unreadable: u64,
    /// Logs that broke off.
    incomplete: usize,
}

/// A pipe is left alone: who opens and closes it ends its writer.
fn check_file(path: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if metadata.is_file() {
        LogReader::open(path)?;
    }
    Ok(())
}

impl Lines {
    /// Hands each line of the logs to `count`, which may refuse one; `wanted` is what is looked at of it. What is to be known
    /// about the lines goes to `notes`. Every log is looked at first, so that a wrong name is told before hours of reading and
    /// not after.
    ///
    /// # Errors
    /// The first log that cannot be opened, or those of `notes`.
    pub(crate) fn read(
        logs: &[PathBuf],
        wanted: &Wanted,
        notes: &mut impl Write,
        mut count: impl FnMut(&Line<'_>) -> Result<(), String>,
    ) -> Result<Lines, ReportError> {
        for path in logs.iter().filter(|path| path.as_path() != Path::new("-")) {
            check_file(path).map_err(|error| ReportError::Open {
                path: path.clone(),
                error,
            })?;
        }
        let own = [EVENT_ID, INSTANCE, SEQ];
        let mut lines = Lines {
            wanted: Wanted::new(wanted.fields().chain(own)),
            dedup: Dedup::default(),
            repeated: 0,
            unreadable: 0,
            incomplete: 0,
        };
        for path in logs {
            lines.read_log(path, notes, &mut count)?;
        }
        lines.tell(notes)?;
        Ok(lines)
    }

    /// An error is one of `notes`: what is wrong with the log is told there.
    fn read_log(
        &mut self,
        path: &Path,
        notes: &mut impl Write,
        count: &mut impl FnMut(&Line<'_>) -> Result<(), String>,
    ) -> io::Result<()> {
        let broken = |error: io::Error| format!("{}: breaks off: {error}", path.display());
        let mut reader = match LogReader::open(path) {
            Ok(reader) => reader,
            Err(error) => {
                self.incomplete += 1;
                return writeln!(notes, "{}", broken(error));
            }
        };
        let mut number = 0;
        loop {
            let counted = match reader.next_line() {
                Err(error) => {
                    self.incomplete += 1;
                    return writeln!(notes, "{}", broken(error));
                }
                Ok(None) => return Ok(()),
                Ok(Some(RawLine::TooLong)) => {
                    Err("too long for a line of the access log".to_owned())
                }
                // Somebody has put it there; it is no request that was lost.
                Ok(Some(RawLine::Complete(line))) if line.trim_ascii().is_empty() => Ok(()),
                Ok(Some(RawLine::Complete(line))) => self.take(line, count),
            };
            number += 1;
            if let Err(message) = counted {
                self.unreadable += 1;
                if self.unreadable <= LINES_TOLD {
                    writeln!(notes, "{}:{number}: {message}", path.display())?;
                }
            }
        }
    }

    fn take(
        &mut self,
        line: &[u8],
        count: &mut impl FnMut(&Line<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        let line = Line::parse(line, &self.wanted).map_err(|error| not_a_log_line(&error))?;
        let id = line
            .text(EVENT_ID)
            .ok_or("not a line of the access log: no `event_id`")?;
        let instance = line.text(INSTANCE);
        if !self
            .dedup
            .insert(instance.as_deref(), line.count(SEQ), Some(&id))
        {
            self.repeated += 1;
            return Ok(());
        }
        count(&line)
    }

    fn tell(&self, notes: &mut impl Write) -> io::Result<()> {
        if self.unreadable > 0 {
            writeln!(notes, "unreadable lines, not counted: {}", self.unreadable)?;
        }
        if self.repeated > 0 {
            writeln!(notes, "repeated lines, counted once: {}", self.repeated)?;
        }
        let mut gaps = self.dedup.gaps();
        gaps.try_for_each(|gaps| writeln!(notes, "{gaps}"))
    }

    /// Whether all of every log was counted.
    ///
    /// # Errors
    /// Where not all could be read.
    pub(crate) fn result(&self) -> Result<(), ReportError> {
        if self.incomplete == 0 && self.unreadable == 0 {
            return Ok(());
        }
        Err(ReportError::Incomplete {
            logs: self.incomplete,
            lines: self.unreadable,
        })
    }

    /// Lines that are missing between those that were read.
    pub(crate) fn missing(&self) -> u64 {
        self.dedup.gaps().map(|gaps| gaps.missing).sum()
    }

    /// Lines that could not be read.
    pub(crate) fn unreadable(&self) -> u64 {
        self.unreadable
    }
}

/// The parser's message, without its own count of lines.
fn not_a_log_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let (message, _) = text.split_once(" at line ").unwrap_or((&text, ""));
    format!(
        "not a line of the access log: {message}, at column {}",
        error.column()
    )
}
