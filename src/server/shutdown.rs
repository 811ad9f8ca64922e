//! The end of the requests that run when the process is told to stop.

use std::time::Duration;

use crate::server::listener::ServerContext;

/// How often the end of the last request is looked for.
const DRAIN_LOOK: Duration = Duration::from_millis(10);
/// How long requests that have not reached an upstream by the end of the drain may take to be answered.
const FINAL_RESPONSE_TIME: Duration = Duration::from_secs(1);

/// Lets the requests that run come to their end, and cuts those that take longer than they may; so many are cut.
pub(super) async fn drain(context: &ServerContext) -> i64 {
    let (state, limit) = (&context.state, context.state.config.server.drain);
    log::info!("draining for at most {limit:?}");
    context.tasks.close();
    let over = state.drain_over();
    let ending = async { over.run_until_cancelled(drained(context)).await };
    let ended = tokio::time::timeout(limit, ending).await;
    if ended != Ok(Some(())) {
        let cut = state.metrics.in_flight.get();
        log::warn!("the drain is over, {cut} requests are cut");
        if state.is_drain_over() {
            // Somebody waits for the end at the terminal.
            return cut;
        }
        state.end_drain();
        // Those that are still to arrive whole can be answered. Others are dropped with the runtime, whatever they wait for.
        let _ = tokio::time::timeout(FINAL_RESPONSE_TIME, drained(context)).await;
        return cut;
    }
    0
}

/// Connections have ended, and with them the requests; those of HTTP/2 run in tasks of their own. And every line is in the
/// log: what waits for it would end with the process.
async fn drained(context: &ServerContext) {
    context.tasks.wait().await;
    while context.state.metrics.in_flight.get() > 0 || !context.state.log.is_written() {
        tokio::time::sleep(DRAIN_LOOK).await;
    }
}
