//! Tells a client that has ended its side of the connection only, and waits for its answer (RFC 9112 §9.6), from one that has
//! left. TCP shows no difference before something is sent: then a client that is gone resets the connection.

use std::time::Duration;

use pingora::protocols::IO;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::upstream::backoff::Backoff;
use crate::upstream::socket::socket_of;

/// What is sent to see whether the client is there: a client takes any number of interim responses, asked for or not
/// (RFC 9110 §15.2), and this one every client knows.
pub const PROBE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// When a probe is sent: the first one at once. By the second, a client on the same network has answered.
pub static PROBES: Backoff = Backoff {
    first: Duration::ZERO,
    pause: Duration::from_millis(10),
    factor: 10,
    longest: Duration::from_secs(10),
};

/// Whether the other side has reset the connection, or closed all of it. A read does not show it behind the end of that side.
pub fn has_hung_up(io: &impl IO) -> bool {
    let socket = socket_of(io);
    let mut sockets = [PollFd::new(&socket, PollFlags::empty())];
    let asked = poll(&mut sockets, Some(&Timespec::default()));
    let gone = PollFlags::HUP | PollFlags::ERR;
    asked.is_ok() && sockets[0].revents().intersects(gone)
}
