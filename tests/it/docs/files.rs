//! The documentation against the files of the project: targets, rooms, invariants, promises and links.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::page::{anchor, blocks, headings, links, name, names, pages, prose, quoted, table};
use super::{assert_same, read, root};

/// The files below these folders that are wanted, one after the other.
pub fn text_below(folders: &[&str], wanted: impl Fn(&Path) -> bool) -> String {
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut text = String::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") && wanted(&path) {
                text += &fs::read_to_string(&path).unwrap();
            }
        }
    }
    text
}

#[test]
fn the_readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 200, "{lines} lines");
}

#[test]
fn every_page_is_in_the_index() {
    let linked: BTreeSet<String> = links("README.md").into_iter().collect();
    for page in pages() {
        assert!(page == "README.md" || linked.contains(&page), "{page}");
    }
}

#[test]
fn a_long_page_begins_with_its_contents() {
    for page in pages().iter().filter(|page| page.starts_with("docs/")) {
        let text = prose(page);
        if text.lines().count() < 60 {
            continue;
        }
        let sections: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("## "))
            .map(|heading| format!("* [{heading}](#{})", anchor(heading)))
            .collect();
        let contents: Vec<&str> = text
            .lines()
            .take_while(|line| !line.starts_with("## "))
            .filter(|line| line.starts_with("* "))
            .collect();
        assert_eq!(contents, sections, "{page}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    for page in pages() {
        let folder = root().join(&page);
        let folder = folder.parent().unwrap();
        for link in links(&page) {
            if link.starts_with("http") || link.ends_with("issues") {
                continue;
            }
            let (file, section) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => page.clone(),
                file => {
                    let target = folder.join(file).canonicalize();
                    let target = target.unwrap_or_else(|why| panic!("{page}: {link}: {why}"));
                    let target = target.strip_prefix(root().canonicalize().unwrap());
                    target.unwrap().display().to_string()
                }
            };
            if !section.is_empty() {
                let anchors: Vec<String> = headings(&target).iter().map(|h| anchor(h)).collect();
                assert!(anchors.contains(&section.to_owned()), "{page}: {link}");
            }
        }
    }
}

#[test]
fn the_make_targets_are_those_of_the_makefile() {
    let makefile = read("Makefile");
    let phony = makefile
        .lines()
        .find_map(|line| line.strip_prefix(".PHONY:"));
    let targets = phony.unwrap().split_whitespace();
    let targets = targets.filter(|name| *name != "tools");
    let targets: BTreeSet<String> = targets.map(|name| format!("make {name}")).collect();
    let documented = names("docs/testing.md", "target");
    assert_same("targets", &documented.into_iter().collect(), &targets);
    let commands = blocks("README.md", "sh").join("\n");
    for command in commands.lines().filter(|line| line.starts_with("make ")) {
        let command = command.split('#').next().unwrap().trim();
        assert!(targets.contains(command), "`{command}` is no target");
    }
}

#[test]
fn the_fuzz_targets_are_those_of_the_folder_and_have_seeds() {
    let documented = names("docs/testing.md", "fuzz target")
        .into_iter()
        .collect();
    for folder in ["fuzz_targets", "seeds", "dictionaries"] {
        let entries = fs::read_dir(root().join("fuzz").join(folder)).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let stems = paths.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
        assert_same("fuzz targets", &documented, &stems.collect());
    }
}

#[test]
fn fuzzing_stands_on_the_versions_of_the_program() {
    let dependencies = |file: &str| {
        let file = read(file);
        let (_, lines) = file.split_once("\n[dependencies]\n").unwrap();
        let lines = lines.lines().take_while(|line| !line.starts_with('['));
        let names = lines.filter_map(|line| line.split_once(" = "));
        names
            .map(|(name, _)| name.to_owned())
            .collect::<BTreeSet<_>>()
    };
    let versions = |file: &str, name: &str| {
        let file = read(file);
        let begin = format!("\nname = \"{name}\"\nversion = ");
        let versions = file.split(&begin).skip(1);
        let lines = versions.map(|rest| rest.lines().next().unwrap().to_owned());
        lines.collect::<BTreeSet<_>>()
    };
    let fuzzing = dependencies("fuzz/Cargo.toml");
    let program = dependencies("Cargo.toml");
    let shared: Vec<&String> = fuzzing.intersection(&program).collect();
    assert!(shared.len() > 10);
    for name in shared {
        let fuzzed = versions("fuzz/Cargo.lock", name);
        assert!(fuzzed.is_subset(&versions("Cargo.lock", name)), "{name}");
    }
}

#[test]
fn the_rooms_are_those_of_the_source() {
    let rows = table("docs/architecture.md", "room");
    let documented = rows.iter().map(|row| name(&row[0])).collect();
    let entries = fs::read_dir(root().join("src")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let rooms = names.filter(|name| !["main.rs", "lib.rs"].contains(&name.as_str()));
    let rooms: BTreeSet<String> = rooms.map(|name| format!("src/{name}")).collect();
    assert_same("rooms", &documented, &rooms);
    for room in &documented {
        let word = room.trim_start_matches("src/").trim_end_matches(".rs");
        let picture = read("docs/images/architecture.svg");
        assert!(picture.contains(&format!(">{word}<")), "{word}");
    }
}

/// The numbered sentences behind these words, in one line each.
fn invariants(text: &str, from: &str) -> Vec<String> {
    let (_, text) = text.split_once(from).unwrap();
    let words = text.split_whitespace().filter(|word| *word != "//!");
    let text = words.collect::<Vec<_>>().join(" ");
    let text = text.split(" In reading order").next().unwrap();
    let sentence = |number: usize| {
        let (_, from) = text.split_once(&format!("{number}. ")).unwrap();
        let to = from.split(&format!(" {}. ", number + 1)).next().unwrap();
        to.to_owned()
    };
    (1..=6).map(sentence).collect()
}

#[test]
fn the_invariants_are_those_of_the_library() {
    assert_eq!(
        invariants(
            &read("docs/request-lifecycle.md"),
            "\n## What always holds\n"
        ),
        invariants(&read("src/lib.rs"), "What always holds:")
    );
}

#[test]
fn every_promise_names_tests_that_exist() {
    let code = text_below(&["tests", "src"], |_| true);
    for row in table("docs/security.md", "promise") {
        let names = quoted(&row[1]);
        assert!(!names.is_empty(), "{row:?}");
        for name in names {
            let is_test = code.contains(&format!("#[test]\nfn {name}() {{"));
            // Targets are compared with the Makefile elsewhere.
            let is_target = name.starts_with("make ");
            assert!(is_test || is_target, "there is no test `{name}`");
        }
    }
}
