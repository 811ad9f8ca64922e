//! The rooms of the source: imports between them go one way, and nowhere in a circle. Read from the `crate::` paths of each
//! file, without its comments and tests.
//!
//! Between a module and those below it imports may go both ways: such a folder is one thing in several files, whose `mod.rs`
//! has the types that its parts work on and calls the parts. What lies beside it knows the folder as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// From left to right. An import goes from a room to one further to the right; rooms of one rank know nothing of each other.
const ROOMS: [&[&str]; 9] = [
    &["cli"],
    &["server"],
    &["proxy"],
    &["state"],
    &["accounting"],
    &["upstream"],
    &["bridge", "policy"],
    &["codec"],
    &["config"],
];

/// Of each module, the paths that it names below `crate::`.
type Imports = BTreeMap<String, BTreeSet<String>>;

fn read(folder: &Path, module: &str, imports: &mut Imports) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let inner = [module, stem].join("::").trim_start_matches(':').to_owned();
        let is_source = path.extension().is_some_and(|kind| kind == "rs");
        match stem {
            _ if path.is_dir() => read(&path, &inner, imports),
            "main" | "lib" | "tests" => {}
            "mod" => drop(imports.insert(module.to_owned(), paths_in(&path))),
            _ if is_source => drop(imports.insert(inner, paths_in(&path))),
            _ => {}
        }
    }
}

fn paths_in(file: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(file).unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    let code = code.split("#[cfg(test)]\nmod ").next().unwrap();
    let mut paths = BTreeSet::new();
    for named in code.split("crate::").skip(1) {
        expand(named, "", &mut paths);
    }
    paths
}

/// Takes `a::b` and `a::{b, c::d}` apart; what is left of the text is given back.
fn expand<'a>(text: &'a str, before: &str, paths: &mut BTreeSet<String>) -> &'a str {
    let is_path = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
    let end = text.find(|letter| !is_path(letter)).unwrap_or(text.len());
    let (path, mut rest) = text.split_at(end);
    let path = [before, path].concat();
    if !path.ends_with("::") || !rest.starts_with('{') {
        paths.insert(path);
        return rest;
    }
    while let Some(inner) = rest.strip_prefix(['{', ',']) {
        rest = expand(inner.trim_start(), &path, paths).trim_start();
    }
    rest.strip_prefix('}').unwrap_or(rest)
}

/// Of each module the modules that it imports.
fn imports() -> Imports {
    let mut named = Imports::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    read(&source, "", &mut named);
    let module_of = |path: &String| {
        let mut prefix = path.trim_end_matches(':');
        while !named.contains_key(prefix) {
            prefix = prefix.rsplit_once("::")?.0;
        }
        Some(prefix.to_owned())
    };
    let resolve = |(module, paths): (&String, &BTreeSet<String>)| {
        let found = paths.iter().filter_map(module_of);
        (
            module.clone(),
            found.filter(|other| other != module).collect(),
        )
    };
    named.iter().map(resolve).collect()
}

fn room(module: &str) -> (usize, &str) {
    let room = module.split("::").next().unwrap();
    let rank = ROOMS.iter().position(|rooms| rooms.contains(&room));
    (
        rank.unwrap_or_else(|| panic!("`{room}` is in no list of rooms")),
        room,
    )
}

#[test]
fn imports_between_rooms_go_from_left_to_right() {
    let mut wrong = Vec::new();
    for (module, imported) in imports() {
        let ((rank, own), wrong) = (room(&module), &mut wrong);
        let back = imported.iter().filter(|other| {
            let (other_rank, other) = room(other);
            other != own && other_rank <= rank
        });
        wrong.extend(back.map(|other| format!("{module} -> {other}")));
    }
    assert!(
        wrong.is_empty(),
        "{} arrows back:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn no_file_imports_itself_by_way_of_others() {
    let imports = imports();
    let is_below = |a: &str, b: &str| a.starts_with(&format!("{b}::"));
    let reaches = |from: &str, to: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(module) = next.pop() {
            let others = imports[&module].iter();
            let others =
                others.filter(|other| !is_below(other, &module) && !is_below(&module, other));
            next.extend(
                others
                    .filter(|other| seen.insert(other.to_string()))
                    .cloned(),
            );
        }
        seen.contains(to)
    };
    let mut circles = Vec::new();
    for (module, imported) in &imports {
        let back = imported.iter().filter(|other| {
            !is_below(other, module) && !is_below(module, other) && reaches(other, module)
        });
        circles.extend(back.map(|other| format!("{module} -> {other}")));
    }
    assert!(
        circles.is_empty(),
        "imports in circles:\n{}",
        circles.join("\n")
    );
}
