//! What the provider says was used: a saved answer of OpenAI's `GET /v1/organization/usage/completions`
//! (<https://platform.openai.com/docs/api-reference/usage/completions>), whose buckets are spans of UTC.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::cli::reconcile::{Dimension, Key, Used, day_of};
use crate::codec::BYTE_ORDER_MARK;

/// One page of the answer.
#[derive(Deserialize)]
struct Page {
    data: Vec<Bucket>,
    #[serde(default)]
    has_more: bool,
    next_page: Option<String>,
}

#[derive(Deserialize, PartialEq, Eq, Hash)]
struct Bucket {
    /// Seconds since 1970.
    start_time: i64,
    end_time: i64,
    #[serde(alias = "result")]
    results: Vec<Entry>,
}

/// What one combination of the fields that were grouped by used within a bucket.
#[derive(Deserialize, PartialEq, Eq, Hash)]
struct Entry {
    input_tokens: Option<u64>,
    input_cached_tokens: Option<u64>,
    output_tokens: Option<u64>,
    num_model_requests: Option<u64>,
    model: Option<String>,
    service_tier: Option<String>,
}

/// The whole answer.
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) rows: BTreeMap<Key, Used>,
    /// Seconds since 1970: the first of a bucket, and the first after all.
    pub(super) since: i64,
    pub(super) until: i64,
    /// Each page that another one names and that is not there.
    pub(super) missing: Vec<String>,
    models: BTreeSet<String>,
}

impl Provider {
    /// Reads pages: one document, an array of pages, or several documents one after the other.
    ///
    /// # Errors
    /// What is wrong with the file, or that it does not tell what the rows are to be told by.
    pub(super) fn parse(bytes: &[u8], by: &[Dimension]) -> Result<Provider, String> {
        let pages = pages(bytes)?;
        let buckets = || pages.iter().flat_map(|page| &page.data);
        let entries = || buckets().flat_map(|bucket| &bucket.results);
        if buckets().next().is_none() {
            return Err("no `data` with buckets of usage in it".to_owned());
        }
        for (dimension, is_told) in [
            (
                Dimension::Model,
                entries().any(|entry| entry.model.is_some()),
            ),
            (
                Dimension::ServiceTier,
                entries().any(|entry| entry.service_tier.is_some()),
            ),
        ] {
            if by.contains(&dimension) && !is_told && entries().next().is_some() {
                let name: &str = dimension.into();
                return Err(format!(
                    "no result names a `{name}`; ask with group_by={name}, or leave it out of --by"
                ));
            }
        }
        let mut rows: BTreeMap<Key, Used> = BTreeMap::new();
        let mut seen = HashSet::new();
        for bucket in buckets() {
            if !bucket.results.is_empty() && !seen.insert(bucket) {
                return Err(format!(
                    "a bucket of {} is in it twice, with the same results: leave the page out that comes again",
                    day_of(Timestamp::from_second(bucket.start_time).unwrap_or_default())
                ));
            }
            for entry in &bucket.results {
                let key = entry.key(bucket, by)?;
                rows.entry(key).or_default().add(&entry.used());
            }
        }
        Ok(Provider {
            rows,
            since: buckets().map(|bucket| bucket.start_time).min().unwrap_or(0),
            until: buckets().map(|bucket| bucket.end_time).max().unwrap_or(0),
            missing: missing(&pages),
            models: entries().filter_map(|entry| entry.model.clone()).collect(),
        })
    }

    /// What the provider calls a model: an alias is told by the one snapshot that it has, as `gpt-5.5-2026-04-24` is of
    /// `gpt-5.5`.
    pub(super) fn name_of<'m>(&'m self, model: &'m str) -> &'m str {
        if self.models.contains(model) {
            return model;
        }
        let mut snapshots = self.models.iter().filter(|name| is_snapshot(name, model));
        match (snapshots.next(), snapshots.next()) {
            (Some(only), None) => only,
            _ => model,
        }
    }
}

/// Whether a name is that of a model with the date of a snapshot.
pub(super) fn is_snapshot(name: &str, model: &str) -> bool {
    let rest = name.strip_prefix(model);
    rest.and_then(|rest| rest.strip_prefix('-'))
        .is_some_and(|date| date.parse::<jiff::civil::Date>().is_ok())
}

