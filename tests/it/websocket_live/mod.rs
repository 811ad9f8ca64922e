//! WebSockets through the running proxy. The test holds both ends and speaks by an implementation of RFC 6455 that has
//! nothing in common with the proxy's.

// A record of 45 fields in one `json!`.
mod conformance;
mod connections;
pub mod ends;
mod records;
mod refusals;
