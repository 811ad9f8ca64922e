//! `tiergate report` from outside: log files in, the three formats and the notes out.

use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;
use tiergate::accounting::access_log::line::{FIELDS, OTEL_FIELDS};
use tiergate::accounting::prices::Prices;
use tiergate::cli::report::table::Format;
use tiergate::cli::report::{self, DEFAULT_BY, Options, ReportError};

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
            logs: Vec::new(),
            by: DEFAULT_BY.to_vec(),
            prices: None,
            since: None,
            until: None,
            format: Format::Csv,
            progress: false,
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
        self.options.prices =
            Some(Prices::parse(Path::new("prices.yaml"), text.as_bytes()).unwrap());
        self
    }

    fn window(mut self, since: &str, until: &str) -> Report {
        self.options.since = Some(report::parse_time(since).unwrap());
        self.options.until = Some(report::parse_time(until).unwrap());
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

    /// The report, of which nothing else is to be said.
    fn text(&self) -> String {
        let said = self.run();
        said.result.unwrap();
        assert_eq!(said.notes, "");
        said.out
    }

    /// Some columns of the csv, without its head.
    fn columns(&self, names: &str) -> Vec<String> {
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

#[test]
fn csv_has_the_fields_and_then_the_sums() {
    let expected = "\
group,key,service_tier_billed,requests,input_tokens,cached_input_tokens,cache_write_tokens,output_tokens,reasoning_tokens,\
cost_usd,unpriced,priority_requests,priority_downgraded,downgrade_rate,priority_premium_usd
,,,1,0,0,0,0,0,,0,0,0,,
fast,alice,default,1,1000,400,0,100,60,0.0007,0,1,1,1,
fast,alice,priority,2,2000,800,0,200,120,0.002,0,2,0,0,
fast,\"bob, \"\"the builder\"\"\",priority,2,1000,400,0,100,60,,1,2,0,0,
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
fn the_table_ends_with_the_totals() {
    let expected = [
        "group  requests  input_tokens  cached_input_tokens  cache_write_tokens  output_tokens  reasoning_tokens  cost_usd  \
         unpriced  priority_requests  priority_downgraded  downgrade_rate  priority_premium_usd",
        "-             1             0                    0                   0              0                 0         -  \
         \x20      0                  0                    0               -                     -",
        "fast          5          4000                 1600                   0            400               240    0.0027  \
         \x20      1                  5                    1             0.2                     -",
        "total         6          4000                 1600                   0            400               240    0.0027  \
         \x20      1                  5                    1             0.2                     -",
    ];
    let text = Report::of(&some_lines())
        .by("group")
        .format(Format::Table)
        .text();
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn json_keeps_types_and_has_money_as_strings() {
    let text = Report::of(&some_lines())
        .by("status,key")
        .format(Format::Json)
        .text();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let row = |status: u64, key: Option<&str>, requests: u64, tokens: [u64; 4]| {
        let [input, cached, output, reasoning] = tokens;
        serde_json::json!({
            "status": status, "key": key, "requests": requests, "input_tokens": input, "cached_input_tokens": cached,
            "cache_write_tokens": 0, "output_tokens": output, "reasoning_tokens": reasoning, "cost_usd": null, "unpriced": 0,
            "priority_requests": 0, "priority_downgraded": 0, "downgrade_rate": null, "priority_premium_usd": null,
        })
    };
    let mut alice = row(200, Some("alice"), 3, [3000, 1200, 300, 180]);
    alice["cost_usd"] = "0.0027".into();
    alice["priority_requests"] = 3.into();
    alice["priority_downgraded"] = 1.into();
    alice["downgrade_rate"] = serde_json::json!(0.3333);
    let mut bob = row(200, Some("bob, \"the builder\""), 2, [1000, 400, 100, 60]);
    bob["unpriced"] = 1.into();
    bob["priority_requests"] = 2.into();
    bob["downgrade_rate"] = 0.into();
    assert_eq!(
        value,
        serde_json::json!([alice, bob, row(401, None, 1, [0; 4])])
    );
}

#[test]
fn an_empty_log_is_a_report_without_rows() {
    let report = Report::new().log("access.log", b"").by("group");
    assert_eq!(report.text().lines().count(), 1);
    assert_eq!(report.format(Format::Json).text(), "[]\n");
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
    let prices = "
version: 1
prices:
  - models: [model-a]
    tiers:
      default:  {input: 1, cached_input: 0.5, output: 10}
      priority: {input: 2, cached_input: 1, output: 20}
";
    let report = Report::of(&[some_lines(), vec![line(7, r#"{"model":"model-b"}"#)]].concat())
        .prices(prices);
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
    assert!(report::parse_time("yesterday").is_err());
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
    assert_eq!(report.run().notes, "repeated lines, counted once: 12\n");
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
    said.result.unwrap();
    assert_eq!(report.columns("requests"), ["6"]);
    assert_eq!(
        said.notes,
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
        Err(ReportError::Incomplete { logs: 1 })
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
