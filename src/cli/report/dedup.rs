//! Which lines of the access log have been read already, and which are missing between them: a rotated log that is given twice
//! must not be billed twice.
//!
//! `instance` and `seq` name a line, so what is kept is two bytes a line and not the ids themselves. They are a hash of the
//! line's `event_id`: should two processes ever call themselves by the same `instance`, their lines differ in it and are all
//! counted, for a line that is dropped is revenue lost in silence.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher, RandomState};

/// Lines whose marks are kept in one piece: small enough that a log out of which most lines were filtered still takes less
/// memory than it has bytes.
const PAGE: u64 = 256;

/// Gaps that a message names one by one.
const GAPS_NAMED: usize = 5;

/// The lines that have been read.
#[derive(Default)]
pub struct Dedup {
    instances: Vec<Instance>,
    by_name: HashMap<Box<str>, usize>,
    /// The instance of the line before: nearly always that of the next one too.
    last: usize,
    /// Hashes of the ids of lines that `instance` and `seq` do not name.
    unnumbered: HashSet<u128>,
    hashers: [RandomState; 2],
}

/// What is missing of one process's lines. Displayed as a message.
#[derive(Debug, PartialEq, Eq)]
pub struct Gaps {
    /// Id of the process that wrote the lines.
    pub instance: Box<str>,
    /// Lines that are missing between the first and the last that were read.
    pub missing: u64,
    /// The first gaps, each from its first to its last missing `seq`.
    pub first: Vec<(u64, u64)>,
    /// Gaps in all.
    pub count: usize,
}

/// One process's lines.
struct Instance {
    name: Box<str>,
    /// By `seq / PAGE`. A mark of zero is a line not seen.
    pages: BTreeMap<u64, Box<[u16; PAGE as usize]>>,
}

impl Dedup {
    /// Takes note of a line; false if it has been read before. A line that has neither a number nor an id cannot be told
    /// from another and is always new.
    pub fn insert(
        &mut self,
        instance: Option<&str>,
        seq: Option<u64>,
        event_id: Option<&str>,
    ) -> bool {
        if let (Some(instance), Some(seq)) = (instance, seq) {
            let mark = self.mark(event_id.unwrap_or_default());
            let stored = self.instance(instance).mark_at(seq);
            if *stored == 0 {
                *stored = mark;
                return true;
            }
            if *stored == mark {
                return false;
            }
        }
        match event_id {
            Some(id) => self.insert_id(id),
            None => true,
        }
    }

    /// The processes of which lines are missing, in the order in which they were first met.
    pub fn gaps(&self) -> impl Iterator<Item = Gaps> {
        self.instances
            .iter()
            .map(Instance::gaps)
            .filter(|gaps| gaps.count > 0)
    }

    fn insert_id(&mut self, id: &str) -> bool {
        let [high, low] = self.hashers.each_ref().map(|hasher| hasher.hash_one(id));
        self.unnumbered
            .insert(u128::from(high) << 64 | u128::from(low))
    }

    /// Two bytes that stand for an id, never zero.
    fn mark(&self, event_id: &str) -> u16 {
        (self.hashers[0].hash_one(event_id) as u16).max(1)
    }

    fn instance(&mut self, name: &str) -> &mut Instance {
        if self
            .instances
            .get(self.last)
            .is_none_or(|last| *last.name != *name)
        {
            self.last = self.find_or_add(name);
        }
        &mut self.instances[self.last]
    }

    fn find_or_add(&mut self, name: &str) -> usize {
        if let Some(&index) = self.by_name.get(name) {
            return index;
        }
        self.instances.push(Instance {
            name: name.into(),
            pages: BTreeMap::new(),
        });
        self.by_name.insert(name.into(), self.instances.len() - 1);
        self.instances.len() - 1
    }
}

impl Instance {
    fn mark_at(&mut self, seq: u64) -> &mut u16 {
        let page = self
            .pages
            .entry(seq / PAGE)
            .or_insert_with(|| Box::new([0; PAGE as usize]));
        &mut page[(seq % PAGE) as usize]
    }

    fn gaps(&self) -> Gaps {
        let mut gaps = Gaps {
            instance: self.name.clone(),
            missing: 0,
            first: Vec::new(),
            count: 0,
        };
        let mut before = None;
        for seq in self.seqs() {
            if let Some(before) = before
                && seq - before > 1
            {
                gaps.add(before + 1, seq - 1);
            }
            before = Some(seq);
        }
        gaps
    }

