//! Stop sequences, which Responses does not have: watches a text that comes in pieces, and holds back what may be the
//! beginning of one. It does not end the answer by itself. However many and long they are, a byte of the text is looked at
//! once, and a piece costs what it is long: all sequences are one automaton (Aho and Corasick), which remembers where it is.

use aho_corasick::Anchored;
use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::nfa::contiguous::NFA;

/// The watch over one answer's text.
#[derive(Clone, Debug)]
pub(crate) struct StopSequences {
    sequences: Vec<String>,
    /// What looks for all of them; `None` where there are none.
    search: Option<Search>,
    /// Characters to hold back: one less than the longest sequence has.
    keep: usize,
    held: String,
    /// Characters of `held`.
    held_length: usize,
    /// The sequence that was found.
    found: Option<String>,
}

/// A search that goes on from piece to piece.
#[derive(Clone, Debug)]
struct Search {
    automaton: NFA,
    state: StateID,
    /// Steps so far, each of the same small cost.
    #[cfg(test)]
    steps: usize,
}

/// Where in what is held a sequence was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    start: usize,
    /// Which sequence, in the order in which they were listed.
    sequence: usize,
}

impl StopSequences {
    /// Watches for these, none of which is empty.
    pub(crate) fn new(sequences: Vec<String>) -> Self {
        let longest = sequences
            .iter()
            .map(|sequence| sequence.chars().count())
            .max();
        StopSequences {
            keep: longest.unwrap_or(1).saturating_sub(1),
            search: Search::new(&sequences),
            sequences,
            held: String::new(),
            held_length: 0,
            found: None,
        }
    }

    /// The sequence that was found; all text from it on is gone.
    pub(crate) fn found(&self) -> Option<&str> {
        self.found.as_deref()
    }

    /// What may be sent now that this text has come.
    pub(crate) fn push(&mut self, text: &str) -> String {
        if self.found.is_some() {
            return String::new();
        }
        let Some(search) = &mut self.search else {
            return text.to_owned();
        };
        let before = self.held.len();
        self.held.push_str(text);
        if let Some(place) = search.push(text, before) {
            self.found = self.sequences.get(place.sequence).cloned();
            self.held.truncate(place.start);
            return self.flush();
        }
        self.held_length += text.chars().count();
        let free = self.held_length.saturating_sub(self.keep);
        let end = self.held.char_indices().nth(free);
        let end = end.map_or(self.held.len(), |(at, _)| at);
        self.held_length -= free;
        self.held.drain(..end).collect()
    }

    /// The text has ended: what was held back may be sent.
    pub(crate) fn flush(&mut self) -> String {
        if let Some(search) = &mut self.search {
            search.restart();
        }
        self.held_length = 0;
        std::mem::take(&mut self.held)
    }
}

impl Search {
    /// A search for these; `None` where there are none.
    fn new(sequences: &[String]) -> Option<Self> {
        if sequences.is_empty() {
            return None;
        }
        // It fails only for more states than 32 bits can count; requests are bounded far below that.
        let automaton = NFA::new(sequences).ok()?;
        let state = automaton.start_state(Anchored::No).ok()?;
        Some(Search {
            automaton,
            state,
            #[cfg(test)]
            steps: 0,
        })
    }

    /// Looks at more text, before which there are so many bytes. Of several places in it the earliest counts, and at one
    /// place the sequence that was listed first.
    fn push(&mut self, text: &str, before: usize) -> Option<Place> {
        let mut first: Option<Place> = None;
        for (byte, end) in text.bytes().zip(before + 1..) {
            self.step(byte);
            for number in 0..self.matches() {
                let pattern = self.automaton.match_pattern(self.state, number);
                let place = Place {
                    start: end.saturating_sub(self.automaton.pattern_len(pattern)),
                    sequence: pattern.as_usize(),
                };
                first = Some(first.map_or(place, |first| first.min(place)));
            }
        }
        first
    }

