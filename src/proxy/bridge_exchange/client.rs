//! The client's side of a bridged request: the answer under way, and what is written of it when.

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Version, header};
use pingora_core::{Error, Result};
use pingora_proxy::Session;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::{client_left, cut};
use crate::accounting::record::Termination;
use crate::bridge::{Delivery, Limits, Output, ResponseConverter, STREAM_HEADERS, Usage};
use crate::codec::body_memory::Lease;
use crate::codec::error::{Cause, Refusal};
use crate::config::ServedTier;
use crate::proxy::bridge_exchange::request::Prepared;
use crate::proxy::bridge_exchange::write;
use crate::proxy::client_response::{Stop, flush};
use crate::proxy::context::RequestContext;
use crate::proxy::time_slice::TimeSlice;

/// The most of an answer that is held to be sent whole, and of one event, in bytes.
const ANSWER_BYTES: u64 = 32 << 20;

/// A client, its request, and the answer to it.
pub(super) struct Client<'a> {
    pub session: &'a mut Session,
    pub context: &'a mut RequestContext,
    /// What becomes of the upstream's words; [`Client::apply`] does what it says.
    pub converter: ResponseConverter,
    /// When something has to be written, if nothing comes before.
    keepalive: Option<Keepalive>,
    /// Memory for an answer that the client gets whole.
    lease: Option<Lease>,
    /// The head was written.
    head_sent: bool,
    /// How it ended, once it has.
    completed: Option<bool>,
    /// Since when it has neither let others run nor looked after its client.
    time: TimeSlice,
}

/// What keeps a stream alive.
struct Keepalive {
    /// From the request's leaving to the beginning of the answer, where nothing is known of it by then.
    commit_after: Duration,
    /// From one byte to the next.
    ping: Duration,
    /// When the request left, or the last byte was written.
    since: Option<Instant>,
}

impl<'a> Client<'a> {
    /// For a request whose bytes are ready to leave.
    pub fn new(
        session: &'a mut Session,
        context: &'a mut RequestContext,
        prepared: &Prepared,
    ) -> Self {
        let options = &prepared.conversion.upstream.options;
        let answered = prepared.context.clone();
        let keepalive = answered.stream.then_some(Keepalive {
            commit_after: options.commit_after,
            ping: options.ping,
            since: None,
        });
        // Nothing is held yet, for which there is always room.
        let lease = context.state.body_memory.lease(0).ok();
        Self {
            lease: lease.filter(|_| !answered.stream),
            converter: ResponseConverter::new(answered, delivery(context, prepared)),
            session,
            context,
            keepalive,
            head_sent: false,
            completed: None,
            time: TimeSlice::begin(),
        }
    }

    /// For a request that gets a short answer and nothing before.
    pub fn silent(
        session: &'a mut Session,
        context: &'a mut RequestContext,
        prepared: &Prepared,
    ) -> Self {
        Self {
            keepalive: None,
            ..Self::new(session, context, prepared)
        }
    }

    /// The request is about to leave: its tier is known, and the time to its answer begins.
    pub fn request_leaves(&mut self) {
        if let Some(keepalive) = &mut self.keepalive {
            keepalive.since.get_or_insert_with(Instant::now);
        }
    }

