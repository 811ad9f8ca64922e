//! Whether somebody has a file open to write to it. The kernel knows at any moment, also of a writer that came before the file
//! was watched, but tells it only the owner of the file and root.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::libc::{self, c_int};
use rustix::fs::fstatfs;

use crate::config::secret_file::open_regular;

/// Which signal the process gets if somebody opens the file within the question: one that does nothing (`signal(7)`).
const F_SETSIG: c_int = 10;

/// File systems of this machine, by their numbers (`statfs(2)`): ext4, XFS, Btrfs, tmpfs, overlayfs, F2FS and ZFS. Those of a
/// network refuse a lease for reasons of their own, with the same error.
const LOCAL: [u64; 7] = [
    0xEF53,
    0x5846_5342,
    0x9123_683E,
    0x0102_1994,
    0x794C_7630,
    0xF2F5_2010,
    0x2FC1_2FC1,
];

/// None where the kernel does not tell: the file is another user's, or on a file system whose word is not known.
#[allow(unsafe_code)] // No library has a function for leases.
pub(super) fn has_writer(path: &Path) -> Option<bool> {
    let file = open_regular(path).ok()?;
    if !LOCAL.contains(&u64::try_from(fstatfs(&file).ok()?.f_type).ok()?) {
        return None;
    }
    let set = |command: c_int, value: c_int| {
        // SAFETY: these commands take a number and touch no memory of this process (`fcntl(2)`).
        let done = unsafe { libc::fcntl(file.as_raw_fd(), command, value) };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    set(F_SETSIG, libc::SIGURG).ok()?;
    // A lease to read is given where nobody writes (`fcntl(2)`, "Leases"). It ends with the descriptor, at once.
    match set(libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(()) => Some(false),
        Err(why) if why.kind() == io::ErrorKind::WouldBlock => Some(true),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_known_from_opening_to_closing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert_eq!(has_writer(&path), None);
        let writer = std::fs::File::create(&path).unwrap();
        let _reader = std::fs::File::open(&path).unwrap();
        assert_eq!(has_writer(&path), Some(true));
        drop(writer);
        assert_eq!(has_writer(&path), Some(false));
    }
}
