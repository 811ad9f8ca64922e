//! Names of the keys on the server, and the commands that write them. It sends nothing.

use jiff::Timestamp;
use redis::Cmd;
use rust_decimal::Decimal;

use crate::accounting::background::{BackgroundChanges, BackgroundCreate, MAX_AGE};
use crate::accounting::store::KEPT_SECONDS;
use crate::policy::budget::{Account, BudgetSum, Window};

/// `tiergate:budget:PERIOD:BEGINS:ENDS:KEY:GROUP`, a hash of processes and what each has spent, in USD. KEY is the digest, or `-`.
const SUM: &str = "tiergate:budget:";
/// `tiergate:background:UPSTREAM/ID`: who created the response, as JSON; empty once it is billed.
pub(super) const RESPONSE: &str = "tiergate:background:";
/// A sorted set of all keys by the number of their last change.
pub(super) const INDEX: &str = "tiergate:index";
/// A hash: `last`, the last number that was given, and `epoch`, which tells whether the sequence has begun anew.
pub(super) const SEQUENCE: &str = "tiergate:sequence";
/// On this channel a process says its name when it has changed something.
pub(super) const CHANGED: &str = "tiergate:changed";

/// How long the index and the sequence live without use: for longer than a month and a week. So it stands in the script.
pub(super) const INDEX_SECONDS: &str = "3456000";

/// Gives the key the next number.
macro_rules! numbered {
    ($script:literal) => {
        concat!(
            $script,
            "redis.call('ZADD', KEYS[2], redis.call('HINCRBY', KEYS[3], 'last', 1), KEYS[1])
            redis.call('EXPIRE', KEYS[2], 3456000)
            redis.call('EXPIRE', KEYS[3], 3456000)
            return was"
        )
    };
}

/// Arguments: a process, what it has spent, and when the sum expires. A field never falls: what comes late changes nothing.
const SAVE_SUM: &str = numbered!(
    "local was = redis.call('HGET', KEYS[1], ARGV[1])
    if was == ARGV[2] or was and (tonumber(was) or 0) > tonumber(ARGV[2]) then return was end
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
    redis.call('EXPIREAT', KEYS[1], ARGV[3])
    "
);

/// Arguments: who created the response, and for how many seconds it is kept. One that is billed stays so.
const CREATE: &str = numbered!(
    "local was = redis.call('GET', KEYS[1])
    if was then return was end
    redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
    "
);

/// Argument: for how many seconds it is kept that the response is billed. The answer is what was there before.
const BILL: &str = numbered!(
    "local was = redis.call('GET', KEYS[1])
    redis.call('SET', KEYS[1], '', 'EX', ARGV[1])
    if was == '' then return was end
    "
);

/// A command with these arguments.
pub(super) fn command(name: &str, arguments: &[&str]) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(arguments);
    command
}

/// A script for this key.
fn script(script: &str, key: &str) -> Cmd {
    command("EVAL", &[script, "3", key, INDEX, SEQUENCE])
}

/// Raises what a process has spent.
pub(super) fn save(key: &str, process: &str, usd: Decimal, window: Window) -> Cmd {
    let mut command = script(SAVE_SUM, key);
    command
        .arg(process)
        .arg(usd.to_string())
        .arg(window.ends.as_second() + KEPT_SECONDS);
    command
}

/// A response is to be billed.
pub(super) fn create(id: &str, create: &BackgroundCreate) -> Cmd {
    let mut command = script(CREATE, &response_key(id));
    // It is made of texts and times, which JSON can always tell.
    command
        .arg(serde_json::to_string(create).unwrap_or_default())
        .arg(MAX_AGE.as_secs());
    command
}

/// A response is billed by whoever gets what was held of it.
pub(super) fn bill(id: &str) -> Cmd {
    let mut command = script(BILL, &response_key(id));
    command.arg(MAX_AGE.as_secs());
    command
}

/// What changed since the server was last told.
pub(super) fn tell(changes: &BackgroundChanges) -> impl Iterator<Item = Cmd> {
    let created = changes.created.iter();
    let created = created.map(|(id, create)| self::create(id, create));
    created.chain(changes.settled.iter().map(|id| bill(id)))
}

/// What was written of a response that is not billed yet.
pub(super) fn created(text: &str) -> Option<BackgroundCreate> {
    serde_json::from_str(text).ok()
}

/// Name of the key of a response.
fn response_key(id: &str) -> String {
    [RESPONSE, id].concat()
}

/// Name of the key of a sum.
pub(super) fn sum_key(entry: &BudgetSum) -> String {
    let BudgetSum {
        account, window, ..
    } = entry;
    let key = account.key.map_or("-".to_owned(), hex::encode);
    let (begins, ends) = (window.begins.as_second(), window.ends.as_second());
    format!(
        "{SUM}{}:{begins}:{ends}:{key}:{}",
        account.per.as_str(),
        account.group
    )
}

/// Whose sum this is, and when.
pub(super) fn parse_sum_key(name: &str) -> Option<(Account, Window)> {
    let mut parts = name.strip_prefix(SUM)?.splitn(5, ':');
    let mut part = || parts.next();
    let (per, begins, ends, key, group) = (part()?, part()?, part()?, part()?, part()?);
    let key = match key {
        "-" => None,
        digest => {
            let mut bytes = [0; 32];
            hex::decode_to_slice(digest, &mut bytes).ok()?;
            Some(bytes)
        }
    };
    let account = Account {
        group: group.into(),
        key,
        per: per.parse().ok()?,
    };
    let second = |text: &str| Timestamp::from_second(text.parse().ok()?).ok();
    let window = Window {
        begins: second(begins)?,
        ends: second(ends)?,
    };
    Some((account, window))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::store::test::{NOW, at, rule, usd};
    use crate::policy::group::{Period, Scope};

    #[test]
    fn the_name_of_a_sum_tells_whose_it_is() {
        for scope in [Scope::Group, Scope::Key] {
            let rule = rule(Period::Month, scope);
            let entry = BudgetSum {
                account: rule.account(&"a:group - with: all".into(), &[7; 32]),
                window: rule.window(at(NOW)),
                usd: usd("1"),
            };
            let name = sum_key(&entry);
            assert!(name.starts_with("tiergate:budget:month:1793491200:1796083200:"));
            let told = parse_sum_key(&name);
            assert_eq!(told, Some((entry.account, entry.window)), "{name}");
        }
        for other in ["tiergate:budget:month:1:2:-", "tiergate:background:r", "x"] {
            assert_eq!(parse_sum_key(other), None);
        }
    }
}
