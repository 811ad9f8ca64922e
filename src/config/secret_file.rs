//! The bytes of a file that may hold keys.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::ops::Deref;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use zeroize::Zeroize;

/// The largest file that is read: some ten million keys. Offsets into a file fit 32 bits.
pub const MAX_BYTES: usize = 1 << 30;
/// Longer names of files are taken for keys, in bytes.
const MAX_PLAIN_NAME: usize = 48;
/// How keys begin whose ends could be words: those of OpenAI and others, and JSON Web Tokens.
const KEY_STARTS: [&str; 2] = ["sk-", "eyJ"];
/// More than the standard library keeps free for its next read: with less it would read into a buffer of its own, which nobody
/// wipes.
const SPARE_BYTES: usize = 64;

/// What a file held. It is wiped from memory when it is dropped.
pub struct FileBytes(Vec<u8>);

impl FileBytes {
    /// The content of a file, with errors that name it.
    ///
    /// # Errors
    /// Those of [`FileBytes::read`].
    pub(crate) fn read_told(path: &Path) -> io::Result<FileBytes> {
        FileBytes::read(path).map_err(|why| io::Error::new(why.kind(), told(path, &why)))
    }

    /// The content of a file.
    ///
    /// # Errors
    /// Those of reading it, `FileTooLarge` beyond [`MAX_BYTES`], and what is no regular file: opening a pipe, or reading it,
    /// could take for ever.
    pub fn read(path: &Path) -> io::Result<FileBytes> {
        let mut file = open_regular(path)?;
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(MAX_BYTES);
        // At once: a buffer that grows leaves a copy behind.
        let mut bytes = FileBytes(Vec::with_capacity(length.min(MAX_BYTES) + SPARE_BYTES));
        let limit = MAX_BYTES as u64 + 1;
        file.by_ref().take(limit).read_to_end(&mut bytes.0)?;
        if bytes.0.len() > MAX_BYTES {
            return Err(io::Error::new(ErrorKind::FileTooLarge, "larger than 1 GiB"));
        }
        Ok(bytes)
    }
}

/// Opens a file to read it, without waiting for anybody.
///
/// # Errors
/// Those of opening it, and what is no regular file.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        let why = "not a regular file";
        Err(io::Error::new(ErrorKind::InvalidInput, why))
    }
}

/// The error of a file that was read and does not hold what it should.
pub(crate) fn unusable(path: &Path, why: &dyn Display) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, told(path, why))
}

/// What is wrong with a file that may hold keys. A key that was put in the place of the file's name is not shown.
pub(crate) fn told(path: &Path, why: &dyn Display) -> String {
    if path.symlink_metadata().is_ok() || has_plain_name(path) {
        format!("{}: {why}", path.display())
    } else {
        format!("expected the name of a file that holds it (not shown: it could be a key): {why}")
    }
}

/// Whether a path ends in a word, or in a name with an extension, as no key does.
fn has_plain_name(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let Some(name) = name.filter(|name| name.len() <= MAX_PLAIN_NAME) else {
        return false;
    };
    let is_word = |text: &str| {
        let is_letter = |byte: u8| byte.is_ascii_lowercase() || b"_-".contains(&byte);
        !text.is_empty() && text.bytes().all(is_letter)
    };
    let is_key = KEY_STARTS.iter().any(|start| name.starts_with(start));
    let end = name
        .rsplit_once('.')
        .map_or(name, |(_, extension)| extension);
    !is_key && is_word(end)
}

impl From<Vec<u8>> for FileBytes {
    fn from(bytes: Vec<u8>) -> Self {
        FileBytes(bytes)
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for FileBytes {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_the_place_of_a_name_is_not_shown() {
        let told = |name: &str| told(&Path::new("/nowhere").join(name), &"gone");
        for name in [
            "own.key",
            "openai",
            "OpenAI-2.pem",
            "a/b_c",
            "redis.password",
        ] {
            assert!(told(name).ends_with(&format!("{name}: gone")), "{name}");
        }
        for name in [
            "sk-proj-AbCd1234",
            "sk-letters-only",
            "Hunter2!",
            "eyJhbGci.eyJzdWIi.sig",
            "AbC/DeF123+x",
            "-----BEGIN PRIVATE KEY-----",
        ] {
            let told = told(name);
            assert!(
                told.ends_with("(not shown: it could be a key): gone"),
                "{told}"
            );
        }
    }

    #[test]
    fn a_file_is_read_whole_into_one_buffer_that_does_not_grow() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for length in [0, 1, 16_383, 16_384, 100_007] {
            let content: Vec<u8> = (0..length).map(|index| index as u8).collect();
            std::fs::write(&path, &content).unwrap();
            let bytes = FileBytes::read(&path).unwrap();
            assert!(*bytes == *content, "{length}");
            assert_eq!(bytes.0.capacity(), length + SPARE_BYTES);
        }
        let missing = FileBytes::read(&folder.path().join("none")).err().unwrap();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }
}
