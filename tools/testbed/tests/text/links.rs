//! Checks that the target of every relative link exists.

use std::path::{Component, Path, PathBuf};

use crate::markdown::{Document, Link, workspace};

/// Returns an error that says what is wrong with a link. Links to other sites are not checked.
pub fn check(document: &Document, link: &Link, all: &[Document]) -> Result<(), String> {
    if link.target.contains("://") || link.target.starts_with("mailto:") {
        return Ok(());
    }
    let (path, anchor) = link.target.split_once('#').unwrap_or((&link.target, ""));
    let directory = document.path.parent().unwrap_or(Path::new(""));
    let path = if path.is_empty() { document.path.clone() } else { normal(&directory.join(path)) };
    if !workspace().join(&path).is_file() {
        // The target cannot be a directory, because the book contains only files.
        return Err(format!("there is no file {}", path.display()));
    }
    let target = all.iter().find(|other| other.path == path);
    match target {
        Some(target) if !anchor.is_empty() && !target.anchors.iter().any(|other| other == anchor) => {
            Err(format!("{} has no heading for #{anchor}; it has {}", path.display(), target.anchors.join(", ")))
        }
        _ => Ok(()),
    }
}

/// The path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(normal.pop()),
            part => normal.push(part),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::markdown::{documents, parse};

    #[test]
    fn a_link_to_a_missing_file_a_directory_or_a_missing_heading_is_noticed() {
        let all = documents().unwrap();
        let document = parse(Path::new("rpc/README.md"), "# Here\n");
        for target in
            ["../READM.md", "../hello_world", "../README.md#two-command", "#there", "../docs/images/hello.svg"]
        {
            let link = Link { line: 1, target: target.to_owned() };
            assert!(check(&document, &link, &all).is_err(), "{target}");
        }
        for target in
            ["../README.md", "../README.md#two-commands", "https://nowhere.invalid", "../hello_world/README.md"]
        {
            let link = Link { line: 1, target: target.to_owned() };
            assert_eq!(check(&document, &link, &all), Ok(()), "{target}");
        }
    }
}
