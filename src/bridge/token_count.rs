//! The answer to `count_tokens`: the upstream's number, or 404 at any failure. No number is ever invented: with one
//! that is too small a client would shorten its conversation too late. Claude Code estimates by itself after a 404.

use super::Protocol;
use super::error::{Answer, Refusal};
use super::json::{object, parse_document};

/// The client's answer to what `/responses/input_tokens` has answered; without an upstream's answer, status 0 will do.
pub fn token_count_answer(status: u16, body: &[u8], request_id: &str) -> Answer {
    let counted = || parse_document(body).ok()?.member_number("input_tokens");
    match counted().filter(|_| status == 200) {
        Some(tokens) => Answer::json(200, object! {"input_tokens": tokens}),
        None => Refusal::no_token_count().answer(Protocol::Messages, request_id),
    }
}
