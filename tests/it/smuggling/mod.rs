//! Request smuggling and its kin: messages that two readers could take apart in two ways. Whatever a client sends, an
//! upstream that reads by the letter of the standard finds exactly the requests that the proxy logged, and whatever an
//! upstream answers, each client gets the answer to its own request.

mod answers;
mod http2;
mod requests;
mod upgrades;
mod wire;
