//! `tiergate init`: a folder with a small configuration to begin with. It writes new files only.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::cli::keys::NewKey;

const CONFIG: &str = include_str!("tiergate.yaml");
const POLICY: &str = include_str!("policy.yaml");
/// In [`POLICY`], in the place of the line of the new key.
const KEY_LINE: &str = "  # KEY\n";

/// For the owner alone: a policy may hold keys in clear.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Writes the files and returns what to do next. The key is told here and nowhere else.
///
/// # Errors
/// Where the folder has something in it already, or cannot be written to.
pub(super) fn run(folder: &Path) -> io::Result<String> {
    let key = NewKey::generate()?;
    let line = key
        .policy_line("codex-fast", Some("first"))
        .map_err(io::Error::other)?;
    make_folder(folder)?;
    write(
        &folder.join("policy.yaml"),
        &POLICY.replace(KEY_LINE, &(line + "\n")),
    )?;
    write(&folder.join("tiergate.yaml"), CONFIG)?;
    Ok(next_steps(folder, &key))
}

/// One that is empty is taken as it is.
fn make_folder(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(FOLDER_MODE).create(folder)?;
    match fs::read_dir(folder)?.next() {
        Some(_) => Err(io::ErrorKind::DirectoryNotEmpty.into()),
        None => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)?;
    file.write_all(text.as_bytes())
}

fn next_steps(folder: &Path, key: &NewKey) -> String {
    let folder = folder.display();
    let key = key.secret();
    format!(
        "Wrote {folder}/tiergate.yaml and {folder}/policy.yaml. The first key, which is shown only now:\n\n  {key}\n\n\
         Next:\n\n  \
         tiergate check -c {folder}/tiergate.yaml\n  \
         tiergate run -c {folder}/tiergate.yaml\n  \
         curl http://127.0.0.1:8080/v1/responses -H 'authorization: Bearer {key}' \\\n    \
         -H 'content-type: application/json' -d '{{\"model\": \"gpt-5.5\", \"input\": \"hello\"}}'\n\n\
         The upstream's own key belongs into the file that `credential_file` names; without one it gets the client's key.\n"
    )
}
