//! What a whole forced request costs in CPU, beside a Pingora that only passes the bytes on, and nginx doing the same where
//! it is installed: `cargo bench --bench request [SECONDS]`. First before an upstream of HTTP/2 over TLS, as the sample
//! configuration has it, then before a plain one. On Linux, with two cores: the proxies take turns on the one,
//! upstream and clients share the other.

mod load;
mod samples;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use load::{Proxy, ROUNDS};
use samples::request;

const SIZES: [(&str, &str); 4] = [
    ("1 KB", "agent_1k"),
    ("16 KB", "codex_16k"),
    ("256 KB", "codex_256k"),
    ("2 MB", "codex_2m"),
];
const CONNECTIONS: usize = 32;

fn main() -> io::Result<()> {
    load::pass_on_if_bare();
    let seconds = std::env::args().find_map(|argument| argument.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(3));
    load::pin(std::process::id(), 1);
    println!(
        "CPU per request in µs, median of {ROUNDS} rounds (least to most); ratio to the first"
    );
    let folder = tempfile::tempdir()?;
    let upstream = load::start_upstream(load::http2::answer_all)?;
    let proxies = load::start_all_http2(folder.path(), upstream)?;
    measure_all("HTTP/2 over TLS", &proxies, time)?;
    drop(proxies);
    let folder = tempfile::tempdir()?;
    let upstream = load::start_upstream(load::answer_all)?;
    let proxies = load::start_all(folder.path(), upstream, "")?;
    measure_all("HTTP/1.1, plain", &proxies, time)
}

fn measure_all(upstream: &str, proxies: &[Proxy], time: Duration) -> io::Result<()> {
    println!("upstream: {upstream}");
    for (label, name) in SIZES {
        measure(label, &Arc::new(request(name)), proxies, time)?;
    }
    Ok(())
}

fn measure(
    label: &str,
    request: &Arc<Vec<u8>>,
    proxies: &[Proxy],
    time: Duration,
) -> io::Result<()> {
    let costs = load::in_turns(proxies, |proxy| {
        Ok(load::load(proxy, request, CONNECTIONS, time)?.cost())
    })?;
    let names = proxies.iter().map(|proxy| proxy.name);
    let names: Vec<String> = names.map(|name| format!("{label:>7}  {name:20}")).collect();
    load::print_costs(&names, costs);
    Ok(())
}