    /// The numbers of the lines that were seen, ascending.
    fn seqs(&self) -> impl Iterator<Item = u64> {
        self.pages.iter().flat_map(|(number, page)| {
            (0..PAGE)
                .zip(page.iter())
                .filter(|(_, mark)| **mark != 0)
                .map(move |(at, _)| number * PAGE + at)
        })
    }
}

impl Gaps {
    fn add(&mut self, from: u64, to: u64) {
        self.missing += to - from + 1;
        self.count += 1;
        if self.first.len() < GAPS_NAMED {
            self.first.push((from, to));
        }
    }
}

impl fmt::Display for Gaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = if self.missing == 1 {
            "line is"
        } else {
            "lines are"
        };
        write!(
            f,
            "instance `{}`: {} {lines} missing: seq",
            self.instance.escape_debug(),
            self.missing
        )?;
        for (index, (from, to)) in self.first.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            if from == to {
                write!(f, "{comma} {from}")?
            } else {
                write!(f, "{comma} {from} to {to}")?
            }
        }
        match self.count - self.first.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn messages(dedup: &Dedup) -> Vec<String> {
        dedup.gaps().map(|gaps| gaps.to_string()).collect()
    }

    #[test]
    fn a_line_is_new_once() {
        let mut dedup = Dedup::default();
        assert!(dedup.insert(Some("a"), Some(1), Some("x#0")));
        assert!(!dedup.insert(Some("a"), Some(1), Some("x#0")));
        assert!(dedup.insert(Some("b"), Some(1), Some("y#0")));
        assert!(!dedup.insert(Some("b"), Some(1), Some("y#0")));
        assert!(!dedup.insert(Some("a"), Some(1), Some("x#0")));
    }

    #[test]
    fn lines_without_a_number_are_told_apart_by_their_id() {
        let mut dedup = Dedup::default();
        assert!(dedup.insert(None, Some(1), Some("x#0")));
        assert!(!dedup.insert(Some("a"), None, Some("x#0")));
        assert!(dedup.insert(None, None, Some("x#1")));
        assert!(dedup.insert(None, None, None));
        assert!(dedup.insert(None, None, None));
    }

    #[test]
    fn two_processes_of_one_name_are_not_taken_for_each_other() {
        let mut dedup = Dedup::default();
        let lines =
            || (0..100).flat_map(|seq| ["x", "y"].map(|run| (seq, format!("{run}{seq}#0"))));
        // The marks of two ids may be equal by chance, once in 65,535.
        let new = lines()
            .filter(|(seq, id)| dedup.insert(Some("a"), Some(*seq), Some(id)))
            .count();
        assert!(new >= 198, "{new}");
        assert_eq!(
            lines()
                .filter(|(seq, id)| dedup.insert(Some("a"), Some(*seq), Some(id)))
                .count(),
            0
        );
    }

    #[test]
    fn gaps_are_told_for_each_instance() {
        let mut dedup = Dedup::default();
        for seq in [7, 3, 4, 600, 8, 5, u64::MAX] {
            dedup.insert(Some("a"), Some(seq), None);
        }
        for seq in (0..20).step_by(2) {
            dedup.insert(Some("b"), Some(seq), None);
        }
        dedup.insert(Some("c"), Some(12), None);
        assert_eq!(
            messages(&dedup),
            [
                format!(
                    "instance `a`: {} lines are missing: seq 6, 9 to 599, 601 to {}",
                    u64::MAX - 601 + 592,
                    u64::MAX - 1
                ),
                "instance `b`: 9 lines are missing: seq 1, 3, 5, 7, 9 and 4 more".to_owned(),
            ]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn it_agrees_with_a_set_of_all_numbers(seqs in proptest::collection::vec(0u64..2000, 1..200)) {
            let mut dedup = Dedup::default();
            let mut set = std::collections::BTreeSet::new();
            for seq in seqs {
                prop_assert_eq!(dedup.insert(Some("a"), Some(seq), Some(&format!("{seq}#0"))), set.insert(seq));
            }
            let (first, last) = (set.first().unwrap(), set.last().unwrap());
            let missing = last - first + 1 - set.len() as u64;
            prop_assert_eq!(dedup.gaps().map(|gaps| gaps.missing).sum::<u64>(), missing);
        }
    }
}
