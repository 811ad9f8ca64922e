//! Whether two paths lead to one file.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// By the names, and where both are there by what the names lead to, links among them.
pub(super) fn is_same_file(one: &Path, other: &Path) -> bool {
    let absolute = |path: &Path| std::path::absolute(path).ok();
    let inode = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
    let found = inode(one);
    absolute(one).is_some_and(|one| absolute(other) == Some(one))
        || (found.is_some() && found == inode(other))
}
