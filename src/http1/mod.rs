//! The second way, soon to go.

pub mod answer;
pub mod client_stream;
pub mod connection;
pub mod idle;
pub mod intake;
pub mod passing;
pub mod patient_h2;
pub mod plain_request;
pub mod relay;
pub mod tunnel;
pub mod upload;