/// Pages that should follow: the next one begins where the one before ends, in whatever order they are. Where an answer leaves
/// out buckets without results, it may begin later.
fn missing(pages: &[Page]) -> Vec<String> {
    let leaves_out = pages.iter().any(Page::has_gaps);
    let mut beginning: BTreeMap<i64, usize> = BTreeMap::new();
    for start in pages.iter().filter_map(Page::start) {
        *beginning.entry(start).or_default() += 1;
    }
    let mut missing = Vec::new();
    for page in pages.iter().filter(|page| page.has_more) {
        let end = page.end().unwrap_or(i64::MAX);
        let last = if leaves_out { i64::MAX } else { end };
        let mut following = beginning.range_mut(end..=last);
        match following.find(|(_, pages)| **pages > 0) {
            Some((_, pages)) => *pages -= 1,
            None => missing.push(page.next()),
        }
    }
    missing
}

impl Page {
    fn start(&self) -> Option<i64> {
        self.data.iter().map(|bucket| bucket.start_time).min()
    }

    fn end(&self) -> Option<i64> {
        self.data.iter().map(|bucket| bucket.end_time).max()
    }

    fn has_gaps(&self) -> bool {
        let starts: HashSet<i64> = self.data.iter().map(|bucket| bucket.start_time).collect();
        let ends = self.data.iter().map(|bucket| bucket.end_time);
        ends.filter(|end| !starts.contains(end)).count() > 1
    }

    /// What tells the page that follows.
    fn next(&self) -> String {
        let end = self.end().map(Timestamp::from_second);
        let begins = match end {
            Some(Ok(end)) => format!("the one that begins at {end}"),
            _ => "one that follows a page without buckets".to_owned(),
        };
        match &self.next_page {
            Some(name) => format!("{begins} (`next_page`: `{}`)", name.escape_debug()),
            None => begins,
        }
    }
}

fn pages(bytes: &[u8]) -> Result<Vec<Page>, String> {
    // Some shells put it in front of what they save.
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    let mut pages = Vec::new();
    for document in serde_json::Deserializer::from_slice(bytes).into_iter::<Value>() {
        let document = document.map_err(|why| format!("not JSON: {why}"))?;
        let documents = match document {
            Value::Array(documents) => documents,
            page => vec![page],
        };
        for page in documents {
            let page = serde_json::from_value(page);
            pages.push(page.map_err(|why| format!("not a page of the usage API: {why}"))?);
        }
    }
    Ok(pages)
}

impl Entry {
    fn key(&self, bucket: &Bucket, by: &[Dimension]) -> Result<Key, String> {
        let parts = by.iter().map(|dimension| match dimension {
            Dimension::Day => {
                let start = Timestamp::from_second(bucket.start_time);
                start
                    .map(day_of)
                    .map_err(|why| format!("`start_time`: {why}"))
            }
            Dimension::Model => Ok(self.model.clone().unwrap_or_default()),
            Dimension::ServiceTier => Ok(tier_name(self.service_tier.as_deref()).to_owned()),
        });
        parts.collect()
    }

    fn used(&self) -> Used {
        let counts = [
            self.num_model_requests,
            self.input_tokens,
            self.input_cached_tokens,
            self.output_tokens,
        ];
        Used(counts.map(Option::unwrap_or_default))
    }
}

