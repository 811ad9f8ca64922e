//! An upstream as most are reached: HTTP/2 over TLS.

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, SendResponse};
use http::{Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::tls;
use crate::samples::ANSWER;

/// No window is to be waited for: what is compared is work.
const WINDOW_BYTES: u32 = 16 << 20;
const STREAMS: u32 = 1000;

/// Answers every request with the same JSON.
pub async fn answer_all(listener: TcpListener) {
    let acceptor = TlsAcceptor::from(tls::server_config(&[b"h2"]));
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(acceptor.clone(), stream));
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let stream = acceptor.accept(stream).await.ok()?;
    let mut builder = Builder::new();
    builder.max_concurrent_streams(STREAMS);
    builder.initial_window_size(WINDOW_BYTES);
    builder.initial_connection_window_size(4 * WINDOW_BYTES);
    let mut connection = builder.handshake(stream).await.ok()?;
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(answer(request, respond));
    }
    Some(())
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Option<()> {
    let mut body = request.into_body();
    while let Some(piece) = body.data().await {
        let length = piece.ok()?.len();
        body.flow_control().release_capacity(length).ok()?;
    }
    let head = Response::builder()
        .header("content-type", "application/json")
        .header("content-length", ANSWER.len());
    let mut stream = respond.send_response(head.body(()).ok()?, false).ok()?;
    stream
        .send_data(Bytes::from_static(ANSWER.as_bytes()), true)
        .ok()
}
