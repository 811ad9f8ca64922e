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

// Enter.
pub mod cli;
pub mod client_address;
pub mod client_stream;
pub mod connection;
pub mod demo;
pub mod listen;
pub mod patient;
pub mod patient_h2;
pub mod plain_request;
pub mod probe;
pub mod proxy_protocol;
mod rehearsal;
pub mod server;
pub mod service_manager;
pub mod state;
pub mod successor;
pub mod tally;
pub mod tls;
pub mod upgrade;

// Decide.
pub mod api_key;
pub mod background;
pub mod check;
pub mod config;
mod config_file;
pub mod diff;
pub mod endpoint;
pub mod explain;
mod file_bytes;
pub mod framing;
pub mod mistake;
pub mod policy;
mod policy_file;
pub mod reload;
mod settings;
mod yaml;

// Carry.
pub mod answer;
pub mod body;
pub mod bridge;
pub mod content_coding;
pub mod conversation;
pub mod error;
pub mod failure;
pub mod head_edit;
pub mod health;
pub mod health_check;
pub mod idle;
pub mod in_flight;
pub mod intake;
pub mod json;
pub mod passing;
pub mod proxy;
pub mod relay;
pub mod service_tier;
pub mod tunnel;
pub mod upload;
pub mod upstream;
pub mod upstream_tls;
pub mod websocket;

// Account.
pub mod access_log;
pub mod admin;
pub mod exchange;
pub mod log_line;
pub mod log_reader;
pub mod metrics;
pub mod prices;
pub mod report;
pub mod seen;
pub mod sse;
pub mod table;
pub mod turn;
pub mod usage;
