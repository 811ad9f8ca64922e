//! All tests that need nothing of their own process: one program, so that Pingora is linked once. What has an allocator, a
//! child reaper or the whole machine to itself stands beside it.

#![recursion_limit = "256"]

#[path = "../support/mod.rs"]
mod support;

mod admin_page;
mod billing;
mod bridge;
mod budget;
mod chat_stream_usage;
mod cli;
mod client_address;
mod clients;
mod config_errors;
mod credential_file;
mod diff;
mod docs;
mod floods;
mod gate;
mod headers;
mod ledger;
mod limits;
mod log;
mod memory;
mod monitoring;
mod nginx;
mod operations;
mod probe;
mod reconcile;
mod reload;
mod report;
mod secrets;
mod service_tier;
mod smuggling;
mod state_redis;
mod tier_refused;
mod traces;
mod unix_sockets;
mod upstream_http1;
mod upstream_http2;
mod upstreams;
mod usage;
mod websocket;
mod websocket_live;
mod websocket_session;
