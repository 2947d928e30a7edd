use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// cargo refuses a workspace that lacks a member. Then no image could be built.
#[test]
fn every_member_of_the_workspace_is_in_the_context_of_the_images() {
    let root = repository();
    let copied = let_in(&root);
    for member in members(&root) {
        let folder = member.strip_prefix(&root).expect("a member lies in the repository");
        assert!(
            copied.iter().any(|path| folder.starts_with(path)),
            ".dockerignore leaves {} out: add a line that lets it in",
            folder.display()
        );
    }
}

/// The engine compiles in a folder that has only what .dockerignore lets in. cargo must find everything there that it needs before it compiles.
#[test]
fn cargo_finds_a_whole_workspace_in_the_context_of_the_images() {
    let root = repository();
    let context = tempfile::tempdir().expect("a folder");
    for path in let_in(&root) {
        symlink(root.join(&path), context.path().join(&path)).expect("a link");
    }
    // This file says how the programs are linked. Without it cargo would link them in another way, and say nothing.
    assert!(
        context.path().join(".cargo/config.toml").is_file(),
        ".dockerignore leaves .cargo/config.toml out"
    );
    let found = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--locked", "--offline", "--depth", "0"])
        .current_dir(context.path())
        .output()
        .expect("cargo can be run");
    let answer = String::from_utf8_lossy(&found.stderr);
    assert!(
        found.status.success(),
        "cargo refuses what .dockerignore lets in: {answer}"
    );
}

/// The files and folders of the repository that .dockerignore lets in.
fn let_in(root: &Path) -> Vec<PathBuf> {
    let ignored = std::fs::read_to_string(root.join(".dockerignore")).expect(".dockerignore can be read");
    let lines = ignored.lines().filter_map(|line| line.strip_prefix('!'));
    lines.map(PathBuf::from).collect()
}

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests have a folder above them")
        .to_owned()
}

/// The folders of the workspace's packages.
fn members(root: &Path) -> Vec<PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root)
        .output()
        .expect("cargo can be run");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("cargo names the packages");
    assert!(!packages.is_empty());
    packages.iter().map(manifest_folder).collect()
}

fn manifest_folder(package: &Value) -> PathBuf {
    let manifest = package["manifest_path"].as_str().expect("a package names its manifest");
    Path::new(manifest)
        .parent()
        .expect("a manifest lies in a folder")
        .to_owned()
}
