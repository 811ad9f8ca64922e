//! Tells a client that has ended its side of the connection only, and waits for its answer (RFC 9112 §9.6), from one that has
//! left. TCP shows no difference before something is sent: then a client that is gone resets the connection.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pingora::protocols::IO;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::time::{Instant, Sleep, sleep};

use crate::upstream::socket::socket_of;

/// What is sent to see whether the client is there: a client takes any number of interim responses, asked for or not
/// (RFC 9110 §15.2), and this one every client knows.
pub const PROBE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// From the first probe to the second: a client on the same network has answered. Each pause after it is ten times as long.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// When the next probe is due.
#[derive(Debug)]
pub struct ProbeTimer {
    pause: Duration,
    sleep: Pin<Box<Sleep>>,
}

impl ProbeTimer {
    /// The first probe is due at once.
    pub fn new() -> Self {
        Self {
            pause: FIRST_PAUSE,
            sleep: Box::pin(sleep(Duration::ZERO)),
        }
    }

    /// Ready each time that a probe is due.
    pub fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.sleep.as_mut().poll(cx));
        self.sleep.as_mut().reset(Instant::now() + self.pause);
        self.pause = (self.pause * 10).min(LONGEST_PAUSE);
        Poll::Ready(())
    }
}

/// Whether the other side has reset the connection, or closed all of it. A read does not show it behind the end of that side.
pub fn has_hung_up(io: &impl IO) -> bool {
    let socket = socket_of(io);
    let mut sockets = [PollFd::new(&socket, PollFlags::empty())];
    let asked = poll(&mut sockets, Some(&Timespec::default()));
    let gone = PollFlags::HUP | PollFlags::ERR;
    asked.is_ok() && sockets[0].revents().intersects(gone)
}
