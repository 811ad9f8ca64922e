//! The lines of a log file, plain or compressed, in constant memory. What a line holds is not its business.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

/// First bytes of a gzip member (RFC 1952, 2.3.1).
const GZIP: &[u8] = &[0x1f, 0x8b];
/// First bytes of a Zstandard frame (RFC 8878, 3.1.1).
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// First bytes of a frame that a Zstandard decoder skips, but for the low half of the first (RFC 8878, 3.1.2). Parallel
/// compressors begin with one.
const ZSTD_SKIPPABLE: &[u8] = &[0x50, 0x2a, 0x4d, 0x18];

/// First bytes of files that logs come in and that are not read, what they are, and what decompresses them.
const FOREIGN: [(&[u8], &str, &str); 6] = [
    (b"\xfd7zXZ\0", "an xz archive", "xz -dc"),
    (b"BZh", "a bzip2 archive", "bzip2 -dc"),
    (b"PK\x03\x04", "a zip archive", "unzip -p"),
    (b"\x04\x22\x4d\x18", "an lz4 archive", "lz4 -dc"),
    (b"LZIP", "an lzip archive", "lzip -dc"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x -so"),
];
/// The longest of these first bytes.
const MAGIC: usize = 6;

/// Bytes that are read and decoded at a time; also what a line that is handed out has at the most, its line feed included. The
/// proxy writes lines below 16 KiB.
const BUFFER: usize = 256 * 1024;

/// Reads one file line by line.
pub struct LogReader {
    /// After decompression.
    input: BufReader<Box<dyn Read>>,
    line: Vec<u8>,
}

/// A line without its line feed.
#[derive(Debug, PartialEq, Eq)]
pub enum RawLine<'a> {
    /// A line that was read whole.
    Complete(&'a [u8]),
    /// Longer than any line the proxy writes: no log, or a damaged one.
    TooLong,
}

impl LogReader {
    /// Opens a file; `-` is the standard input. Its first bytes, not its name, tell whether it is compressed, so a rotated
    /// file may have any name.
    ///
    /// # Errors
    /// Where the file cannot be read, or is compressed in another way.
    pub fn open(path: &Path) -> io::Result<LogReader> {
        let file: Box<dyn Read> = if path == Path::new("-") {
            Box::new(io::stdin())
        } else {
            Box::new(File::open(path)?)
        };
        LogReader::new(file)
    }

    /// As [`LogReader::open`], over any source.
    pub fn new(mut source: Box<dyn Read>) -> io::Result<LogReader> {
        let mut magic = Vec::with_capacity(MAGIC);
        source.by_ref().take(MAGIC as u64).read_to_end(&mut magic)?;
        if let Some((_, what, program)) =
            FOREIGN.iter().find(|(first, ..)| magic.starts_with(first))
        {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "{what}, which is not read; decompress it first, as by `{program} FILE | tiergate report -`"
                ),
            ));
        }
        let gzip = magic.starts_with(GZIP);
        let zstd = magic.starts_with(ZSTD) || is_skippable(&magic);
        let whole = io::Cursor::new(magic).chain(source);
        let input: Box<dyn Read> = match (gzip, zstd) {
            (true, _) => Box::new(MultiGzDecoder::new(whole)),
            (_, true) => Box::new(zstd::Decoder::new(whole)?),
            _ => Box::new(whole),
        };
        Ok(LogReader {
            input: BufReader::with_capacity(BUFFER, input),
            line: Vec::new(),
        })
    }

    /// The next line, or `None` at the end. A last line without line feed counts as a line.
    ///
    /// # Errors
    /// Damaged compression, or a disk that fails; the rest of the file cannot be read then.
    pub fn next_line(&mut self) -> io::Result<Option<RawLine<'_>>> {
        self.line.clear();
        let mut input = self.input.by_ref().take(BUFFER as u64);
        let length = input.read_until(b'\n', &mut self.line)?;
        Ok(if self.line.pop_if(|last| *last == b'\n').is_some() {
            Some(RawLine::Complete(&self.line))
        } else if length == BUFFER {
            self.input.skip_until(b'\n')?;
            Some(RawLine::TooLong)
        } else {
            (length > 0).then_some(RawLine::Complete(&self.line))
        })
    }
}

