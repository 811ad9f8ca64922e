//! The attempts for one request: to which address each goes, and whether there may be another.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pingora_core::{Error, ErrorType};
use rustix::io::Errno;

use crate::upstream::error_text::describe_error;
use crate::upstream::{Address, Origin, Upstream};

/// Attempts of a request that are not counted because the upstream refused them unseen.
const MAX_REFUSALS: usize = 10;

/// The attempts for one request, over addresses and dead pooled connections.
#[derive(Default)]
pub struct Attempts {
    attempts: usize,
    /// Attempts that did not get a connection.
    unconnected: usize,
    /// Attempts of which the upstream said that it had not looked at the request.
    refused: usize,
    /// Where among the addresses the first attempt began to look.
    start_index: usize,
    /// A bit for each place among the addresses that was tried.
    tried: u64,
    address: Option<Arc<Address>>,
}

impl Attempts {
    /// Whether there was an attempt.
    pub fn has_begun(&self) -> bool {
        self.attempts > 0
    }

    /// The URL to whose address the newest attempt goes.
    pub fn origin(&self) -> Option<&Origin> {
        self.address.as_deref().map(|address| &*address.origin)
    }

    /// Where the next attempt goes; none while no address is known.
    pub fn next(&mut self, upstream: &Upstream) -> Option<&Arc<Address>> {
        let addresses = upstream.addresses.load();
        if self.attempts > 0 {
            upstream.retries.fetch_add(1, Ordering::Relaxed);
        } else if addresses.len() > 1 {
            self.start_index = upstream.next_index.fetch_add(1, Ordering::Relaxed);
        }
        self.attempts += 1;
        let place = self.place(&addresses, upstream.config.connect_timeout)?;
        self.tried |= 1 << place;
        Some(self.address.insert(addresses[place].clone()))
    }

    /// The next address in turn that is healthy; where none is left, one that was not tried; else any.
    fn place(&self, addresses: &[Arc<Address>], trial: Duration) -> Option<usize> {
        let count = addresses.len();
        if count == 0 {
            return None;
        }
        let first = self.start_index % count;
        // What an address does not get goes to each of the others in turn, not all to the one behind it.
        let next = first + 1 + self.start_index / count % (count - 1).max(1);
        let others = (next..next + count).map(|place| place % count);
        let mut places = std::iter::once(first).chain(others);
        let is_new = |place: &usize| self.tried & (1 << place) == 0;
        let is_healthy = |place: &usize| addresses[*place].health.admits(trial);
        places
            .clone()
            .find(|place| is_new(place) && is_healthy(place))
            .or_else(|| places.find(is_new))
            .or(Some(first))
    }

    /// Address of the newest attempt; `None` before the first.
    pub fn address(&self) -> Option<&Arc<Address>> {
        self.address.as_ref()
    }

    /// No connection could be made for the newest attempt, so nothing was sent. Whether there is to be another one.
    /// `only_http1`: HTTP/2 was not offered.
    pub fn record_connect_failure(
        &mut self,
        upstream: &Upstream,
        error: &Error,
        only_http1: bool,
    ) -> bool {
        // An HTTP/2 connection of the pool has ended; the next attempt makes a new one.
        let was_stale = *error.etype() == ErrorType::H2Error;
        if !was_stale {
            self.unconnected += 1;
            // An upstream that speaks only HTTP/2 ends such a handshake, and serves all other requests.
            let lacks_http1 = only_http1
                && upstream.config.http2.enabled
                && *error.root_etype() == ErrorType::TLSHandshakeFailure;
            if !lacks_http1 && !is_shortage(error) {
                self.record_failure(upstream, error);
            }
        }
        let others_left = self.unconnected < upstream.addresses.load().len();
        (was_stale || others_left) && self.may_go_on(upstream)
    }

    /// The newest attempt failed, for a reason that lies with the address.
    pub fn record_failure(&self, upstream: &Upstream, error: &Error) {
        if let Some(address) = &self.address {
            upstream.record_failure(address, &describe_error(error));
        }
    }

    /// The head of a response is here.
    pub fn record_response(&self, upstream: &Upstream, status: u16) {
        let Some(address) = &self.address else {
            return;
        };
        if upstream.config.ejection.gateway_errors && matches!(status, 502..=504) {
            upstream.record_failure(address, &format!("answer {status}"));
        } else {
            upstream.record_success(address);
        }
    }

