//! What all clients of a run share: where the proxy is, whose turn it is, and what they have seen.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::books::Books;
use super::chance::Chance;
use super::plan::{FIRST_TAG, Recipe};
use super::{http2, sockets, visitors};

/// Tags of one visit: as many requests as it may make.
pub const TAGS_OF_VISIT: u64 = 8;

pub struct World {
    pub recipe: Recipe,
    pub address: SocketAddr,
    pub tls_address: SocketAddr,
    pub books: Arc<Books>,
    /// The least time from one visit of a client to its next.
    pace: Duration,
    visits: AtomicU64,
    stopped: AtomicBool,
    answered: Mutex<HashMap<u64, Answered>>,
    findings: Mutex<Vec<String>>,
}

/// A whole answer that a client has.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The proxy's name for the request.
    pub request_id: String,
    pub status: u16,
    pub bytes: u64,
    pub at: Instant,
}

impl World {
    pub fn new(
        recipe: Recipe,
        [address, tls_address]: [SocketAddr; 2],
        books: &Arc<Books>,
        pace: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            recipe,
            address,
            tls_address,
            books: books.clone(),
            pace,
            visits: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            answered: Mutex::default(),
            findings: Mutex::default(),
        })
    }

    /// Clients that visit again and again until they are told to stop.
    pub fn populate(self: &Arc<Self>, clients: usize) -> Vec<std::thread::JoinHandle<()>> {
        let live = |_| {
            let world = self.clone();
            std::thread::spawn(move || world.live())
        };
        (0..clients).map(live).collect()
    }

    fn live(&self) {
        while !self.is_stopped() {
            let begun = Instant::now();
            let visit = self.visits.fetch_add(1, Ordering::Relaxed);
            self.visit(FIRST_TAG + visit * TAGS_OF_VISIT);
            std::thread::sleep(self.pace.saturating_sub(begun.elapsed()));
        }
    }

    /// One visit, by whatever protocol its tag decides.
    fn visit(&self, tag: u64) {
        if self.is_socket(tag) {
            let _ = sockets::visit(self, tag);
            return;
        }
        // A visit that ends early ends like one of a client that left.
        let _ = match self.is_http2(tag) {
            true => http2::visit(self, tag),
            false => visitors::visit(self, tag),
        };
    }

    /// Whether the visit that this tag belongs to is one by WebSocket.
    pub fn is_socket(&self, tag: u64) -> bool {
        Chance::of(&[self.recipe.seed, 13, tag - offset(tag)]).one_in(8)
    }

    /// The same for a visit by HTTP/2.
    pub fn is_http2(&self, tag: u64) -> bool {
        let visit = tag - offset(tag);
        !self.is_socket(tag) && Chance::of(&[self.recipe.seed, 7, visit]).one_in(7)
    }

    pub fn visits(&self) -> u64 {
        self.visits.load(Ordering::Relaxed)
    }

    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    pub fn address(&self, with_tls: bool) -> SocketAddr {
        if with_tls {
            self.tls_address
        } else {
            self.address
        }
    }

    pub fn note_answer(&self, tag: u64, answered: Answered) {
        self.answered().insert(tag, answered);
    }

    pub fn answered(&self) -> MutexGuard<'_, HashMap<u64, Answered>> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn find(&self, what: String) {
        self.findings().push(what);
    }

    pub fn findings(&self) -> MutexGuard<'_, Vec<String>> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a tag within its visit.
pub fn offset(tag: u64) -> u64 {
    (tag - FIRST_TAG) % TAGS_OF_VISIT
}
