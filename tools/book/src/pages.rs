//! The pages that mdBook has made.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// Checks that each link of each page leads to a file, and each anchor to a place in it; that no link leads out of the
/// book to a bare text or program, and that no line of a program is hidden. Gives back the pages.
pub fn check(html: &Path) -> Result<Vec<PathBuf>> {
    let mut pages = Vec::new();
    collect(html, &mut pages)?;
    pages.sort();
    let mut failures = String::new();
    for page in &pages {
        let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
        for target in targets(&text) {
            if let Some(failure) = failure(html, page, target) {
                failures += &format!("\n{}: {target} {failure}", page.display());
            }
        }
        // mdBook takes lines that begin with `# ` for what need not be shown.
        if text.contains("class=\"boring\"") {
            failures += &format!("\n{}: mdbook hides lines of the code", page.display());
        }
    }
    ensure!(failures.is_empty(), "{failures}");
    Ok(pages)
}

fn collect(directory: &Path, pages: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, pages)?;
        } else if path.extension().is_some_and(|extension| extension == "html") {
            pages.push(path);
        }
    }
    Ok(())
}

/// What is wrong with a link, if anything is. Links to other sites are left alone.
fn failure(html: &Path, page: &Path, target: &str) -> Option<&'static str> {
    if target.contains("://") || target.starts_with("data:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = match path.strip_prefix('/') {
        // Only the page for missing pages has such links.
        Some(path) => html.join(path),
        None if path.is_empty() => page.to_owned(),
        None => normal(&page.parent().unwrap_or(html).join(path)),
    };
    if [".md", ".rs"].iter().any(|extension| path.ends_with(extension)) {
        return Some("is not a page");
    }
    let found = if path == "/" { html.is_dir() } else { file.is_file() };
    if !found {
        return Some("leads nowhere");
    }
    let has = |content: Vec<u8>| String::from_utf8_lossy(&content).contains(&format!("id=\"{anchor}\""));
    (!anchor.is_empty() && !fs::read(&file).is_ok_and(has)).then_some("has an anchor that the page does not have")
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

/// What a piece of HTML links to.
pub fn targets(html: &str) -> impl Iterator<Item = &str> {
    let values = [" src=\"", " srcset=\"", " href=\""].into_iter().flat_map(|name| html.split(name).skip(1));
    values.filter_map(|rest| rest.split('"').next()).filter(|target| !target.is_empty())
}