    fn step(&mut self, byte: u8) {
        #[cfg(test)]
        {
            self.steps += 1;
        }
        self.state = self.automaton.next_state(Anchored::No, self.state, byte);
    }

    /// How many sequences end here.
    fn matches(&self) -> usize {
        if self.automaton.is_match(self.state) {
            self.automaton.match_len(self.state)
        } else {
            0
        }
    }

    /// What follows has nothing to do with what was before.
    fn restart(&mut self) {
        if let Ok(start) = self.automaton.start_state(Anchored::No) {
            self.state = start;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(sequences: &[&str]) -> StopSequences {
        StopSequences::new(sequences.iter().map(|one| (*one).to_owned()).collect())
    }

    /// All that is given of a text that comes in pieces, and what was found.
    fn given(sequences: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let mut watch = watch(sequences);
        let mut given: String = pieces.iter().map(|piece| watch.push(piece)).collect();
        given += &watch.flush();
        (given, watch.found().map(str::to_owned))
    }

    #[test]
    fn text_up_to_the_earliest_sequence_is_given_however_it_is_cut() {
        let cases: [(&[&str], &str, &str, Option<&str>); 8] = [
            (&[], "all", "all", None),
            (&["</b>", "zz"], "yes</b>no", "yes", Some("</b>")),
            (&["zz", "</b>"], "a<//b</b>zz", "a<//b", Some("</b>")),
            (&["aab"], "aaaab", "aa", Some("aab")),
            (
                &["e\u{301}é"],
                "xe\u{301}e\u{301}éy",
                "xe\u{301}",
                Some("e\u{301}é"),
            ),
            (&["x"], "x", "", Some("x")),
            (
                &["longer than the text"],
                "longer than",
                "longer than",
                None,
            ),
            (&["é"], "e\u{301}\u{e9}", "e\u{301}", Some("é")),
        ];
        for (sequences, text, before, found) in cases {
            let expected = (before.to_owned(), found.map(str::to_owned));
            assert_eq!(given(sequences, &[text]), expected, "{text}");
            let letters: Vec<String> = text.chars().map(String::from).collect();
            let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
            assert_eq!(given(sequences, &letters), expected, "{text}");
        }
    }

    #[test]
    fn of_those_in_one_piece_the_earliest_counts_and_at_one_place_the_first_listed() {
        let found = |sequences, text| given(sequences, &[text]).1;
        assert_eq!(found(&["bc", "abcd"], "abcd").as_deref(), Some("abcd"));
        assert_eq!(found(&["ab", "abc"], "abc").as_deref(), Some("ab"));
        assert_eq!(found(&["abc", "ab"], "abc").as_deref(), Some("abc"));
    }

    #[test]
    fn what_may_begin_a_sequence_is_held_back_and_no_more() {
        let mut watch = watch(&["12345", "x"]);
        assert_eq!(watch.push("abc"), "");
        assert_eq!(watch.push("dé"), "a");
        assert_eq!(watch.push("fghij"), "bcdéf");
        assert_eq!(watch.flush(), "ghij");
        assert_eq!(watch.push("12"), "");
        assert_eq!(watch.flush(), "12");
        // Another text: the first has ended in between.
        assert_eq!(
            (watch.push("345678"), watch.found()),
            ("34".to_owned(), None)
        );
    }

    #[test]
    fn a_piece_costs_what_it_is_long_whatever_is_looked_for() {
        let long = "y".repeat(16_000) + "z";
        let many: Vec<String> = (0..63)
            .map(|number| format!("{}{number}", "y".repeat(200)))
            .collect();
        let mut watch = StopSequences::new([vec![long], many].concat());
        let mut given = 0;
        for _ in 0..10_000 {
            given += watch.push("yyyy").len();
        }
        assert_eq!(watch.search.as_ref().unwrap().steps, 40_000);
        assert!(watch.held.len() <= 16_000 && given == 40_000 - watch.held.len());
    }
}
