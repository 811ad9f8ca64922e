//! What the proxy does to requests, seen from outside: by the client's bytes, the upstream's bytes and the access log.

// A record of 45 fields in one `json!`.
#![recursion_limit = "256"]

mod aborts;
mod connections;
mod handshakes;
mod http2;
mod modes;
mod records;
mod refusals;
mod relay;
mod sizes;
#[path = "../support/mod.rs"]
mod support;
mod timeouts;
