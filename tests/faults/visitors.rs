//! Clients of HTTP/1.1, with TLS and without: polite ones, and those that stall, leave at any byte, or talk too early.

use std::time::{Duration, Instant};

use super::chance::Chance;
use super::plan::{Act, Endpoint, Plan};
use super::upstream::answer_body;
use super::wire::{End, Wire};
use super::world::{Answered, World};

/// The proxy answers or closes far sooner, whatever the upstream does.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How a visit goes.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Polite,
    /// All requests at once.
    Pipelined,
    /// All of it, in small pieces.
    Dribbling,
    /// Gone after so many bytes of its requests.
    Vanishing {
        after: usize,
        reset: bool,
    },
    /// Silent after so many bytes, but there.
    Stalling {
        after: usize,
    },
    /// Gone at the first bytes of an answer.
    Leaving {
        reset: bool,
    },
    /// It sends no more behind its last request, and waits for the answer.
    HalfClosing,
}

impl Manner {
    fn choose(chance: &mut Chance, calm: bool, length: usize) -> Self {
        let odds = if calm { 80 } else { 20 };
        match chance.below(odds) {
            0 | 1 => Manner::Vanishing {
                after: chance.below(length),
                reset: chance.one_in(2),
            },
            2 => Manner::Stalling {
                after: chance.below(length),
            },
            3 | 4 => Manner::Leaving {
                reset: chance.one_in(2),
            },
            5 => Manner::Dribbling,
            6..9 => Manner::Pipelined,
            9 => Manner::HalfClosing,
            _ => Manner::Polite,
        }
    }
}

pub fn visit(world: &World, tag: u64) -> Option<()> {
    let mut chance = Chance::of(&[world.recipe.seed, 9, tag]);
    let with_tls = chance.one_in(5);
    let plans = plans(world, tag, chance.between(1, 3) as u64);
    let messages: Vec<Vec<u8>> = plans.iter().map(Plan::message).collect();
    let all = messages.concat();
    let manner = Manner::choose(&mut chance, world.recipe.calm, all.len());
    let mut wire = Wire::connect(world.address(with_tls), with_tls)?;
    wire.within(PATIENCE);
    match manner {
        Manner::Polite => {
            for (plan, message) in plans.iter().zip(&messages) {
                // A proxy that has refused the request may have closed; its answer is still to be read.
                let _ = wire.send(message);
                hear_answer(world, &mut wire, plan)?;
            }
        }
        Manner::Pipelined => {
            let _ = wire.send(&all);
            hear_answers(world, &mut wire, &plans)?;
        }
        Manner::HalfClosing => {
            let (last_plan, plans) = plans.split_last()?;
            for (plan, message) in plans.iter().zip(&messages) {
                let _ = wire.send(message);
                hear_answer(world, &mut wire, plan)?;
            }
            // An answer that comes early has begun when the end is sent. Behind a whole request it would be a client that left.
            let message = messages.last()?;
            let (first, last) = message.split_at(chance.below(message.len()));
            wire.send(first)?;
            std::thread::sleep(chance.millis(0, 40));
            wire.send(last)?;
            wire.end_sending();
            hear_answer(world, &mut wire, last_plan)?;
        }
        Manner::Dribbling => {
            for piece in all.chunks(all.len() / 7 + 1) {
                let _ = wire.send(piece);
                std::thread::sleep(chance.millis(0, 12));
            }
            hear_answers(world, &mut wire, &plans)?;
        }
        Manner::Stalling { after } => {
            wire.send(&all[..after])?;
            hear_answers(world, &mut wire, &plans)?;
        }
        Manner::Vanishing { after, reset } => {
            wire.send(&all[..after])?;
            std::thread::sleep(chance.millis(0, 15));
            wire.end(reset);
        }
        Manner::Leaving { reset } => {
            wire.send(&all)?;
            wire.await_byte(|| false);
            std::thread::sleep(chance.millis(0, 15));
            wire.end(reset);
        }
    }
    Some(())
}

/// The requests of a visit: up to the first behind which nothing can follow.
fn plans(world: &World, tag: u64, most: u64) -> Vec<Plan> {
    let mut plans: Vec<Plan> = Vec::new();
    for number in 0..most {
        if plans.last().is_none_or(Plan::may_be_followed) {
            plans.push(Plan::of(world.recipe, tag + number));
        }
    }
    plans
}

fn hear_answers(world: &World, wire: &mut Wire, plans: &[Plan]) -> Option<()> {
    plans
        .iter()
        .try_for_each(|plan| hear_answer(world, wire, plan))
}

/// Nothing where the connection goes no further.
fn hear_answer(world: &World, wire: &mut Wire, plan: &Plan) -> Option<()> {
    let begun = Instant::now();
    wire.within(PATIENCE);
    let heard = take_answer(world, wire, plan);
    if begun.elapsed() >= PATIENCE {
        world.find(format!(
            "{}: no answer and no end for {PATIENCE:?}",
            plan.tag
        ));
    }
    heard
}

fn take_answer(world: &World, wire: &mut Wire, plan: &Plan) -> Option<()> {
    let head = loop {
        let head = wire.head()?;
        if head.status()? >= 200 {
            break head;
        }
    };
    let mut body = Vec::new();
    let end = wire.body(&head, &mut body);
    if end == End::Garbled {
        world.find(format!("{}: the answer is garbled", plan.tag));
    }
    let whole = end == End::Whole;
    let request_id = head.header("x-tiergate-request-id").map(str::to_owned);
    note(world, plan, head.status()?, request_id, &body, whole);
    let closes = head
        .header("connection")
        .is_some_and(|value| value == "close");
    (whole && !closes).then_some(())
}

/// Takes note of an answer, and compares it with what the upstream said.
pub fn note(
    world: &World,
    plan: &Plan,
    status: u16,
    request_id: Option<String>,
    body: &[u8],
    whole: bool,
) {
    if status == 200 && whole {
        let told = answer_body(plan);
        let known = plan.endpoint != Endpoint::Models;
        if matches!(plan.reply.act, Act::Cut { .. } | Act::Endless) {
            world.find(format!(
                "{}: an answer that was cut ends as if it was whole",
                plan.tag
            ));
        } else if known && plan.reply.tells_usage() && body != told.as_bytes() {
            world.find(format!("{}: the answer has changed on its way", plan.tag));
        }
    }
    // Without an id there was no head that could be read.
    let Some(request_id) = request_id.filter(|_| whole) else {
        return;
    };
    let answered = Answered {
        request_id,
        status,
        bytes: body.len() as u64,
        at: Instant::now(),
    };
    world.note_answer(plan.tag, answered);
}
