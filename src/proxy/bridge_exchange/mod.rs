//! A request that is converted for an upstream which speaks only Responses, from its body to the end of its answer. What
//! becomes of the bytes is the bridge's ([`crate::bridge`]); what is known of the request, its attempts and its line are
//! those of every request ([`RequestContext`]).
//!
//! It is answered within `request_filter`, for Pingora writes the head of a response as soon as the upstream's has come,
//! and here the status stays free until something is known of the answer. So it has connections of its own, made and
//! pooled by the same connectors.

mod client;
pub mod conversion;
mod decoding;
mod request;
mod upstream;
mod write;

use std::collections::HashMap;
use std::sync::Arc;

use pingora_core::connectors::ConnectorOptions;
use pingora_core::connectors::http::Connector;
use pingora_core::{Error, ErrorType};
use pingora_proxy::Session;

use crate::accounting::record::Termination;
use crate::accounting::usage::ResponseObserver;
use crate::bridge::{
    self, ModelsRequest, UpstreamBridge, UpstreamError, models_answer, token_count_answer,
};
use crate::codec::service_tier::Edit;
use crate::policy::endpoint::Endpoint;
use crate::proxy::bridge_exchange::client::Client;
use crate::proxy::bridge_exchange::conversion::Conversion;
use crate::proxy::bridge_exchange::request::Prepared;
use crate::proxy::bridge_exchange::upstream::Connection;
use crate::proxy::client_response::{Stop, check_response};
use crate::proxy::context::RequestContext;
use crate::proxy::error_mapping::{TIER_REFUSED, no_address};
use crate::state::State;
use crate::upstream::connector::UpstreamConnector;
use crate::upstream::connector::control::{AwaitedPhase, carried};

/// The most that is read of an upstream's answer that is no success, and of a token count, in bytes.
const ERROR_BYTES: usize = 256 * 1024;

/// What all bridged requests share.
pub struct Bridge {
    connector: Arc<Connector<UpstreamConnector>>,
    /// By name, those upstreams of which an endpoint is converted.
    upstreams: HashMap<String, Arc<UpstreamBridge>>,
}

impl Bridge {
    /// For the upstreams of a configuration.
    pub fn new(state: &State, options: ConnectorOptions) -> Self {
        let settings = state.config.upstreams.iter();
        let upstreams = settings.filter_map(|settings| {
            let bridge = UpstreamBridge::of(settings)?;
            Some((settings.name.clone(), Arc::new(bridge)))
        });
        Self {
            upstreams: upstreams.collect(),
            connector: Arc::new(Connector::new_custom(
                Some(options.clone()),
                UpstreamConnector::new(options),
            )),
        }
    }

    /// Whether this request, which was admitted, is to be converted.
    pub fn conversion(&self, context: &RequestContext) -> Option<Conversion> {
        let settings = &context.upstream.as_ref()?.config;
        let upstream = self.upstreams.get(&settings.name)?.clone();
        let info = &context.request_info;
        let (method, path) = (&info.method, &info.path);
        let endpoint = conversion::endpoint(settings, info.endpoint, method, path)?;
        Some(Conversion { endpoint, upstream })
    }

    /// Answers a request for the models of the map. False where it is none, or goes to the upstream.
    pub(super) async fn answer_models(
        &self,
        session: &mut Session,
        context: &mut RequestContext,
    ) -> Result<bool, Stop> {
        let Some(settings) = context.upstream.as_ref().map(|upstream| &upstream.config) else {
            return Ok(false);
        };
        let info = &context.request_info;
        let name = conversion::asked_model(settings, &info.method, &info.path);
        let (Some(upstream), Some(name)) = (self.upstreams.get(&settings.name), name) else {
            return Ok(false);
        };
        let head = session.req_header();
        let protocol = conversion::models_protocol(&head.headers);
        let query = head.uri.query().unwrap_or_default();
        let request = ModelsRequest {
            protocol,
            name,
            query,
        };
        let answer = models_answer(&request, &upstream.models);
        if !session.is_body_done() {
            // Nobody reads it.
            session.set_keepalive(None);
        }
        match answer {
            Ok(answer) => write::answer(session, context, &answer, Termination::Whole).await?,
            Err(refusal) => write::refuse(session, context, protocol, &refusal).await?,
        }
        Ok(true)
    }