fn is_skippable(magic: &[u8]) -> bool {
    matches!(magic, [first, rest @ ..] if first & 0xf0 == ZSTD_SKIPPABLE[0] && rest.starts_with(&ZSTD_SKIPPABLE[1..]))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    /// The lines as text, `<too long>` for those; and whether the reading ended in an error.
    fn lines(bytes: Vec<u8>) -> (Vec<String>, bool) {
        let mut reader = LogReader::new(Box::new(io::Cursor::new(bytes))).unwrap();
        let mut lines = Vec::new();
        loop {
            match reader.next_line() {
                Ok(Some(RawLine::Complete(line))) => {
                    lines.push(String::from_utf8(line.to_vec()).unwrap())
                }
                Ok(Some(RawLine::TooLong)) => lines.push("<too long>".to_owned()),
                Ok(None) => return (lines, false),
                Err(_) => return (lines, true),
            }
        }
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_first_bytes_tell_the_compression() {
        let text = "one\n\ntwo\nthree";
        let expected = (
            ["one", "", "two", "three"].map(str::to_owned).to_vec(),
            false,
        );
        assert_eq!(lines(text.as_bytes().to_vec()), expected);
        assert_eq!(lines(gzip(text)), expected);
        assert_eq!(
            lines(zstd::encode_all(text.as_bytes(), 1).unwrap()),
            expected
        );
        assert_eq!(lines(Vec::new()), (vec![], false));
        assert_eq!(lines(b"{}".to_vec()), (vec!["{}".to_owned()], false));
    }

    #[test]
    fn an_archive_that_is_not_read_is_named() {
        for (first, what, _) in FOREIGN {
            let file = [first, b"and more"].concat();
            let Err(error) = LogReader::new(Box::new(io::Cursor::new(file))) else {
                panic!("{what} is read as a log");
            };
            assert!(error.to_string().starts_with(what), "{error}");
        }
        assert!(FOREIGN.iter().all(|(first, ..)| first.len() <= MAGIC));
    }

    #[test]
    fn members_that_were_put_one_after_the_other_are_all_read() {
        let expected = (vec!["one".to_owned(), "two".to_owned()], false);
        assert_eq!(lines([gzip("one\n"), gzip("two\n")].concat()), expected);
        let frames = ["one\n", "two\n"].map(|text| zstd::encode_all(text.as_bytes(), 1).unwrap());
        assert_eq!(lines(frames.concat()), expected);
        let skipped = [ZSTD_SKIPPABLE, &[3, 0, 0, 0], b"abc"].concat();
        assert_eq!(lines([&skipped[..], &frames.concat()].concat()), expected);
    }

    #[test]
    fn a_truncated_file_gives_its_whole_lines_and_then_an_error() {
        let text = "a line of the log\n".repeat(50_000);
        for mut packed in [gzip(&text), zstd::encode_all(text.as_bytes(), 1).unwrap()] {
            packed.truncate(packed.len() / 2);
            let (lines, failed) = lines(packed);
            assert!(failed);
            assert!(lines.iter().all(|line| line == "a line of the log"));
        }
    }

    #[test]
    fn an_overlong_line_is_passed_over_and_the_next_one_is_read() {
        for length in [BUFFER - 1, BUFFER, BUFFER + 1, 3 * BUFFER] {
            let (lines, failed) = lines([&vec![b'x'; length][..], b"\nnext\n"].concat());
            assert!(!failed);
            assert_eq!(lines.len(), 2);
            assert_eq!(lines[0] == "<too long>", length >= BUFFER, "{length}");
            assert_eq!(lines[1], "next");
        }
        assert_eq!(lines(vec![b'x'; 2 * BUFFER]).0, ["<too long>"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn lines_do_not_depend_on_how_the_source_is_split(text in "([a-z]{0,9}\n){0,40}[a-z]{0,3}", step in 1usize..7) {
            struct Dripping(io::Cursor<Vec<u8>>, usize);
            impl Read for Dripping {
                fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                    let step = self.1.min(buffer.len());
                    self.0.read(&mut buffer[..step])
                }
            }
            let source = Dripping(io::Cursor::new(text.clone().into_bytes()), step);
            let mut reader = LogReader::new(Box::new(source)).unwrap();
            let mut read = Vec::new();
            while let Some(RawLine::Complete(line)) = reader.next_line().unwrap() {
                read.push(String::from_utf8(line.to_vec()).unwrap());
            }
            prop_assert_eq!(read, text.lines().map(str::to_owned).collect::<Vec<_>>());
        }
    }
}