/// One word for each tier: both sides have several.
pub(super) fn tier_name(tier: Option<&str>) -> &str {
    match tier {
        None | Some("" | "auto" | "standard") => "default",
        Some("fast") => "priority",
        Some(tier) => tier,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BY: [Dimension; 3] = [Dimension::Day, Dimension::Model, Dimension::ServiceTier];
    const PAGE: &str = r#"{"object":"page","data":[{"object":"bucket","start_time":1793491200,"end_time":1793577600,"results":[
        {"object":"organization.usage.completions.result","input_tokens":10,"output_tokens":5,"input_cached_tokens":2,
         "input_audio_tokens":null,"num_model_requests":3,"project_id":null,"model":"m-2026-04-24","service_tier":"priority"}]}],
        "has_more":MORE,"next_page":null}"#;

    fn page(more: bool) -> String {
        // Pages follow each other in time.
        let page = PAGE.replace("MORE", &more.to_string());
        if more {
            page.replace("1793577600", "1793491200")
                .replace("\"start_time\":1793491200", "\"start_time\":1793404800")
        } else {
            page
        }
    }

    fn requests(text: &str) -> u64 {
        let provider = Provider::parse(text.as_bytes(), &BY).unwrap();
        provider.rows.values().map(|used| used.0[0]).sum()
    }

    #[test]
    fn pages_are_joined_in_each_of_the_forms() {
        assert_eq!(requests(&page(false)), 3);
        assert_eq!(requests(&format!("[{},{}]", page(true), page(false))), 6);
        let lines = page(true).replace('\n', " ") + "\n" + &page(false).replace('\n', " ");
        assert_eq!(requests(&lines), 6);
    }

    #[test]
    fn a_row_is_a_day_a_model_and_a_tier() {
        let provider = Provider::parse(page(false).as_bytes(), &BY).unwrap();
        let key: Vec<_> = ["2026-11-01", "m-2026-04-24", "priority"]
            .map(str::to_owned)
            .into();
        assert_eq!(provider.rows.keys().collect::<Vec<_>>(), [&key]);
        assert_eq!(provider.name_of("m"), "m-2026-04-24");
        assert_eq!(provider.name_of("m-2026"), "m-2026");
        assert!(provider.missing.is_empty());
    }

    /// A page of one day of November 2026.
    fn day(day: i64, more: bool) -> String {
        let start = 1_793_491_200 + (day - 1) * 86_400;
        let page = PAGE.replace("MORE", &more.to_string());
        let page = page.replace("1793577600", &(start + 86_400).to_string());
        let page = page.replace("1793491200", &start.to_string());
        let next = format!("\"next_page\":\"page_{}\"", day + 1);
        page.replace("\"next_page\":null", &next)
    }

    #[test]
    fn a_page_that_another_one_names_is_missed_wherever_it_should_be() {
        let missing = |days: &[(i64, bool)]| {
            let pages = days.iter().map(|(number, more)| day(*number, *more));
            let text = pages.collect::<Vec<_>>().join("\n");
            Provider::parse(text.as_bytes(), &BY).unwrap().missing
        };
        let none: [&str; 0] = [];
        assert_eq!(missing(&[(1, true), (2, true), (3, false)]), none);
        assert_eq!(missing(&[(3, false), (1, true), (2, true)]), none);
        // Two questions.
        assert_eq!(missing(&[(1, false), (3, false)]), none);
        let second = "the one that begins at 2026-11-02T00:00:00Z (`next_page`: `page_2`)";
        assert_eq!(missing(&[(1, true), (3, false)]), [second]);
        let last = "the one that begins at 2026-11-03T00:00:00Z (`next_page`: `page_3`)";
        assert_eq!(missing(&[(1, true), (2, true)]), [last]);
        assert_eq!(missing(&[(5, false), (1, true), (2, true)]), [last]);
        // Days 1 and 3 of one page, and 5 of the next: those between have nothing.
        let parse = |text: &str| Provider::parse(text.as_bytes(), &BY).unwrap().missing;
        let bucket = |number| {
            let page: Value = serde_json::from_str(&day(number, true)).unwrap();
            page["data"][0].to_string()
        };
        let two = format!(
            "{{\"data\":[{},{}],\"has_more\":true}}",
            bucket(1),
            bucket(3)
        );
        assert_eq!(parse(&format!("{two}{}", day(5, false))), none);
        assert_eq!(parse(&format!("\u{feff}{two}{}", day(5, false))), none);
        assert_eq!(parse(&two), ["the one that begins at 2026-11-04T00:00:00Z"]);
    }

    #[test]
    fn what_is_no_such_answer_is_told() {
        let why = |text: &str| Provider::parse(text.as_bytes(), &BY).unwrap_err();
        assert!(why("{").starts_with("not JSON"));
        assert!(why("{\"error\":1}").starts_with("not a page"));
        assert!(why("").starts_with("no `data`"));
        let ungrouped = page(false).replace("\"priority\"", "null");
        assert!(why(&ungrouped).contains("group_by=service_tier"));
        let twice = format!("[{},{}]", page(false), page(false));
        assert!(why(&twice).starts_with("a bucket of 2026-11-01 is in it twice"));
    }
}
