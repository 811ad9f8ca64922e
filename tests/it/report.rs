//! `tiergate report` from outside: log files in, the three formats and the notes out.

use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::tz::TimeZone;
use tempfile::TempDir;
use tiergate::accounting::access_log::line::{FIELDS, OTEL_FIELDS};
use tiergate::accounting::prices::Prices;
use tiergate::cli::report::filter::Window;
use tiergate::cli::report::table::Format;
use tiergate::cli::report::{self, Options, ReportError};

/// A line of a request that was sent and billed as priority; the members of `changes` replace or follow its own.
fn line(seq: u64, changes: &str) -> String {
    let mut line: serde_json::Map<String, serde_json::Value> = serde_json::from_str(
        r#"{"schema":1,"instance":"p1","time":"2026-11-01T08:00:00.000000Z","turn":0,"key":"alice","group":"fast",
            "transport":"http","model":"model-a","service_tier":"priority","service_tier_served":"priority",
            "service_tier_billed":"priority","downgraded":false,"status":200,"outcome":"ok","usage_state":"final",
            "input_tokens":1000,"cached_input_tokens":400,"cache_write_tokens":null,"output_tokens":100,
            "reasoning_tokens":60,"cost_usd":"0.0015"}"#,
    )
    .unwrap();
    line.insert("seq".to_owned(), seq.into());
    line.insert("event_id".to_owned(), format!("id-{seq}#0").into());
    line.extend(serde_json::from_str::<serde_json::Map<_, _>>(changes).unwrap());
    serde_json::to_string(&line).unwrap()
}

/// Two groups, three tiers, a request without usage, one without a price, and a denied one.
fn some_lines() -> Vec<String> {
    vec![
        line(1, "{}"),
        line(2, r#"{"cost_usd":"0.00050"}"#),
        line(
            3,
            r#"{"service_tier_served":"default","service_tier_billed":"default","downgraded":true,"cost_usd":"0.0007"}"#,
        ),
        line(4, r#"{"key":"bob, \"the builder\"","cost_usd":null}"#),
        line(
            5,
            r#"{"key":"bob, \"the builder\"","outcome":"upstream_error","input_tokens":null,"cached_input_tokens":null,
                "output_tokens":null,"reasoning_tokens":null,"cost_usd":null}"#,
        ),
        line(
            6,
            r#"{"key":null,"group":null,"service_tier":null,"service_tier_billed":null,"outcome":"denied","status":401,
                "input_tokens":null,"cached_input_tokens":null,"output_tokens":null,"reasoning_tokens":null,"cost_usd":null}"#,
        ),
    ]
}

