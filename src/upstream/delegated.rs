//! What a wrapper of a connection leaves to the connection within it.

/// Implements Pingora's traits of a connection for a wrapper, by its field `io`: all that say who and what is connected. Its
/// field `digest` is what the connection's proxy digest carries. How the connection ends is for each wrapper to say.
macro_rules! delegate_to_io {
    ($wrapper:ty $(, $io:ident: $bound:ident)?) => {
        impl $(<$io: $bound>)? pingora_core::protocols::UniqueID for $wrapper {
            fn id(&self) -> std::os::fd::RawFd {
                self.io.id()
            }
        }

        impl $(<$io: $bound>)? pingora_core::protocols::Ssl for $wrapper {
            fn get_ssl(&self) -> Option<&pingora_core::protocols::tls::TlsRef> {
                self.io.get_ssl()
            }

            fn get_ssl_digest(
                &self,
            ) -> Option<std::sync::Arc<pingora_core::protocols::tls::SslDigest>> {
                self.io.get_ssl_digest()
            }

            fn selected_alpn_proto(&self) -> Option<pingora_core::protocols::ALPN> {
                self.io.selected_alpn_proto()
            }
        }

        impl $(<$io: $bound>)? pingora_core::protocols::Peek for $wrapper {}

        impl $(<$io: $bound>)? pingora_core::protocols::GetTimingDigest for $wrapper {
            fn get_timing_digest(&self) -> Vec<Option<pingora_core::protocols::TimingDigest>> {
                self.io.get_timing_digest()
            }

            fn get_read_pending_time(&self) -> std::time::Duration {
                self.io.get_read_pending_time()
            }

            fn get_write_pending_time(&self) -> std::time::Duration {
                self.io.get_write_pending_time()
            }
        }

        impl $(<$io: $bound>)? pingora_core::protocols::GetSocketDigest for $wrapper {
            fn get_socket_digest(
                &self,
            ) -> Option<std::sync::Arc<pingora_core::protocols::SocketDigest>> {
                self.io.get_socket_digest()
            }

            fn set_socket_digest(&mut self, digest: pingora_core::protocols::SocketDigest) {
                self.io.set_socket_digest(digest);
            }
        }

        impl $(<$io: $bound>)? pingora_core::protocols::GetProxyDigest for $wrapper {
            fn get_proxy_digest(
                &self,
            ) -> Option<std::sync::Arc<pingora_core::protocols::raw_connect::ProxyDigest>> {
                self.digest.clone()
            }

            fn set_proxy_digest(
                &mut self,
                _digest: pingora_core::protocols::raw_connect::ProxyDigest,
            ) {
            }
        }
    };
}

/// Implements tokio's writing for a wrapper that adds nothing to it, by its field `io`.
macro_rules! delegate_writes_to_io {
    ($wrapper:ty) => {
        impl tokio::io::AsyncWrite for $wrapper {
            fn poll_write(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                std::pin::Pin::new(&mut self.io).poll_write(cx, buf)
            }

            fn poll_write_vectored(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bufs: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                std::pin::Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
            }

            fn is_write_vectored(&self) -> bool {
                self.io.is_write_vectored()
            }

            fn poll_flush(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.io).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.io).poll_shutdown(cx)
            }
        }
    };
}

pub(crate) use {delegate_to_io, delegate_writes_to_io};
