//! Reads a connection of HTTP/2 as the h2 crate is to see it.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::codec::http2_frames::EmptyFrameFilter;

/// The most that is read at once, in bytes.
const READ_BYTES: usize = 16 * 1024;

/// Leaves out the empty DATA frames of a connection.
#[derive(Debug)]
pub struct Http2Reader {
    filter: EmptyFrameFilter,
    /// What was read and had no room: a part of a frame's header at most.
    unread: Vec<u8>,
    left_out: usize,
}

impl Http2Reader {
    /// For a connection that begins with a preface of so many bytes.
    pub fn behind(preface: usize) -> Self {
        Self {
            filter: EmptyFrameFilter::behind(preface),
            unread: Vec::new(),
            left_out: 0,
        }
    }

    /// How many frames were left out since this was last asked.
    pub fn take_left_out(&mut self) -> usize {
        std::mem::take(&mut self.left_out)
    }

    /// Reads what there is that is no empty frame.
    pub fn poll_read(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let unread = &mut self.unread;
        let given: Vec<u8> = unread.drain(..unread.len().min(buf.remaining())).collect();
        buf.put_slice(&given);
        while buf.filled().len() == before && buf.remaining() > 0 {
            let mut room = [MaybeUninit::uninit(); READ_BYTES];
            let most = buf.remaining().min(READ_BYTES);
            let mut read = ReadBuf::uninit(&mut room[..most]);
            ready!(Pin::new(&mut *io).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                break;
            }
            self.left_out += self.filter.pass(read.filled(), |piece| {
                let (taken, rest) = piece.split_at(piece.len().min(buf.remaining()));
                buf.put_slice(taken);
                unread.extend_from_slice(rest);
            });
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn what_is_no_empty_frame_arrives_through_buffers_of_any_size() {
        let empty = [0, 0, 0, 0, 0, 0, 0, 0, 1];
        let data = [&[0, 0, 4, 0, 0, 0, 0, 0, 1][..], b"data"].concat();
        for size in [1, 3, 8, 100] {
            let (mut near, mut far) = tokio::io::duplex(7);
            let sent = [&empty[..], &data, &empty, &empty, &data, &empty].concat();
            let sending = tokio::spawn(async move { far.write_all(&sent).await });
            let mut reader = Http2Reader::behind(0);
            let mut received = Vec::new();
            loop {
                let mut room = vec![0; size];
                let mut buf = ReadBuf::new(&mut room);
                let read = std::future::poll_fn(|cx| reader.poll_read(&mut near, cx, &mut buf));
                read.await.unwrap();
                if buf.filled().is_empty() {
                    break;
                }
                received.extend_from_slice(buf.filled());
            }
            sending.await.unwrap().unwrap();
            assert_eq!(received, [&data[..], &data].concat(), "{size}");
            assert_eq!((reader.take_left_out(), reader.take_left_out()), (4, 0));
        }
    }
}
