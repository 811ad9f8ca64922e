//! tiergate stands in front of OpenAI-type upstreams and decides, per group of API keys, on which service tier every
//! request runs.
//!
//! What always holds:
//!
//! 1. A forced request is sent only through the rewriter, and `service_tier` in the log is read from the outgoing bytes.
//! 2. Observation cannot change, delay or fail a response. Its memory is bounded.
//! 3. One policy snapshot decides a request (on a WebSocket: each turn). A bad file never replaces a good one.
//! 4. One record per request, built in one place, written also when the client goes, the upstream dies, or the process
//!    is told to stop.
//! 5. Clients' keys exist as digests, an upstream's own key as header values that are marked sensitive. No `Debug`, error
//!    or log carries a secret.
//! 6. No lock is held across an await; no buffer is without a limit; every limit has a name and a unit.
//!
//! In reading order, and in the order in which one may use the other, from left to right only: the command line ([`cli`]);
//! the process, its listeners and client connections ([`server`]); the way of a request through Pingora's phases
//! ([`proxy`]); what requests share ([`state`]); log, metrics and money ([`accounting`]); addresses and connections of
//! upstreams ([`upstream`]); the rules of the groups ([`policy`]) and, apart from them, the conversion of protocols
//! ([`bridge`]); formats, without I/O ([`codec`]); settings and files ([`config`]).

// What a command says goes through its `Streams`, what the service says through `log`.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod accounting;
pub mod bridge;
pub mod cli;
pub mod codec;
pub mod config;
pub mod policy;
pub mod proxy;
pub mod server;
pub mod state;
pub mod upstream;
