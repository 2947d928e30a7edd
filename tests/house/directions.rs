//! Imports run downwards. ARCHITECTURE.md has the order of each program's rooms, and this test checks the code against it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::image_context::repository;
use super::imports::{Imports, Module};

/// Below this heading, ARCHITECTURE.md has lines `FOLDER  ROOM > ROOM > …`. The uppermost room comes first.
const HEADING: &str = "## Rooms";

#[test]
fn no_import_runs_up_against_the_order_of_the_rooms() {
    let architecture = fs::read_to_string(repository().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md can be read");
    let orders = orders(&architecture);
    assert!(
        !orders.is_empty(),
        "ARCHITECTURE.md has the order of rooms under `{HEADING}`"
    );
    let mut wrong = Vec::new();
    for (folder, rooms) in orders {
        let (source, below) = folder.split_once("/src").expect("a folder of a crate's source");
        let prefix: Module = below
            .split('/')
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect();
        let imports = Imports::of(&repository().join(source).join("src"));
        let placed = |module: &Module| place_of_room(module, &prefix, &rooms);
        for module in imports.modules().filter(|module| child(module, &prefix).is_some()) {
            if placed(module).is_none() && module.len() > prefix.len() && !is_entrance(module) {
                wrong.push(format!(
                    "{folder}: `{}` is in no room of ARCHITECTURE.md",
                    module.join("::")
                ));
            }
        }
        for (importer, imported) in imports.arrows() {
            if let (Some(from), Some(to)) = (placed(importer), placed(imported))
                && from > to
            {
                wrong.push(format!(
                    "{folder}: `{}` imports `{}`, which is above it",
                    importer.join("::"),
                    imported.join("::")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_modules_of_a_folder_import_each_other_in_a_circle() {
    let mut circles = Vec::new();
    for source in checked_crates() {
        let imports = Imports::of(&repository().join(&source).join("src"));
        let folders: BTreeSet<Module> = imports
            .modules()
            .flat_map(|module| (0..module.len()).map(|length| module[..length].to_vec()))
            .collect();
        for folder in folders {
            if let Some(circle) = find_circle(&imports_between_siblings(&imports, &folder)) {
                circles.push(format!("{source}/src/{}: {}", folder.join("/"), circle.join(" -> ")));
            }
        }
    }
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

#[test]
fn a_circle_is_found_and_so_is_the_way_around_it() {
    let circle_in = |arrows: &[(&str, &str)]| {
        let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in arrows {
            graph.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        find_circle(&graph)
    };
    assert_eq!(circle_in(&[("a", "b"), ("b", "c"), ("a", "c")]), None);
    let found = circle_in(&[("a", "b"), ("b", "c"), ("c", "b")]).expect("b and c import each other");
    assert_eq!(found, ["b", "c", "b"]);
}

/// The crates in which no modules may import each other in a circle: those of all programs, and of the crates that they use.
fn checked_crates() -> Vec<String> {
    let programs = [
        "outbox-relay",
        "view-builder",
        "console",
        "user-api",
        "post-api",
        "rest",
        "service",
        "events",
    ];
    let crates = fs::read_dir(repository().join("crates")).expect("crates/ can be read");
    let crates = crates.map(|entry| format!("crates/{}", entry.expect("an entry").file_name().to_string_lossy()));
    programs.map(str::to_owned).into_iter().chain(crates).collect()
}

/// The folder and the rooms of each line under [`HEADING`].
fn orders(architecture: &str) -> Vec<(&str, Vec<&str>)> {
    let section = architecture.split_once(HEADING).map_or("", |(_, rest)| rest);
    let section = section.split("\n## ").next().unwrap_or_default();
    let lines = section.lines().filter(|line| line.contains(" > "));
    let lines = lines
        .filter_map(|line| line.split_once(' '))
        .filter(|(folder, _)| folder.contains("/src"));
    lines
        .map(|(folder, rooms)| (folder, rooms.split('>').map(str::trim).collect()))
        .collect()
}

/// The folder or file directly below `prefix` that has the module.
fn child<'m>(module: &'m Module, prefix: &Module) -> Option<&'m str> {
    module.strip_prefix(prefix.as_slice())?.first().map(String::as_str)
}

/// How far down the module's room is. `None`: it is in no room.
fn place_of_room(module: &Module, prefix: &Module, rooms: &[&str]) -> Option<usize> {
    let room = child(module, prefix)?;
    rooms.iter().position(|known| *known == room)
}

/// The files with which a program begins. They are above all rooms.
fn is_entrance(module: &Module) -> bool {
    module.len() == 1 && matches!(module[0].as_str(), "faulty" | "bin")
}

/// The imports between what lies directly below `folder`.
fn imports_between_siblings(imports: &Imports, folder: &Module) -> BTreeMap<String, BTreeSet<String>> {
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (importer, imported) in imports.arrows() {
        if let (Some(from), Some(to)) = (child(importer, folder), child(imported, folder))
            && from != to
        {
            graph.entry(from.to_owned()).or_default().insert(to.to_owned());
        }
    }
    graph
}

/// A way along imports from a module back to itself.
fn find_circle(graph: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut done = BTreeSet::new();
    graph
        .keys()
        .find_map(|start| find_circle_from(graph, start, &mut Vec::new(), &mut done))
}

/// Follows imports from `at`. `way` is how it came there, and `done` has the modules from which no import leads into a circle.
fn find_circle_from(
    graph: &BTreeMap<String, BTreeSet<String>>,
    at: &str,
    way: &mut Vec<String>,
    done: &mut BTreeSet<String>,
) -> Option<Vec<String>> {
    if let Some(begin) = way.iter().position(|passed| passed == at) {
        let mut circle = way[begin..].to_vec();
        circle.push(at.to_owned());
        return Some(circle);
    }
    if done.contains(at) {
        return None;
    }
    way.push(at.to_owned());
    let next = graph.get(at).into_iter().flatten();
    for imported in next {
        if let Some(circle) = find_circle_from(graph, imported, way, done) {
            return Some(circle);
        }
    }
    way.pop();
    done.insert(at.to_owned());
    None
}

#[test]
fn every_program_has_its_rooms_written_down() {
    let architecture = fs::read_to_string(repository().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md can be read");
    for source in ["outbox-relay/src", "view-builder/src", "console/src"] {
        assert!(
            orders(&architecture).iter().any(|(folder, _)| *folder == source),
            "{source}"
        );
        assert!(Path::new(&repository().join(source)).is_dir());
    }
}
