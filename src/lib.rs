//! tiergate stands in front of OpenAI-type upstreams and decides, per group of API keys, on which service tier every
//! request runs.
//!
//! What always holds:
//!
//! 1. A forced request is sent only through the rewriter, and `service_tier` in the log is read from the outgoing bytes.
//! 2. Observation cannot change, delay or fail a response. Its memory is bounded.
//! 3. One policy snapshot decides a request. A bad file never replaces a good one.
//! 4. One record per request, built in one place, written also when the client goes, the upstream dies, or the process
//!    is told to stop.
//! 5. Secrets exist as digests. No `Debug`, error or log carries one.
//! 6. No lock is held across an await; no buffer is without a limit; every limit has a name and a unit.
//!
//! In reading order: a process is assembled ([`server`]), its files are loaded ([`config`], [`policy`], [`reload`]), a
//! request is decided ([`policy`], [`endpoint`]), carried ([`proxy`], [`relay`], [`body`], [`service_tier`], [`upstream`]) and
//! accounted for ([`exchange`], [`usage`], [`access_log`], [`metrics`]).

pub mod accounting;
pub mod cli;
pub mod codec;
pub mod config;
pub mod policy;
pub mod proxy;
pub mod server;
pub mod state;
pub mod upstream;
