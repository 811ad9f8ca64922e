//! Upstreams with several addresses, some of which fail; TLS towards them; connections that are kept.

mod addresses;
mod checks;
mod connections;
mod tls;
