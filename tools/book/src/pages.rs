//! The pages that mdBook has made.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::texts::normal;

/// Checks that each link of each page leads to a file, and each anchor to a place in it. Gives back how many pages there
/// are.
pub fn check(html: &Path) -> Result<usize> {
    let mut pages = Vec::new();
    collect(html, &mut pages)?;
    let mut failures = String::new();
    for page in &pages {
        let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
        let directory = page.parent().unwrap_or(html);
        for target in targets(&text).filter(|target| !target.contains("://") && !target.starts_with(['/', 'd'])) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if path.is_empty() { page.clone() } else { normal(&directory.join(path)) };
            let found = fs::read(&file).is_ok_and(|content| {
                let text = String::from_utf8_lossy(&content);
                anchor.is_empty() || text.contains(&format!("id=\"{anchor}\""))
            });
            if !found {
                failures += &format!("\n{}: {target} leads nowhere", page.display());
            }
        }
    }
    ensure!(failures.is_empty(), "{failures}");
    Ok(pages.len())
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

/// What a piece of HTML links to.
pub fn targets(html: &str) -> impl Iterator<Item = &str> {
    let values = [" src=\"", " srcset=\"", " href=\""].into_iter().flat_map(|name| html.split(name).skip(1));
    values.filter_map(|rest| rest.split('"').next()).filter(|target| !target.is_empty())
}
