//! What requests may take: sizes, times, numbers.

use std::time::Duration;

/// The section `limits`. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest request body as received.
    pub body: u64,
    /// The largest request body after its content coding is undone.
    pub decoded_body: u64,
    /// All request bodies that are held at once in the process.
    pub buffered: u64,
    /// The largest message of a WebSocket client.
    pub websocket_message: u64,
    /// The largest request head: the target and the headers.
    pub header: u64,
    /// How deep JSON may be nested; the top level counts as 1.
    pub json_depth: usize,
    /// Open client connections; beyond them none is accepted.
    pub connections: usize,
    /// Open connections of one client address; beyond them new ones are closed.
    pub connections_per_client: Option<u64>,
    /// Requests that run in the process at once.
    pub requests_in_flight: Option<u64>,
    /// Connections to all upstreams that are kept while no request uses them, of HTTP/1.1 and of HTTP/2 each.
    pub idle_upstream_connections: usize,
    /// Time for a whole request head; on a new connection, from its beginning.
    pub header_timeout: Duration,
    /// Time between two reads of a request body, or of a message that a WebSocket client has begun.
    pub body_idle_timeout: Duration,
    /// Time for a whole request body, or a whole message of a WebSocket client.
    pub body_timeout: Duration,
    /// How long a client may take no byte of its response.
    pub write_timeout: Duration,
    /// How long a client connection may be idle.
    pub keepalive_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            body: 64 << 20,
            decoded_body: 128 << 20,
            buffered: 1 << 30,
            websocket_message: 64 << 20,
            header: 64 << 10,
            json_depth: 512,
            connections: 65_536,
            connections_per_client: None,
            requests_in_flight: None,
            idle_upstream_connections: 1024,
            header_timeout: Duration::from_secs(30),
            body_idle_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(600),
            write_timeout: Duration::from_secs(60),
            keepalive_timeout: Duration::from_secs(75),
        }
    }
}