    /// Serves a request to the end.
    pub(super) async fn serve(
        &self,
        session: &mut Session,
        context: &mut RequestContext,
        conversion: &Conversion,
    ) -> Result<(), Stop> {
        let word = conversion.endpoint.protocol().log_word();
        context.record.bridge = Some((word, String::new()));
        request::read(session, context).await?;
        let prepared = match request::prepare(session, context, conversion)? {
            Ok(prepared) => prepared,
            Err(refusal) => {
                let protocol = conversion.endpoint.protocol();
                return write::refuse(session, context, protocol, &refusal).await;
            }
        };
        match conversion.endpoint {
            bridge::Endpoint::CountTokens => {
                let client = Client::silent(session, context, &prepared);
                self.count(client, &prepared).await
            }
            bridge::Endpoint::Messages | bridge::Endpoint::Chat => {
                let client = Client::new(session, context, &prepared);
                self.generate(client, &prepared).await
            }
        }
    }

    /// The upstream's events, as they come, become the client's answer.
    async fn generate(&self, mut client: Client<'_>, prepared: &Prepared) -> Result<(), Stop> {
        let mut upstream = match self.reach(&mut client, prepared).await? {
            Ok(upstream) => upstream,
            Err(error) => return client.fail(&error).await,
        };
        let status = client.upstream_status();
        let output = if status == 200 {
            client.converter.upstream_head(upstream.content_type())
        } else {
            let body = read_whole(&mut client, &mut upstream).await?;
            let error = upstream_error(client.context, &upstream, status, &body);
            client.converter.upstream_error(&error)
        };
        if !client.apply(output).await? {
            relay(&mut client, &mut upstream).await?;
        }
        client.context.enter(AwaitedPhase::Idle, None);
        upstream.release();
        client.end().await
    }

    /// The upstream's count, or that there is none.
    async fn count(&self, mut client: Client<'_>, prepared: &Prepared) -> Result<(), Stop> {
        let (status, body, termination) = match self.reach(&mut client, prepared).await? {
            Ok(mut upstream) => {
                let body = read_whole(&mut client, &mut upstream).await?;
                client.context.enter(AwaitedPhase::Idle, None);
                upstream.release();
                let termination = client.context.termination();
                (client.upstream_status(), body, termination)
            }
            Err(error) => {
                let failure = client.context.failure_context();
                (0, Vec::new(), failure.termination_of(&error))
            }
        };
        let id = client.context.request_info.id.to_string();
        let answer = token_count_answer(status, &body, &id);
        write::answer(client.session, client.context, &answer, termination).await
    }

    /// Sends the request and waits for the head of an answer, in as many attempts as there may be.
    async fn reach(
        &self,
        client: &mut Client<'_>,
        prepared: &Prepared,
    ) -> Result<Result<Connection, Box<Error>>, Stop> {
        loop {
            match self.attempt(client, prepared).await? {
                Err(error) if error.retry() => {}
                Err(error) => return Ok(Err(error)),
                Ok(upstream) => {
                    let taken = take_head(client.context, &upstream);
                    return Ok(taken.map(|()| upstream));
                }
            }
        }
    }

    /// One attempt. Its error says whether there is to be another one.
    async fn attempt(
        &self,
        client: &mut Client<'_>,
        prepared: &Prepared,
    ) -> Result<Result<Connection, Box<Error>>, Stop> {
        let Some(peer) = client.context.next_peer() else {
            return Ok(Err(no_address()));
        };
        let connecting = Connection::open(&self.connector, peer);
        let (mut upstream, reused) = match client.wait(connecting).await? {
            Ok(opened) => opened,
            Err(error) => return Ok(Err(client.context.connect_failed(error).into_up())),
        };
        client.context.stream = carried(upstream.digest());
        let head = request::upstream_head(client.session, client.context, prepared);
        let head = head.map_err(Stop::Downstream)?;
        client.context.begin_attempt();
        let body = client.context.send_ready()?;
        let record = &mut client.context.record;
        let action = record.action;
        if action.is_none_or(|action| action.body == Edit::Keep) {
            record.sent.tier.clone_from(&prepared.tier);
        }
        client.context.ignore_client_abort();
        client.request_leaves();
        match client.wait(upstream.send(head, body)).await? {
            Ok(()) => {
                let head = upstream.response_head();
                if head.is_ok_and(|head| client.context.drop_refused_tier(head)) {
                    client.converter.without_tier();
                    return Ok(Err(tier_refused()));
                }
                Ok(Ok(upstream))
            }
            Err(error) => {
                let error = error.into_up();
                Ok(Err(client.context.attempt_failed(error, reused, true)))
            }
        }
    }
}

