use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// cargo refuses a workspace of which a member is missing, so that an image could not be built.
#[test]
fn every_member_of_the_workspace_is_in_the_context_of_the_images() {
    let root = repository();
    let ignored = std::fs::read_to_string(root.join(".dockerignore")).expect(".dockerignore can be read");
    let copied: Vec<&Path> = ignored
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .map(Path::new)
        .collect();

    for member in members(&root) {
        let folder = member.strip_prefix(&root).expect("a member lies in the repository");
        assert!(
            copied.iter().any(|path| folder.starts_with(path)),
            ".dockerignore leaves {} out: add a line that lets it in",
            folder.display()
        );
    }
}

fn repository() -> PathBuf {
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
