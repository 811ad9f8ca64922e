//! What a socket was given and its peer does not have yet. It knows nothing of what is sent.

use std::os::fd::AsFd;

use nix::libc::{TIOCOUTQ, c_int};
use rustix::ioctl;

/// How many bytes the peer of a socket has not acknowledged, over TCP (`tcp(7)`), or has not read, of a UNIX socket (`unix(7)`);
/// 0 where a UNIX socket's peer is gone. None where the system cannot tell.
#[allow(unsafe_code)] // No library has a function for it.
pub fn output_queue(socket: impl AsFd) -> Option<u64> {
    // SAFETY: TIOCOUTQ, which sockets know as SIOCOUTQ, writes one `int`.
    let waiting = unsafe {
        let request = ioctl::Getter::<{ TIOCOUTQ as ioctl::Opcode }, c_int>::new();
        ioctl::ioctl(socket, request)
    };
    u64::try_from(waiting.ok()?).ok()
}
