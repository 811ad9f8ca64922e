//! Whether the close of a connection has crossed a request. A kernel acknowledges what comes on an open connection, whoever reads
//! it, and nothing of what comes behind a close: so where the end of a connection is read and bytes are not acknowledged, they
//! were on their way when the server closed, which then cannot have seen them.

use pingora_core::protocols::Stream;

use crate::upstream::output_queue::output_queue;
use crate::upstream::socket::socket_of;

/// Whether something that was given to the socket is not acknowledged by the peer. False where that cannot be known.
pub(super) fn has_unacknowledged(io: &Stream) -> bool {
    output_queue(socket_of(&**io)).is_some_and(|bytes| bytes > 0)
}