    /// The upstream has not looked at the newest attempt. It says so of its own accord, so that this is none of the retries
    /// that its settings allow.
    pub fn record_refusal(&mut self) {
        self.refused += 1;
    }

    /// Whether the upstream's settings allow for another attempt.
    pub fn may_go_on(&self, upstream: &Upstream) -> bool {
        let retries = upstream.config.retries;
        let refused = if retries == 0 { 0 } else { self.refused };
        self.attempts - refused.min(MAX_REFUSALS) <= retries
    }
}

/// Whether this machine had no descriptor or memory for a connection, which says nothing of the address.
fn is_shortage(error: &Error) -> bool {
    const SHORTAGES: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
    let cause = error.root_cause().downcast_ref::<io::Error>();
    let errno = cause.and_then(Errno::from_io_error);
    errno.is_some_and(|errno| SHORTAGES.contains(&errno))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::config::SocketAddress;
    use crate::upstream::MAX_ADDRESSES;
    use crate::upstream::tests::{sockets, upstream};

    /// The last number of the address that a new request would go to.
    fn next(upstream: &Upstream) -> u8 {
        let mut attempts = Attempts::default();
        attempts.next(upstream).unwrap();
        number(&attempts)
    }

    fn number(attempts: &Attempts) -> u8 {
        match &attempts.address.as_ref().unwrap().socket {
            SocketAddress::Tcp(SocketAddr::V4(socket)) => socket.ip().octets()[3],
            _ => 0,
        }
    }

    fn refused() -> Box<Error> {
        Error::new(ErrorType::ConnectRefused)
    }

    #[test]
    fn the_last_addresses_of_each_name_stay() {
        let upstream = upstream("[http://h, http://i]");
        upstream.take_sockets(0, sockets([1]));
        upstream.take_sockets(1, sockets([2, 3]));
        upstream.take_sockets(1, Vec::new());
        assert_eq!([(); 6].map(|()| next(&upstream)), [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn no_more_addresses_are_used_than_there_is_room_for() {
        let upstream = upstream("[http://h, http://i]");
        upstream.take_sockets(0, sockets(0..100));
        upstream.take_sockets(1, sockets(100..200));
        assert_eq!(upstream.addresses().len(), MAX_ADDRESSES);
        let mut attempts = Attempts {
            start_index: 63,
            ..Attempts::default()
        };
        for _ in 0..MAX_ADDRESSES + 1 {
            assert!(attempts.next(&upstream).is_some());
        }
    }

    #[test]
    fn what_an_ejected_address_does_not_get_goes_to_all_others() {
        let upstream = upstream("http://h");
        upstream.take_sockets(0, sockets(0..4));
        upstream.record_failure(&upstream.addresses()[1], "x");
        let mut counts = [0; 4];
        for _ in 0..120 {
            counts[usize::from(next(&upstream))] += 1;
        }
        assert_eq!(counts, [40, 0, 40, 40]);
    }

    #[test]
    fn attempts_go_to_healthy_addresses_first_then_to_the_others_and_to_none_twice() {
        let upstream = upstream("http://h");
        upstream.take_sockets(0, sockets(0..4));
        for ejected in [0, 2] {
            upstream.record_failure(&upstream.addresses()[ejected], "x");
        }
        let mut attempts = Attempts::default();
        let mut tried = Vec::new();
        while tried.is_empty() || attempts.record_connect_failure(&upstream, &refused(), false) {
            attempts.next(&upstream).unwrap();
            tried.push(number(&attempts));
        }
        tried[..2].sort_unstable();
        tried[2..].sort_unstable();
        assert_eq!(tried, [1, 3, 0, 2]);
    }

    #[test]
    fn a_dead_connection_of_the_pool_does_not_speak_against_its_address() {
        let upstream = upstream("http://h");
        upstream.take_sockets(0, sockets([1]));
        let mut attempts = Attempts::default();
        attempts.next(&upstream).unwrap();
        let dead = Error::new(ErrorType::H2Error);
        assert!(attempts.record_connect_failure(&upstream, &dead, false));
        assert!(upstream.addresses()[0].health.snapshot().healthy);
        attempts.next(&upstream).unwrap();
        assert!(!attempts.record_connect_failure(&upstream, &refused(), false));
    }
}
