//! What is written to a connection in small pieces and sent together.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// What is gathered before it is sent, in bytes; larger pieces go past it. A head and a small body are one segment.
const GATHERED_BYTES: usize = 16 * 1024;

/// Bytes that wait, and whether the connection has others that are not flushed.
#[derive(Debug)]
pub struct WriteBuffer {
    /// Not yet sent from `sent` on.
    bytes: Vec<u8>,
    sent: usize,
    is_unflushed: bool,
    kept_capacity: usize,
}

impl WriteBuffer {
    /// An empty one. What it grew beyond `kept_capacity` bytes is given back once it is empty again.
    pub fn new(kept_capacity: usize) -> Self {
        Self {
            bytes: Vec::new(),
            sent: 0,
            is_unflushed: false,
            kept_capacity,
        }
    }

    /// Whether so many bytes more are to be gathered.
    pub fn has_room(&self, length: usize) -> bool {
        self.bytes.len() + length <= GATHERED_BYTES
    }

    /// Puts a piece behind what waits, whatever its length.
    pub fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes that wait.
    pub fn unsent(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Drops what waits.
    pub fn clear(&mut self) {
        self.bytes = Vec::new();
        self.sent = 0;
    }

    /// Something is written to the connection past this buffer, and is to be flushed with what is sent next.
    pub fn written_past(&mut self) {
        self.is_unflushed = true;
    }

    /// Sends what waits, and flushes the connection.
    ///
    /// # Errors
    /// Those of the connection. What was not sent waits on.
    pub fn poll_send(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.sent < self.bytes.len() {
            match ready!(Pin::new(&mut *io).poll_write(cx, &self.bytes[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
            self.is_unflushed = true;
        }
        self.sent = 0;
        self.bytes.clear();
        self.bytes.shrink_to(self.kept_capacity);
        if self.is_unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn pieces_arrive_in_order_through_a_connection_that_takes_a_few_bytes_at_a_time() {
        let (mut near, mut far) = tokio::io::duplex(3);
        let mut buffer = WriteBuffer::new(4);
        buffer.push(b"head ");
        buffer.push(b"and body");
        assert!(!buffer.has_room(GATHERED_BYTES));
        let sending = std::future::poll_fn(|cx| buffer.poll_send(&mut near, cx));
        let mut received = [0; 13];
        let (sent, read) = tokio::join!(sending, far.read_exact(&mut received));
        sent.unwrap();
        read.unwrap();
        assert_eq!(&received, b"head and body");
        assert!(buffer.is_empty() && buffer.bytes.capacity() <= 4);
    }

    #[tokio::test]
    async fn what_could_not_be_sent_yet_waits() {
        let (mut near, _far) = tokio::io::duplex(3);
        let mut buffer = WriteBuffer::new(0);
        buffer.push(b"abcde");
        let sent = std::future::poll_fn(|cx| Poll::Ready(buffer.poll_send(&mut near, cx))).await;
        assert!(sent.is_pending());
        assert_eq!(buffer.unsent(), 2);
    }
}
