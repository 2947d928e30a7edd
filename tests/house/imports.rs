//! Finds out from the source of a crate which module imports which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree};

/// The path of a module in its crate. It is empty for the crate's root.
pub(crate) type Module = Vec<String>;

/// The modules of a crate, and for each module the other modules that it imports.
#[derive(Debug, Default)]
pub(crate) struct Imports(BTreeMap<Module, BTreeSet<Module>>);

impl Imports {
    /// Reads every source file below `source`. Imports of tests do not count.
    pub(crate) fn of(source: &Path) -> Self {
        let files = files(source);
        let modules: BTreeSet<Module> = files.iter().map(|file| module(source, file)).collect();
        let mut imports = Self::default();
        for file in &files {
            let importer = module(source, file);
            let text = fs::read_to_string(file).unwrap_or_else(|err| panic!("{}: {err}", file.display()));
            let parsed = syn::parse_file(&text).unwrap_or_else(|err| panic!("{}: {err}", file.display()));
            let mut paths = Paths {
                module: importer.clone(),
                found: BTreeSet::new(),
            };
            paths.visit_file(&parsed);
            let imported = paths.found.iter().filter_map(|path| longest_module(path, &modules));
            let imported = imported.filter(|imported| *imported != importer).collect();
            imports
                .0
                .entry(importer)
                .or_insert_with(BTreeSet::new)
                .extend::<BTreeSet<_>>(imported);
        }
        imports
    }

    pub(crate) fn modules(&self) -> impl Iterator<Item = &Module> {
        self.0.keys()
    }

    /// Each import, as a pair: the module that imports, and the module that it imports.
    pub(crate) fn arrows(&self) -> impl Iterator<Item = (&Module, &Module)> {
        self.0
            .iter()
            .flat_map(|(importer, imported)| imported.iter().map(move |imported| (importer, imported)))
    }
}

pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let entries = fs::read_dir(folder).unwrap_or_else(|err| panic!("{}: {err}", folder.display()));
    for entry in entries {
        let path = entry.expect("a folder's entry can be read").path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The module of a file: `kafka/publish/mod.rs` is `kafka::publish`.
fn module(source: &Path, file: &Path) -> Module {
    let relative = file
        .strip_prefix(source)
        .expect("the file lies below the source")
        .with_extension("");
    let mut module: Module = relative
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    if module.last().is_some_and(|last| last == "mod") || module == ["lib"] || module == ["main"] {
        module.pop();
    }
    module
}

/// The module that a path names, or the module of the item that it names.
fn longest_module(path: &[String], modules: &BTreeSet<Module>) -> Option<Module> {
    (1..=path.len())
        .rev()
        .map(|length| path[..length].to_vec())
        .find(|prefix| modules.contains(prefix))
}

/// Collects the paths that a file names, as paths from the crate's root.
struct Paths {
    module: Module,
    found: BTreeSet<Module>,
}

impl Paths {
    fn note(&mut self, path: &[String]) {
        let mut rest = path;
        let mut absolute = match rest.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self" | "super") => self.module.clone(),
            _ => return,
        };
        while let Some(first) = rest.first() {
            match first.as_str() {
                "crate" | "self" => {}
                "super" => drop(absolute.pop()),
                _ => break,
            }
            rest = &rest[1..];
        }
        absolute.extend_from_slice(rest);
        self.found.insert(absolute);
    }

    fn note_use(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: String| {
            let mut path = before.to_vec();
            path.push(name);
            path
        };
        match tree {
            UseTree::Path(path) => self.note_use(&path.tree, &with(path.ident.to_string())),
            UseTree::Name(name) => self.note(&with(name.ident.to_string())),
            UseTree::Rename(rename) => self.note(&with(rename.ident.to_string())),
            UseTree::Glob(_) => self.note(before),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.note_use(item, before)),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.note_use(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.note(&segments);
        visit::visit_path(self, path);
    }

    /// The arguments of a macro are not parsed. Their words are enough to find paths.
    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let words = call.tokens.to_string().replace(" :: ", "::");
        for word in words.split(|char: char| !(char.is_alphanumeric() || char == '_' || char == ':')) {
            let path: Vec<String> = word.split("::").map(str::to_owned).collect();
            self.note(&path);
        }
        visit::visit_macro(self, call);
    }
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Path>()
                .is_ok_and(|condition| condition.is_ident("test"))
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Mod(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
