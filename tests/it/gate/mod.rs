//! What the proxy does to requests, seen from outside: by the client's bytes, the upstream's bytes and the access log.

// A record of 45 fields in one `json!`.
mod aborts;
mod connections;
mod handshakes;
mod http2;
mod modes;
mod records;
mod refusals;
mod relay;
mod sizes;
mod timeouts;
