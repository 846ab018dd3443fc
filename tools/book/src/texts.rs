//! The texts of the book, and what they link to.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result};
use pulldown_cmark::{Event, Options, Parser, Tag};

/// Copies the texts that `tools/book/SUMMARY.md` names, and the files that they link to.
pub fn copy(workspace: &Path, to: &Path) -> Result<()> {
    let summary = fs::read_to_string(workspace.join("tools/book/SUMMARY.md")).context("tools/book/SUMMARY.md")?;
    fs::create_dir_all(to)?;
    fs::write(to.join("SUMMARY.md"), as_index(&summary))?;
    let texts: BTreeSet<PathBuf> = links(&summary).map(PathBuf::from).collect();
    let mut files = texts.clone();
    for path in &texts {
        let text = fs::read_to_string(workspace.join(path)).with_context(|| path.display().to_string())?;
        let directory = path.parent().unwrap_or(Path::new(""));
        files.extend(links(&text).map(|link| normal(&directory.join(link))));
    }
    for file in files {
        let (from, to) = (workspace.join(&file), to.join(&file));
        fs::create_dir_all(to.parent().context("a file without a directory")?)?;
        if texts.contains(&file) {
            let text = fs::read_to_string(from)?;
            let to = if file.ends_with("README.md") { to.with_file_name("index.md") } else { to };
            fs::write(to, as_index(&text))?;
        } else {
            fs::copy(from, to).with_context(|| format!("cannot copy {}", file.display()))?;
        }
    }
    Ok(())
}

/// mdBook makes an `index.html` of each `README.md`, but leaves the links to it alone.
fn as_index(text: &str) -> String {
    text.replace("README.md)", "index.md)").replace("README.md#", "index.md#")
}

/// The files that a text links to, without their anchors; no other sites.
fn links(text: &str) -> impl Iterator<Item = String> {
    let events = Parser::new_ext(text, Options::ENABLE_TABLES | Options::ENABLE_GFM);
    let targets = events.flat_map(|event| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => vec![dest_url.to_string()],
        Event::Html(html) | Event::InlineHtml(html) => super::pages::targets(&html).map(str::to_owned).collect(),
        _ => Vec::new(),
    });
    let files = targets.filter(|target| !target.contains("://") && !target.starts_with(['#', '/']));
    let files = files.map(|target| target.split('#').next().unwrap_or_default().to_owned());
    files.collect::<Vec<_>>().into_iter()
}

/// The path without `..`.
pub fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(normal.pop()),
            part => normal.push(part),
        }
    }
    normal
}
