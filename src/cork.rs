//! Holds the head of an upgrade request back until Pingora is ready for the answer.
//!
//! Pingora 0.9.1 carries a request's two directions in two halves of one task, and the one tells the other through a queue
//! that the request has no body. If the upstream's 101 is read before that, the end of the request is taken for the end
//! of the upgraded connection, which closes as soon as it is open. An upstream on the same host answers fast enough for
//! that in a few of a hundred cases. So its socket is corked until the task has been polled often enough for both halves
//! to have met; this takes microseconds.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Context;

/// In the first poll the head is written and the one half begins, by the second the other has read what it is told. One
/// more, should the budget of the scheduler end a poll early.
const POLLS: u8 = 3;

/// What is corked for one request, if anything is.
#[derive(Debug, Default)]
pub struct Cork {
    /// A duplicate, so that it cannot be closed and its number given to another socket in the meantime.
    socket: Mutex<Option<OwnedFd>>,
    polls_left: AtomicU8,
}

impl Cork {
    /// Takes note of a socket that is about to be connected.
    ///
    /// # Errors
    /// Where no descriptor is left.
    pub fn take(&self, socket: &impl AsFd) -> io::Result<()> {
        let duplicate = socket.as_fd().try_clone_to_owned()?;
        *self.socket() = Some(duplicate);
        Ok(())
    }

    /// It is connected, and the head is written next. Not earlier: a TLS handshake would be held back too.
    pub fn close(&self) {
        if let Some(socket) = &*self.socket() {
            set(socket, true);
            self.polls_left.store(POLLS, Ordering::Relaxed);
        }
    }

    /// The request's task has been polled.
    pub fn count_poll(&self, context: &Context<'_>) {
        match self.polls_left.load(Ordering::Relaxed) {
            0 => {}
            1 => self.open(),
            left => {
                self.polls_left.store(left - 1, Ordering::Relaxed);
                context.waker().wake_by_ref();
            }
        }
    }

    fn open(&self) {
        self.polls_left.store(0, Ordering::Relaxed);
        if let Some(socket) = self.socket().take() {
            set(&socket, false);
        }
    }

    fn socket(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(target_os = "linux")]
fn set(socket: &OwnedFd, corked: bool) {
    // Without it the head leaves at once, as it would elsewhere; the kernel itself uncorks after 200 ms.
    let _ = rustix::net::sockopt::set_tcp_cork(socket, corked);
}

#[cfg(not(target_os = "linux"))]
fn set(_socket: &OwnedFd, _corked: bool) {}