/// The same line by the names of `format: otel`.
fn otel(line: &str) -> String {
    let line: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
    let renamed = line.into_iter().map(|(name, value)| {
        let at = FIELDS.iter().position(|field| *field == name).unwrap();
        (OTEL_FIELDS[at].to_owned(), value)
    });
    serde_json::to_string(&renamed.collect::<serde_json::Map<_, _>>()).unwrap()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// A folder of logs and what to report of them.
struct Report {
    folder: TempDir,
    options: Options,
}

/// What a report said.
struct Said {
    out: String,
    notes: String,
    result: Result<(), ReportError>,
}

impl Report {
    fn new() -> Report {
        let options = Options {
            format: Format::Csv,
            ..Options::default()
        };
        Report {
            folder: TempDir::new().unwrap(),
            options,
        }
    }

    fn of(lines: &[String]) -> Report {
        Report::new().log("access.log", (lines.join("\n") + "\n").as_bytes())
    }

    fn log(mut self, name: &str, bytes: &[u8]) -> Report {
        let path = self.folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        self.options.logs.push(path);
        self
    }

    fn by(mut self, fields: &str) -> Report {
        self.options.by = fields
            .split(',')
            .map(|field| field.parse().unwrap())
            .collect();
        self
    }

    fn format(mut self, format: Format) -> Report {
        self.options.format = format;
        self
    }

    fn prices(mut self, text: &str) -> Report {
        self.options.prices = Some(prices(text));
        self
    }

    fn premium(mut self, text: &str) -> Report {
        self.options.premium = Some(prices(text));
        self
    }

    fn window(mut self, since: &str, until: &str) -> Report {
        let now = "2026-11-02T00:00:00+00:00[UTC]".parse().unwrap();
        self.options.window = Window::new(Some(since), Some(until), &now).unwrap();
        self
    }

    fn zone(mut self, name: &str) -> Report {
        self.options.time_zone = TimeZone::get(name).unwrap();
        self
    }

    fn only(mut self, condition: &str) -> Report {
        self.options.filters.push(condition.parse().unwrap());
        self
    }

    fn showing(mut self, columns: &str) -> Report {
        self.options.columns = Some(columns.split(',').map(str::to_owned).collect());
        self
    }

    fn sort(mut self, by: &str) -> Report {
        self.options.sort = Some(by.parse().unwrap());
        self
    }

    fn top(mut self, rows: usize) -> Report {
        self.options.top = Some(rows);
        self
    }

    fn rate(mut self, rate: &str) -> Report {
        self.options.rates.push(rate.parse().unwrap());
        self
    }

    fn run(&self) -> Said {
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let result = report::run(&self.options, &mut out, &mut notes);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let folder = format!("{}/", self.folder.path().display());
        Said {
            out: text(out),
            notes: text(notes).replace(&folder, ""),
            result,
        }
    }

    /// The report, all of whose input could be read.
    fn text(&self) -> String {
        let said = self.run();
        said.result.unwrap();
        said.out
    }

    /// Some columns of the rows of the csv, without its head and its total.
    fn columns(&self, names: &str) -> Vec<String> {
        let mut rows = self.columns_and_total(names);
        rows.pop();
        rows
    }

    fn columns_and_total(&self, names: &str) -> Vec<String> {
        let text = self.run().out;
        let mut lines = text.lines();
        let head: Vec<&str> = lines.next().unwrap().split(',').collect();
        let wanted: Vec<usize> = names
            .split(',')
            .map(|name| head.iter().position(|other| *other == name).unwrap())
            .collect();
        let pick = |line: &str| {
            let cells: Vec<&str> = line.split(',').collect();
            wanted
                .iter()
                .map(|column| cells[*column])
                .collect::<Vec<_>>()
                .join(",")
        };
        lines.map(pick).collect()
    }
}

fn prices(text: &str) -> Prices {
    Prices::parse(Path::new("prices.yaml"), text.as_bytes()).unwrap()
}

const PRICES: &str = "
version: 1
prices:
  - models: [model-a]
    tiers:
      default:  {input: 1, cached_input: 0.5, output: 10}
      priority: {input: 2, cached_input: 1, output: 20}
";

#[test]
fn csv_has_the_fields_and_then_the_sums_and_the_total_last() {
    let expected = "\
group,key,service_tier_billed,requests,input_tokens,cached_input_tokens,cache_write_tokens,output_tokens,reasoning_tokens,\
cost_usd,unpriced,priority_requests,priority_downgraded,downgrade_rate,priority_premium_usd,refused,without_usage,\
cache_write_long_tokens,cost_share
,,,1,0,0,0,0,0,,0,0,0,,,1,1,0,
fast,alice,default,1,1000,400,0,100,60,0.0007,0,1,1,1,,0,0,0,0.2593
fast,alice,priority,2,2000,800,0,200,120,0.002,0,2,0,0,,0,0,0,0.7407
fast,\"bob, \"\"the builder\"\"\",priority,2,1000,400,0,100,60,,1,2,0,0,,0,1,0,
,,,6,4000,1600,0,400,240,0.0027,1,5,1,0.2,,1,2,0,1
";
    assert_eq!(Report::of(&some_lines()).text(), expected);
}

#[test]
fn lines_in_either_form_are_read_alike() {
    let plain = some_lines();
    let renamed: Vec<String> = plain.iter().map(|line| otel(line)).collect();
    let expected = Report::of(&plain).text();
    assert_eq!(Report::of(&renamed).text(), expected);
    let mixed: Vec<String> = plain[..3].iter().chain(&renamed[3..]).cloned().collect();
    assert_eq!(Report::of(&mixed).text(), expected);
    let by = "tiergate.group,tiergate.key,tiergate.service_tier_billed";
    assert_eq!(Report::of(&mixed).by(by).text(), expected);
}

#[test]
fn the_table_shows_what_there_is_and_ends_with_the_total() {
    let expected = [
        "group  requests  refused  input_tokens  cached_input_tokens  output_tokens  cost_usd  cost_share  unpriced  downgrade_rate",
        "-             1        1             0                    0              0         -           -         0               -",
        "fast          5        0         4,000                1,600            400  0.002700      100.0%         1           20.0%",
        "total         6        1         4,000                1,600            400  0.002700      100.0%         1           20.0%",
    ];
    let mut report = Report::of(&some_lines()).by("group").format(Format::Table);
    report.options.columns = Some(expected[0].split_whitespace().map(str::to_owned).collect());
    assert_eq!(report.text().lines().collect::<Vec<_>>(), expected);
    report.options.columns = None;
    let shown = report.text();
    assert!(
        !shown.contains("cache_write_tokens") && !shown.contains("priority_premium_usd"),
        "{shown}"
    );
}

#[test]
fn a_table_without_chosen_columns_is_at_most_120_wide() {
    let wide = |seq: u64| {
        let name = "a name that is as long as names of keys can be ".repeat(4);
        line(
            seq,
            &format!(
                r#"{{"key":"{name}","group":"{name}","model":"{name}","input_tokens":123456789012,"cost_usd":"123456.78"}}"#
            ),
        )
    };
    let lines: Vec<String> = (0..20).map(wide).collect();
    for by in [
        "group,key,service_tier_billed",
        "group,key,model,service_tier_billed",
    ] {
        let text = Report::of(&lines).by(by).format(Format::Table).text();
        assert!(
            text.lines().all(|line| line.chars().count() <= 120),
            "{text}"
        );
        for name in ["requests", "cost_usd", "2,469,135.60"] {
            assert!(text.contains(name), "{name}: {text}");
        }
    }
}

#[test]
fn json_keeps_types_and_has_money_as_strings() {
    let text = Report::of(&some_lines())
        .by("status,key")
        .format(Format::Json)
        .showing("status,key,requests,input_tokens,cost_usd,unpriced,downgrade_rate,refused")
        .text();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = serde_json::json!([
        {"status": 200, "key": "alice", "requests": 3, "input_tokens": 3000, "cost_usd": "0.0027", "unpriced": 0,
         "downgrade_rate": 0.3333, "refused": 0},
        {"status": 200, "key": "bob, \"the builder\"", "requests": 2, "input_tokens": 1000, "cost_usd": null, "unpriced": 1,
         "downgrade_rate": 0, "refused": 0},
        {"status": 401, "key": null, "requests": 1, "input_tokens": 0, "cost_usd": null, "unpriced": 0,
         "downgrade_rate": null, "refused": 1},
        {"status": null, "key": null, "requests": 6, "input_tokens": 4000, "cost_usd": "0.0027", "unpriced": 1,
         "downgrade_rate": 0.2, "refused": 1},
    ]);
    assert_eq!(value, expected);
}

#[test]
fn every_field_of_the_log_can_be_grouped_by_and_filtered_by() {
    let line = FIELDS.iter().map(|field| (field.to_string(), "v".into()));
    let mut line: serde_json::Map<_, serde_json::Value> = line.collect();
    for (name, value) in [("transport", "http"), ("time", "2026-11-01T08:00:00Z")] {
        line.insert(name.to_owned(), value.into());
    }
    let lines = [serde_json::to_string(&line).unwrap()];
    for field in FIELDS {
        let value = line[field].as_str().unwrap();
        let by = Report::of(&lines).by(field);
        assert_eq!(by.columns(field), [value], "{field}");
        let condition = format!("{field}={value}");
        assert_eq!(
            Report::of(&lines).by(field).only(&condition).columns(field),
            [value]
        );
        let condition = format!("{field}!={value}");
        assert_eq!(
            Report::of(&lines)
                .by(field)
                .only(&condition)
                .columns(field)
                .len(),
            0
        );
    }
}

#[test]
fn requests_are_counted_by_hour_day_week_and_month_of_a_time_zone() {
    let at = |seq, time: &str| line(seq, &format!(r#"{{"time":"{time}"}}"#));
    let lines = [
        at(1, "2026-10-31T22:59:59.999999Z"),
        at(2, "2026-10-31T23:00:00.000000Z"),
        at(3, "2026-11-01T22:59:59.000000Z"),
        at(4, "2026-11-01T23:00:00.000000Z"),
    ];
    let by = |by: &str, zone: &str| {
        let report = Report::of(&lines).by(by).zone(zone);
        report.columns(&format!("{by},requests"))
    };
    assert_eq!(by("month", "UTC"), ["2026-10,2", "2026-11,2"]);
    assert_eq!(by("month", "Europe/Berlin"), ["2026-10,1", "2026-11,3"]);
    assert_eq!(
        by("day", "Europe/Berlin"),
        ["2026-10-31,1", "2026-11-01,2", "2026-11-02,1"]
    );
    assert_eq!(by("week", "Europe/Berlin"), ["2026-W44,3", "2026-W45,1"]);
    assert_eq!(
        by("hour", "Asia/Kolkata"),
        ["2026-11-01T04:00+05:30,2", "2026-11-02T04:00+05:30,2"]
    );
}

#[test]
fn conditions_must_all_hold() {
    let report = || Report::of(&some_lines()).by("key");
    assert_eq!(
        report()
            .only("group=fast")
            .only("service_tier_billed!=priority")
            .columns("key"),
        ["alice"]
    );
    assert_eq!(report().only("status=401").columns("key,requests"), [",1"]);
    assert_eq!(report().only("key=null").columns("requests"), ["1"]);
    assert_eq!(
        report()
            .only("day=2026-11-01")
            .columns_and_total("requests")
            .pop()
            .unwrap(),
        "6"
    );
    assert_eq!(report().only("key=nobody").columns("key").len(), 0);
}

#[test]
fn rows_are_sorted_cut_and_totalled_over_all() {
    let lines: Vec<String> = (1..=5)
        .map(|seq| {
            line(
                seq,
                &format!(r#"{{"key":"k{seq}","cost_usd":"{}"}}"#, seq * 7 % 5),
            )
        })
        .collect();
    let report = || Report::of(&lines).by("key").showing("key,cost_usd");
    let rows = ["k2,4", "k4,3", "k1,2", "k3,1", "k5,0"];
    assert_eq!(report().sort("cost_usd").columns("key,cost_usd"), rows);
    let mut reversed = rows;
    reversed.reverse();
    assert_eq!(
        report().sort("cost_usd:asc").columns("key,cost_usd"),
        reversed
    );
    assert_eq!(
        report().sort("key:desc").top(2).columns("key"),
        ["k5", "k4"]
    );
    let top = report().top(2);
    assert_eq!(
        top.columns_and_total("key,cost_usd"),
        ["k2,4", "k4,3", ",10"]
    );
    assert!(
        top.run()
            .notes
            .contains("rows that are in the total and not shown: 3")
    );
}

#[test]
fn a_column_that_is_not_there_is_told_with_those_that_are() {
    for report in [
        Report::of(&[]).showing("key,cost"),
        Report::of(&[]).sort("cost"),
    ] {
        let error = report.run().result.unwrap_err();
        assert!(matches!(error, ReportError::Column(_)));
        assert!(error.to_string().contains("cost_usd"), "{error}");
    }
}

#[test]
fn another_currency_is_exact_in_csv_and_rounded_for_people() {
    let lines = [line(1, r#"{"cost_usd":"1234.5675"}"#)];
    let report = || {
        Report::of(&lines)
            .by("group")
            .rate("EUR=0.92")
            .rate("jpy=155.5")
    };
    assert_eq!(
        report().columns("cost_usd,cost_eur,cost_jpy"),
        ["1234.5675,1135.8021,191975.24625"]
    );
    let text = report().format(Format::Table).text();
    assert!(
        text.contains("1,135.80") && text.contains("191,975.25"),
        "{text}"
    );
}

#[test]
fn no_text_of_a_client_is_a_formula_in_a_spreadsheet() {
    let lines = [line(
        1,
        r#"{"model":"=HYPERLINK(\"http://x\")","key":"-2+3"}"#,
    )];
    let text = Report::of(&lines).by("model,key").text();
    assert!(
        text.contains("\n\"'=HYPERLINK(\"\"http://x\"\")\",'-2+3,1,"),
        "{text}"
    );
}

/// Shippers write some texts in other ways than the proxy does.
#[test]
fn a_text_is_one_row_however_it_is_spelled() {
    let own = line(1, r#"{"key":"ü/<b>"}"#);
    let spelled = |seq, key: &str| line(seq, "{}").replace(r#""alice""#, key);
    let lines = [
        own,
        spelled(2, r#""\u00fc/<b>""#),
        spelled(3, r#""ü\/\u003cb>""#),
        spelled(4, r#""\u00FC/\u003Cb\u003e""#),
    ];
    let report = Report::of(&lines).by("key").format(Format::Csv);
    assert_eq!(report.columns("key,requests"), ["ü/<b>,4"]);
}

#[test]
fn what_has_no_price_is_told_by_the_model_that_would_be_priced() {
    let served = r#"{"model_served":"model-b","tier_billed_by":"served","cost_usd":null}"#;
    let asked = r#"{"model_served":"model-b","tier_billed_by":"sent","cost_usd":"0.1"}"#;
    let lines = [line(1, served), line(2, asked)];
    let said = Report::of(&lines).by("group").run();
    assert_eq!(
        said.notes,
        "not in the sum: requests without a price: 1 (1 of model `model-b` on tier `priority`)\n"
    );
}

#[test]
fn what_is_not_in_the_sum_is_told_by_reason() {
    let mut lines = some_lines();
    lines.push(line(
        7,
        r#"{"usage_state":"deferred","input_tokens":null,"cached_input_tokens":null,"output_tokens":null,
            "reasoning_tokens":null,"cost_usd":null}"#,
    ));
    lines.push(line(8, r#"{"usage_state":"partial"}"#));
    let said = Report::of(&lines).by("group").run();
    said.result.unwrap();
    assert_eq!(
        said.notes,
        "\
not in the sum: requests without a price: 1 (1 of model `model-a` on tier `priority`)
not in the sum: requests without usage: 3 (1 deferred, 1 denied, 1 upstream_error)
in the sum as far as it was told: requests with partial usage: 1
"
    );
}

#[test]
fn partial_usage_without_output_or_input_is_no_missing_price() {
    let without_output =
        r#"{"usage_state":"partial","output_tokens":null,"reasoning_tokens":null,"cost_usd":null}"#;
    let without_input = r#"{"usage_state":"partial","input_tokens":null,"cached_input_tokens":null,"cost_usd":null}"#;
    for (partial, what, input) in [
        (without_output, "output", 2000),
        (without_input, "input", 1000),
    ] {
        let lines = [line(1, "{}"), line(2, partial)];
        for prices in [None, Some(PRICES)] {
            let report = || {
                let report = Report::of(&lines).by("group");
                prices.into_iter().fold(report, Report::prices)
            };
            let said = report().run();
            said.result.unwrap();
            assert_eq!(
                said.notes,
                format!("not in the sum: requests with partial usage, without their {what}: 1\n")
            );
            let columns = report().columns("input_tokens,unpriced,without_usage");
            assert_eq!(columns, [format!("{input},0,1")]);
        }
    }
}

#[test]
fn an_empty_log_is_a_report_without_rows() {
    let report = Report::new().log("access.log", b"").by("group");
    assert_eq!(report.columns("requests").len(), 0);
    assert_eq!(report.columns_and_total("requests,cost_usd"), ["0,"]);
}

#[test]
fn a_report_of_nothing_says_why() {
    let report = || Report::of(&some_lines());
    for (report, told) in [
        (
            Report::new().log("access.log", b""),
            "there is no request in the logs\n",
        ),
        (
            report().window("2026-10-01", "2026-11-01"),
            "no request is within that time: those of the logs began from 2026-11-01T08:00:00Z to 2026-11-01T08:00:00Z\n",
        ),
        (
            report().only("service_tier=prioritty"),
            "no request has `service_tier=prioritty`\n",
        ),
        (
            report()
                .only("group=fast")
                .only("status=ok")
                .only("outcome!=ok")
                .only("key=Alice"),
            "no request has `status=ok`\nno request has `key=Alice`\n",
        ),
        (
            report().only("key=alice").only("outcome=denied"),
            "no request meets all conditions\n",
        ),
    ] {
        let said = report.run();
        said.result.unwrap();
        assert_eq!(said.notes, told);
    }
    let said = report().only("key=alice").run();
    assert!(!said.notes.contains("no request"), "{}", said.notes);
}

#[test]
fn a_page_that_cannot_be_written_is_named() {
    let mut report = Report::of(&some_lines());
    report.options.html = Some("/nowhere/page.html".into());
    let why = report.run().result.unwrap_err().to_string();
    assert!(
        why.starts_with("cannot write `/nowhere/page.html`: "),
        "{why}"
    );
}

#[test]
fn a_field_that_is_grouped_by_is_not_summed_as_well() {
    let text = Report::of(&some_lines())
        .by("input_tokens,downgraded")
        .text();
    assert!(
        text.starts_with("input_tokens,downgraded,requests,cached_input_tokens,"),
        "{text}"
    );
    assert!(text.contains("\n1000,true,1,400,"), "{text}");
}

#[test]
fn prices_reprice_history_and_show_what_priority_cost_above_standard() {
    let report = Report::of(&[some_lines(), vec![line(7, r#"{"model":"model-b"}"#)]].concat())
        .prices(PRICES);
    let columns = "group,service_tier_billed,requests,cost_usd,unpriced,priority_premium_usd";
    assert_eq!(
        report.by("group,service_tier_billed").columns(columns),
        // At priority a request costs 600 × 2 + 400 × 1 + 100 × 20 millionths, at default half of it.
        [
            ",,1,,0,",
            "fast,default,1,0.0018,0,",
            "fast,priority,5,0.0108,1,0.0054"
        ]
    );
}

/// Two models, the second of which costs twice as much.
const TWO_MODELS: &str = "
version: 1
prices:
  - models: [model-a]
    tiers: {default: {input: 1, cached_input: 0.5, output: 10}, priority: {input: 2, cached_input: 1, output: 20}}
  - models: [model-b]
    tiers: {default: {input: 2, cached_input: 1, output: 20}, priority: {input: 4, cached_input: 2, output: 40}}
  - models: [embed]
    tiers: {default: {input: 1000}}
";

/// The cost, the requests without a price and the premium of one line.
#[track_caller]
fn assert_repriced(changes: &str, expected: &str) {
    let lines = [line(1, changes)];
    let columns = "cost_usd,unpriced,priority_premium_usd";
    let report = Report::of(&lines).prices(TWO_MODELS).by("model");
    assert_eq!(report.columns(columns), [expected], "{changes}");
    // With a line's own cost the premium is that above the same model's.
    let own = Report::of(&lines).premium(TWO_MODELS).by("model");
    let cost = expected.split(',').next().unwrap();
    let told = changes.contains(&format!("\"cost_usd\":\"{cost}\""));
    assert!(!told || own.columns(columns) == [expected], "{changes}");
}

#[test]
fn a_line_is_priced_anew_by_the_model_that_it_was_priced_by() {
    // 600 × 2 + 400 × 1 + 100 × 20 millionths, and twice as much.
    let (asked, served) = ("0.0036,0,0.0018", "0.0072,0,0.0036");
    let revision = prices(TWO_MODELS).revision().to_owned();
    let b = r#""model_served":"model-b""#;
    for (changes, expected) in [
        (
            format!(r#"{{{b},"tier_billed_by":"served","cost_usd":"0.0072"}}"#),
            served,
        ),
        // Trusted, and it named no tier.
        (
            format!(
                r#"{{{b},"tier_billed_by":"sent","service_tier_served":null,"cost_usd":"0.0072","prices":"{revision}"}}"#
            ),
            served,
        ),
        (
            format!(r#"{{{b},"tier_billed_by":"sent","service_tier_served":null}}"#),
            served,
        ),
        // Not trusted: it named a tier that was not taken, or the cost says so.
        (
            format!(r#"{{{b},"tier_billed_by":"sent","cost_usd":"0.0036"}}"#),
            asked,
        ),
        (
            format!(
                r#"{{{b},"tier_billed_by":"sent","service_tier_served":null,"cost_usd":"0.0036","prices":"{revision}"}}"#
            ),
            asked,
        ),
        // Through the bridge the upstream was asked for another model than the client's.
        (
            r#"{"bridge":"messages>responses","model_upstream":"model-b","tier_billed_by":"sent","service_tier_served":null,"cost_usd":"0.0072"}"#.to_owned(),
            served,
        ),
    ] {
        assert_repriced(&changes, expected);
    }
}

#[test]
fn embeddings_have_no_output_that_would_have_to_be_priced() {
    let changes = r#"{"endpoint":"embeddings","model":"embed","service_tier":null,"service_tier_served":null,
        "service_tier_billed":null,"cached_input_tokens":null,"output_tokens":null,"reasoning_tokens":null,"cost_usd":"1"}"#;
    let changes = changes.replace('\n', "");
    assert_repriced(&changes, "1,0,");
}

#[test]
fn blank_lines_of_a_log_are_passed_over() {
    let lines = [
        String::new(),
        line(1, "{}"),
        " \t".to_owned(),
        "\r".to_owned(),
        line(2, "{}"),
        String::new(),
    ];
    let report = Report::of(&lines).by("group");
    assert_eq!(report.run().notes, "");
    assert_eq!(report.columns("requests"), ["2"]);
}

#[test]
fn refused_requests_are_told_apart_and_are_requests() {
    let refused = |seq, outcome: &str| {
        line(
            seq,
            &format!(
                r#"{{"outcome":"{outcome}","service_tier":null,"service_tier_billed":null,"cost_usd":null,"input_tokens":null,
                    "cached_input_tokens":null,"output_tokens":null,"reasoning_tokens":null}}"#
            )
            .replace('\n', ""),
        )
    };
    let lines = [line(1, "{}"), refused(2, "denied"), refused(3, "rejected")];
    let report = || Report::of(&lines).by("group");
    let columns = "requests,refused,cost_usd";
    assert_eq!(report().columns(columns), ["3,2,0.0015"]);
    let served = report().only("outcome=ok");
    assert_eq!(served.columns(columns), ["1,0,0.0015"]);
}

#[test]
fn the_premium_is_told_without_pricing_anew() {
    let report = Report::of(&some_lines()).premium(PRICES);
    let report = report.by("service_tier_billed");
    // The lines' own costs stay: 0.002 in all on priority, two requests of which cost 0.0018 each at default.
    assert_eq!(
        report.columns("cost_usd,priority_premium_usd"),
        [",", "0.0007,", "0.002,-0.0016"]
    );
}

#[test]
fn where_the_default_tier_has_no_price_the_premium_is_not_known() {
    let prices = "version: 1\nprices: [{models: ['*'], tiers: {priority: {input: 2, cached_input: 1, output: 20}}}]\n";
    let report = Report::of(&some_lines())
        .prices(prices)
        .by("service_tier_billed");
    assert_eq!(
        report.columns("cost_usd,unpriced,priority_premium_usd"),
        [",0,", ",1,", "0.0108,0,"]
    );
}

#[test]
fn a_window_takes_in_its_first_moment_and_not_its_last() {
    let at = |seq, time: &str| line(seq, &format!(r#"{{"time":"{time}"}}"#));
    let lines = [
        at(1, "2026-10-31T23:59:59.999999Z"),
        at(2, "2026-11-01T00:00:00.000000Z"),
        at(3, "2026-11-01T11:59:59.999999Z"),
        at(4, "2026-11-01T12:00:00.000000Z"),
    ];
    let report = Report::of(&lines)
        .by("seq")
        .window("2026-11-01", "2026-11-01T13:00:00+01:00");
    assert_eq!(report.columns("seq"), ["2", "3"]);
}

#[test]
fn a_line_that_is_in_two_files_is_counted_once() {
    let lines = some_lines().join("\n") + "\n";
    let report = Report::new()
        .log("access.log", lines.as_bytes())
        .log("access.log.1", &gzip(&lines))
        .log(
            "access.log.2",
            &zstd::encode_all(lines.as_bytes(), 1).unwrap(),
        )
        .by("schema");
    assert_eq!(report.columns("requests"), ["6"]);
    let notes = report.run().notes;
    assert!(
        notes.starts_with("repeated lines, counted once: 12\n"),
        "{notes}"
    );
}

#[test]
fn the_lines_of_a_websocket_are_its_responses_and_not_its_connection() {
    let turn = |seq, turn: u64, more: &str| {
        line(
            seq,
            &format!(r#"{{"transport":"websocket","turn":{turn}{more}}}"#),
        )
    };
    let no_usage = r#","service_tier_billed":null,"input_tokens":null,"cached_input_tokens":null,"output_tokens":null,
        "reasoning_tokens":null,"cost_usd":null"#;
    let report = Report::of(&[turn(1, 1, ""), turn(2, 2, ""), turn(3, 0, no_usage)])
        .by("service_tier_billed");
    assert_eq!(
        report.columns("service_tier_billed,requests"),
        ["priority,2"]
    );
}

#[test]
fn missing_lines_are_told_for_each_process() {
    let lines = [
        line(10, "{}"),
        line(13, "{}"),
        line(15, "{}"),
        line(3, r#"{"instance":"p2","event_id":"other-3#0"}"#),
        line(4, r#"{"instance":"p2","event_id":"other-4#0"}"#),
    ];
    let said = Report::of(&lines).run();
    said.result.unwrap();
    assert_eq!(
        said.notes,
        "instance `p1`: 3 lines are missing: seq 11 to 12, 14\n"
    );
}

#[test]
fn unreadable_lines_are_told_and_passed_over() {
    let mut lines = some_lines();
    lines.insert(2, r#"{"schema":1,"event_id":"x#0""#.to_owned());
    lines.insert(4, "[]".to_owned());
    lines.insert(5, r#"{"schema":1}"#.to_owned());
    lines.insert(6, "x".repeat(1 << 20));
    let report = Report::of(&lines).by("schema");
    let said = report.run();
    assert!(matches!(
        said.result,
        Err(ReportError::Incomplete { logs: 0, lines: 4 })
    ));
    assert_eq!(report.columns("requests"), ["6"]);
    let notes: Vec<&str> = said.notes.split_inclusive('\n').take(5).collect();
    assert_eq!(
        notes.concat(),
        "\
access.log:3: not a line of the access log: EOF while parsing an object, at column 28
access.log:5: not a line of the access log: invalid type: sequence, expected an object, at column 0
access.log:6: not a line of the access log: no `event_id`
access.log:7: too long for a line of the access log
unreadable lines, not counted: 4
"
    );
}

#[test]
fn many_unreadable_lines_do_not_flood_the_notes() {
    let report = Report::of(&vec!["no json".to_owned(); 1000]);
    let said = report.run();
    assert_eq!(said.notes.lines().count(), 11);
    assert!(
        said.notes
            .ends_with("unreadable lines, not counted: 1000\n")
    );
}

#[test]
fn a_truncated_archive_is_counted_as_far_as_it_goes_and_the_report_is_called_incomplete() {
    let lines: Vec<String> = (0..5000).map(|seq| line(seq, "{}")).collect();
    let mut packed = gzip(&(lines.join("\n") + "\n"));
    packed.truncate(packed.len() / 2);
    let report = Report::new()
        .log("cut.gz", &packed)
        .log("access.log", line(5000, "{}").as_bytes())
        .by("key");
    let said = report.run();
    assert!(matches!(
        said.result,
        Err(ReportError::Incomplete { logs: 1, .. })
    ));
    assert!(
        said.notes.starts_with("cut.gz: breaks off: "),
        "{}",
        said.notes
    );
    let requests: u64 = report.columns("requests")[0].parse().unwrap();
    assert!((2..5000).contains(&requests), "{requests}");
}

#[test]
fn a_log_that_is_not_there_is_told_before_anything_is_read() {
    let mut report = Report::of(&some_lines());
    report.options.logs.push(PathBuf::from("nowhere.log"));
    let said = report.run();
    assert_eq!(said.out, "");
    let error = said.result.unwrap_err().to_string();
    assert!(error.starts_with("cannot open `nowhere.log`: "), "{error}");
}

#[test]
fn what_is_no_log_is_named_before_anything_is_read() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    std::fs::write(folder.path().join("log.xz"), b"\xfd7zXZ\0and more").unwrap();
    std::fs::write(folder.path().join("log.bz2"), b"BZh91AY&SY").unwrap();
    for (name, why) in [
        ("folder", "directory"),
        ("log.xz", "an xz archive"),
        ("log.bz2", "a bzip2 archive"),
    ] {
        let mut report = Report::of(&some_lines());
        report.options.logs.push(folder.path().join(name));
        let said = report.run();
        assert_eq!(said.out, "", "{name}");
        let error = said.result.unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(why), "{error}");
    }
}

#[test]
fn a_file_that_is_no_log_is_named_and_fails() {
    let report = Report::new().log("prices.yaml", PRICES.trim_start().as_bytes());
    let said = report.run();
    assert!(
        said.notes
            .starts_with("prices.yaml:1: not a line of the access log"),
        "{}",
        said.notes
    );
    assert!(said.result.is_err());
}

#[test]
fn the_page_is_one_file_with_charts_and_without_scripts() {
    let mut lines: Vec<String> = (0..60)
        .map(|seq| {
            let day = seq % 30 + 1;
            let tier = ["priority", "default"][seq as usize % 2];
            line(
                seq,
                &format!(
                    r#"{{"time":"2026-11-{day:02}T08:00:00Z","service_tier_billed":"{tier}","downgraded":{},"cost_usd":"{seq}.5"}}"#,
                    seq % 2 == 1
                ),
            )
        })
        .collect();
    lines.push(line(
        60,
        r#"{"key":"<script>alert(1)</script>","cost_usd":"1000"}"#,
    ));
    let mut report = Report::of(&lines);
    let path = report.folder.path().join("page.html");
    report.options.html = Some(path.clone());
    report.text();
    let page = std::fs::read_to_string(path).unwrap();
    assert_eq!(page.matches("<svg").count(), 3);
    assert!(page.contains("tiergate report, 2026-11-01 to 2026-11-30"));
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    for absent in ["<script", "http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(absent), "{absent}");
    }
    // 0.5 + 1.5 + … + 59.5, and 1000.
    assert!(page.contains("2,800.00"), "the sum");
    assert!(page.contains("class=\"priority\"") && page.contains("class=\"default\""));
}
