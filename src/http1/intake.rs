//! Bodies that are held, read from their client past Pingora and under the limits of time.

use std::time::Duration;

use pingora_core::{Error, ErrorType, OrErr};
use tokio::time::{Instant, timeout_at};

use crate::codec::error::{Cause, Refusal};
use crate::proxy::context::{Body, Exchange};

/// How long a client is heard out that was answered before it has sent everything, and how much of what it sends is read: a
/// close with bytes unread would take the answer away from it.
pub const LINGER_TIME: Duration = Duration::from_secs(2);
pub const LINGER_BYTES: usize = 1 << 20;

/// What is read at a time of a body that is decoded.
const CODED_BYTES: usize = 16 * 1024;

/// Why a request goes no further.
pub enum Stop {
    Refused(Refusal),
    /// The connection to the client is at fault.
    Broken(Box<Error>),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Stop::Refused(refusal)
    }
}

/// What a read of a client's body gives, if it gives anything before the whole body's time and that of one read are over.
pub async fn in_time<T>(
    read: impl Future<Output = T>,
    deadline: Instant,
    idle_timeout: Duration,
) -> Result<T, Stop> {
    timeout_at(deadline.min(Instant::now() + idle_timeout), read)
        .await
        .map_err(|_| Stop::Refused(Cause::RequestTimeout.into()))
}

/// Reads what of a held body is read past Pingora, straight into the buffer in which it is held.
///
/// # Errors
/// Where it is refused or does not come.
pub async fn read_past(exchange: &mut Exchange, deadline: Instant) -> Result<(), Stop> {
    let idle_timeout = exchange.state.limits.body_idle_timeout;
    let Some(direct) = &mut exchange.direct else {
        return Ok(());
    };
    let Body::Held(held) = &mut exchange.body else {
        return Err(Stop::Refused(Cause::Internal.into()));
    };
    let mut coded = Vec::new();
    while direct.left() > 0 {
        let buffer = held.buffer();
        let is_coded = buffer.is_none();
        let buffer = buffer.unwrap_or(&mut coded);
        let mut read = direct.take_ahead(buffer);
        if read == 0 {
            if is_coded {
                buffer.reserve(CODED_BYTES);
            }
            read = in_time(direct.read(buffer), deadline, idle_timeout)
                .await?
                .or_err(ErrorType::ReadError, "reading a body")
                .map_err(|error| Stop::Broken(error.into_down()))?;
        }
        if read == 0 {
            let error = Error::explain(ErrorType::ConnectionClosed, "a body was cut");
            return Err(Stop::Broken(error.into_down()));
        }
        exchange.turn.request_bytes += read as u64;
        if is_coded {
            held.push(&coded)?;
            coded.clear();
        } else {
            held.check(read as u64)?;
        }
    }
    Ok(())
}
