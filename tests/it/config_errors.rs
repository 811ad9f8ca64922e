//! What is said about bad files: each `tests/golden/NAME.yaml` gives exactly the lines of `NAME.txt`.
//! `UPDATE_GOLDEN=1 cargo test --test config_errors` writes the lines anew.

use std::fs;
use std::path::{Path, PathBuf};

use tiergate::config::{Config, Mistake};
use tiergate::policy::Policy;

#[test]
fn every_mistake_is_told_with_its_place_and_no_key() {
    let mut different = Vec::new();
    for file in golden_files() {
        let told = mistakes_of(&file);
        assert!(
            !told.contains("SECR") && !told.contains("SHAPE"),
            "a key is printed: {told}"
        );
        let expected = file.with_extension("txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&expected, &told).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != told {
            different.push(told);
        }
    }
    assert!(
        different.is_empty(),
        "not as expected:\n{}",
        different.join("\n")
    );
}

#[test]
fn the_sample_files_load_without_a_warning() {
    let (config, policy, warnings) =
        Policy::load_with_config(Path::new("conf/tiergate.yaml")).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(
        (
            config.upstreams.len(),
            policy.groups().len(),
            policy.key_count()
        ),
        (1, 3, 2)
    );
}

#[test]
fn the_sample_configuration_shows_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiergate.yaml");
    fs::write(
        &path,
        "policy: policy.yaml\nupstreams: {openai: {url: https://api.openai.com}}\n",
    )
    .unwrap();
    let (least, _) = Config::load(&path).unwrap();
    let (sample, _) = Config::load(Path::new("conf/tiergate.yaml")).unwrap();
    assert_eq!(sample.listen, least.listen);
    assert_eq!(sample.admin, least.admin);
    assert_eq!(sample.access_log, least.access_log);
    assert_eq!(sample.tier_paths, least.tier_paths);
    assert_eq!(sample.limits, least.limits);
    assert_eq!(sample.server, least.server);
    let least = tiergate::config::Upstream {
        place: sample.upstreams[0].place,
        ..(*least.upstreams[0]).clone()
    };
    assert_eq!(*sample.upstreams[0], least);
}

#[test]
fn a_missing_file_is_told_under_the_path_that_was_given() {
    let mistakes = Config::load(Path::new("nowhere/tiergate.yaml")).unwrap_err();
    assert!(
        mistakes[0]
            .to_string()
            .starts_with("nowhere/tiergate.yaml:1:1: cannot read: "),
        "{}",
        mistakes[0]
    );
}

#[test]
fn mistakes_of_both_files_come_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiergate.yaml");
    fs::write(
        &path,
        "policy: policy.yaml\nupstreams: {openai: {url: ftp://x}}\n",
    )
    .unwrap();
    fs::write(
        folder.path().join("policy.yaml"),
        "version: 1\ngroups: {a: {platform: b, upstream: openai}}\n",
    )
    .unwrap();
    let mistakes = Policy::load_with_config(&path).unwrap_err();
    let files: Vec<_> = mistakes
        .iter()
        .map(|mistake| mistake.path.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(files, ["tiergate.yaml", "policy.yaml"]);
}

/// The mistakes or, after the word, the warnings of a file, one a line. Policies are read with `upstreams.yaml`.
fn mistakes_of(file: &Path) -> String {
    let is_policy = file
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .starts_with("policy_");
    let outcome = if is_policy {
        let (config, _) = Config::load(Path::new("tests/golden/upstreams.yaml")).unwrap();
        Policy::load(file, &config).map(|(_, warnings)| warnings)
    } else {
        Config::load(file).map(|(_, warnings)| warnings)
    };
    match outcome {
        Ok(warnings) => format!("warnings:\n{}", lines(&warnings)),
        Err(mistakes) => lines(&mistakes),
    }
}

fn lines(mistakes: &[Mistake]) -> String {
    mistakes
        .iter()
        .map(|mistake| format!("{mistake}\n"))
        .collect()
}

fn golden_files() -> Vec<PathBuf> {
    let all = fs::read_dir("tests/golden")
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = all
        .filter(|path| {
            path.extension().is_some_and(|ext| ext == "yaml") && !path.ends_with("upstreams.yaml")
        })
        .collect();
    files.sort();
    files
}

/// What the samples say, read by another parser through serde.
#[test]
fn the_samples_are_read_the_same_by_another_reader() {
    #[derive(serde::Deserialize)]
    struct Sample {
        groups: std::collections::BTreeMap<String, serde::de::IgnoredAny>,
        keys: std::collections::BTreeMap<String, serde::de::IgnoredAny>,
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let text = fs::read_to_string(root.join("policy.yaml")).unwrap();
    let sample: Sample = serde_yaml::from_str(&text).unwrap();
    let (config, _) = Config::load(&root.join("tiergate.yaml")).unwrap();
    let (policy, _) = Policy::load(&root.join("policy.yaml"), &config).unwrap();
    let groups: Vec<&str> = policy.groups().iter().map(|group| &*group.name).collect();
    let expected: Vec<&String> = sample.groups.keys().collect();
    let mut sorted = groups.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, expected);
    assert_eq!(policy.key_count(), sample.keys.len());
}
