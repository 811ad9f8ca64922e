//! What is written down of a request: its record and line in the access log, the tokens that its response names, what they
//! cost, and the metrics. It decides nothing.

pub mod access_log;
pub(crate) mod background;
pub(crate) mod history;
pub mod metrics;
pub mod prices;
pub mod process;
pub mod record;
pub(crate) mod redaction;
pub(crate) mod store;
pub mod traces;
pub mod usage;