/// Reads an answer and gives the client what becomes of it, but for its end.
async fn relay(client: &mut Client<'_>, upstream: &mut Connection) -> Result<(), Stop> {
    let mut decoding = upstream.decoding().map_err(Stop::Downstream)?;
    loop {
        let read = client.wait(upstream.read()).await?;
        let piece = match read {
            Ok(Some(piece)) => piece,
            ended => {
                client.context.settle();
                client.count();
                let output = match ended {
                    Ok(_) if decoding.ends_here() => client.converter.finish(),
                    Ok(_) => client.converter.undecodable(),
                    Err(error) => client.broken(&error),
                };
                client.apply(output).await?;
                return Ok(());
            }
        };
        client.context.observe(&piece);
        client.count();
        for part in decoding.parts(&piece) {
            let output = match decoding.decode(part) {
                Ok(decoded) => client.converter.feed(&decoded),
                Err(_) => client.converter.undecodable(),
            };
            if client.apply(output).await? {
                return Ok(());
            }
            client.yield_when_due().await?;
        }
    }
}

/// The head of the upstream's answer: what the line tells of it, and who reads its usage.
fn take_head(context: &mut RequestContext, upstream: &Connection) -> Result<(), Box<Error>> {
    let mut head = upstream.response_head()?.clone();
    check_response(&mut head, context).map_err(|error| error.into_up())?;
    // The client was sent nothing of this head, but may have one of our own.
    let told = context.record.answer.status;
    context.record_response_head(head.status, &head.headers);
    context.record.answer.status = told;
    if context.request_info.endpoint.takes_tier() {
        // The first bytes tell whether it is a stream.
        context.observer = ResponseObserver::new(Endpoint::Responses, true, &head.headers);
    }
    context.await_more();
    Ok(())
}

/// The beginning of a short answer, decoded. One that breaks says what it said until then.
async fn read_whole(client: &mut Client<'_>, upstream: &mut Connection) -> Result<Vec<u8>, Stop> {
    let mut body = Vec::new();
    let mut decoding = upstream.decoding().map_err(Stop::Downstream)?;
    while body.len() < ERROR_BYTES {
        let Ok(Some(piece)) = client.wait(upstream.read()).await? else {
            break;
        };
        client.context.observe(&piece);
        for part in decoding.parts(&piece) {
            let Ok(decoded) = decoding.decode(part) else {
                return Ok(body);
            };
            body.extend_from_slice(&decoded);
            if body.len() >= ERROR_BYTES {
                break;
            }
        }
    }
    Ok(body)
}

fn upstream_error<'a>(
    context: &RequestContext,
    upstream: &'a Connection,
    status: u16,
    body: &'a [u8],
) -> UpstreamError<'a> {
    UpstreamError {
        status,
        retry_after: upstream.retry_after(),
        body,
        own_credential: request::has_own_credential(context),
        now: client::seconds_since_1970(),
    }
}

/// Asks for the attempt without the tier that this upstream refused.
fn tier_refused() -> Box<Error> {
    let mut error = Error::explain(TIER_REFUSED, "the upstream refuses the tier");
    error.set_retry(true);
    error
}

/// The client has left; its line is written, and Pingora is told.
fn client_left(context: &mut RequestContext, error: Box<Error>) -> Stop {
    context.finish(Termination::ClientClosed);
    Stop::Downstream(error.into_down())
}

/// The end of an answer that the client is to see as one that was cut.
fn cut() -> Stop {
    let error = Error::explain(ErrorType::ConnectionClosed, "the answer is not whole");
    Stop::Downstream(error.into_up())
}