    /// Waits for something of the upstream, keeps the stream alive, and notices a client that leaves.
    pub async fn wait<T>(
        &mut self,
        work: impl Future<Output = Result<T>>,
    ) -> Result<Result<T>, Stop> {
        tokio::pin!(work);
        loop {
            let due = self.due();
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                left = self.session.as_downstream_mut().read_body_or_idle(true) => {
                    return Err(gone(self.context, left));
                }
                () = until(due) => self.send_keepalive().await?,
            }
        }
    }

    /// Between two pieces of an answer: where more of it is always there, nobody waits, so that neither other requests would
    /// have their turn nor a client that leaves would be noticed.
    pub async fn yield_when_due(&mut self) -> Result<(), Stop> {
        if !self.time.end_when_due().await {
            return Ok(());
        }
        tokio::select! {
            biased;
            left = self.session.as_downstream_mut().read_body_or_idle(true) => Err(gone(self.context, left)),
            () = std::future::ready(()) => Ok(()),
        }
    }

    /// The status of the upstream's newest response, once its head is here.
    pub fn upstream_status(&self) -> u16 {
        let answer = &self.context.record.answer;
        answer.upstream_status.unwrap_or_default()
    }

    /// Before the bytes that end an answer are converted: what the line is to tell of its usage is what the client is told.
    pub fn count(&mut self) {
        let Some(usage) = self.context.final_usage() else {
            return;
        };
        self.converter.count(Usage {
            input: usage.input_tokens.unwrap_or(0),
            cached: usage.cached_input_tokens.unwrap_or(0),
            cache_write: usage.cache_write_tokens,
            output: usage.output_tokens.unwrap_or(0),
            reasoning: usage.reasoning_tokens.unwrap_or(0),
        });
    }

    /// The upstream's answer has broken off.
    pub fn broken(&mut self, error: &Error) -> Output {
        match self.context.failure_context().termination_of(error) {
            Termination::Timeout | Termination::Refused(Cause::UpstreamTimeout) => {
                self.converter.timed_out()
            }
            _ => self.converter.cut(),
        }
    }

    /// No response came. Where the head of a stream was sent for want of one, that is told in it.
    pub async fn fail(mut self, error: &Error) -> Result<(), Stop> {
        if self.head_sent {
            let output = self.broken(error);
            self.apply(output).await?;
            return self.end().await;
        }
        self.context.conclude_failure(error);
        let refusal = self.context.refusal.take();
        Err(Stop::Refused(
            refusal.unwrap_or_else(|| Cause::UpstreamReset.into()),
        ))
    }

    /// Does what the bridge says. True when the answer is over; its last bytes are still to be written by
    /// [`Client::end`].
    pub async fn apply(&mut self, output: Output) -> Result<bool, Stop> {
        self.account(&output)?;
        if matches!(output, Output::End { .. } | Output::Answer(_))
            && let Some(name) = self.converter.dropped()
            && let Some((_, dropped)) = &mut self.context.record.bridge
        {
            let separator = if dropped.is_empty() { "" } else { "," };
            dropped.push_str(separator);
            dropped.push_str(name);
        }
        match output {
            Output::Nothing => Ok(false),
            Output::Write(bytes) => {
                self.write(bytes).await?;
                Ok(false)
            }
            Output::End { bytes, whole } => {
                self.completed = Some(whole);
                if !self.head_sent {
                    self.begin().await?;
                }
                // Nor is a client to have the end of what is not in the log; and it may ask again at once.
                self.context.finish(self.termination());
                write::body(self.session, self.context, bytes, false).await?;
                Ok(true)
            }
            Output::Answer(answer) => {
                self.completed = Some(true);
                let termination = self.termination();
                write::answer(self.session, self.context, &answer, termination).await?;
                Ok(true)
            }
        }
    }

    /// Keeps what is held of an answer within the budget of the process. A client that gets it whole has seen nothing yet.
    fn account(&mut self, output: &Output) -> Result<(), Refusal> {
        let Some(lease) = &mut self.lease else {
            return Ok(());
        };
        let answer = match output {
            Output::Answer(answer) => answer.body.len(),
            _ => 0,
        };
        let held = (self.converter.held() + answer) as u64;
        lease.grow_to(held)?;
        lease.shrink_to(held);
        Ok(())
    }

    /// Ends the message that the answer is in, in good order or so that the client can tell.
    pub async fn end(self) -> Result<(), Stop> {
        match (self.head_sent, self.completed) {
            (true, Some(true)) => self
                .session
                .write_response_body(None, true)
                .await
                .map_err(|error| Stop::Downstream(error.into_down())),
            (true, _) => {
                flush(self.session).await;
                Err(cut())
            }
            (false, _) => Ok(()),
        }
    }

    /// How it ends, in the words of the line.
    fn termination(&self) -> Termination {
        let Some(cause) = self.converter.log_error() else {
            // What is billed by are the upstream's bytes and the client's status, neither of which may tell.
            return match self.head_sent && self.converter.has_untold_failure() {
                true => Termination::Refused(Cause::UpstreamReset),
                false => Termination::Whole,
            };
        };
        match cause {
            Cause::UpstreamTimeout if self.head_sent => Termination::Timeout,
            Cause::UpstreamReset if self.head_sent => Termination::UpstreamCut,
            cause => Termination::Refused(cause),
        }
    }

    /// When [`Client::send_keepalive`] is due.
    fn due(&self) -> Option<Instant> {
        let keepalive = self.keepalive.as_ref()?;
        let wait = match self.head_sent {
            true => keepalive.ping,
            false => keepalive.commit_after,
        };
        Some(keepalive.since? + wait)
    }

    /// The upstream lives and says nothing: the client is to see that its request does, too.
    async fn send_keepalive(&mut self) -> Result<(), Stop> {
        let output = match self.converter.has_begun() {
            true => self.converter.ping(),
            false => self.converter.commit(),
        };
        self.reset_keepalive();
        self.apply(output).await?;
        Ok(())
    }

    async fn write(&mut self, bytes: Vec<u8>) -> Result<(), Stop> {
        if !self.head_sent {
            self.begin().await?;
        }
        write::body(self.session, self.context, bytes, false).await?;
        self.reset_keepalive();
        Ok(())
    }

    /// Something was written just now.
    fn reset_keepalive(&mut self) {
        if let Some(keepalive) = &mut self.keepalive {
            keepalive.since = Some(Instant::now());
        }
    }

    /// The head of a stream.
    async fn begin(&mut self) -> Result<(), Stop> {
        self.head_sent = true;
        let mut head =
            write::head_of(self.context, 200, &STREAM_HEADERS).map_err(Stop::Downstream)?;
        let client = self.session.req_header().version;
        if client == Version::HTTP_11 {
            let chunked = head.insert_header(header::TRANSFER_ENCODING, "chunked");
            chunked.map_err(Stop::Downstream)?;
        }
        write::head(self.session, self.context, head).await
    }
}

/// The client has left, or goes on though its request was whole.
fn gone(context: &mut RequestContext, read: Result<Option<Bytes>>) -> Stop {
    match read {
        Err(error) => client_left(context, error),
        Ok(_) => Cause::InvalidHttp.into(),
    }
}

fn delivery(context: &RequestContext, prepared: &Prepared) -> Delivery {
    let limits = &context.state.limits;
    let most = limits.decoded_body.min(ANSWER_BYTES) as usize;
    let served = context.upstream.as_ref();
    Delivery {
        request_id: context.request_info.id.to_string(),
        created: seconds_since_1970(),
        fallback_id: Uuid::now_v7().simple().to_string(),
        sent_tier: prepared.tier.clone(),
        tier_trusted: served
            .is_some_and(|upstream| upstream.config.served_tier == ServedTier::Trusted),
        limits: Limits {
            event: most,
            whole: most,
            ..Limits::default()
        },
    }
}

pub(super) fn seconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// Returns at that time, and never where there is none.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
