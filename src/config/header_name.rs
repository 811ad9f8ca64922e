//! Names of headers that several rooms speak of, in lower case.

/// The id of a request, which its client is told.
pub(crate) const REQUEST_ID: &str = "x-tiergate-request-id";
/// The header in which clients of Anthropic send a key.
pub(crate) const X_API_KEY: &str = "x-api-key";
/// The header in which clients of Azure OpenAI send a key.
pub(crate) const API_KEY: &str = "api-key";
