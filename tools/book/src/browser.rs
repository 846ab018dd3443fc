//! A browser looks at every page.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use crate::{
    console, files,
    texts::{Text, consoles},
};

/// What the browser is called on different systems.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];

/// Opens each page in Chromium, without a window: nothing may be wider than its place, and only commands are copied from
/// terminals. See `probe.js`.
pub fn check(book: &Path, pages: &[PathBuf], texts: &[Text]) -> Result<()> {
    let started = Instant::now();
    let commands: BTreeMap<PathBuf, Vec<String>> = texts.iter().map(commands).collect();
    let pages: Vec<String> = pages
        .iter()
        .filter_map(|page| page.strip_prefix(book).ok())
        .map(|page| {
            // Rust writes these strings as JavaScript does.
            let commands = page.strip_prefix("html").ok().and_then(|page| commands.get(page));
            format!("{{ address: {:?}, commands: {:?} }},\n", slashes(page), commands.unwrap_or(&Vec::new()))
        })
        .collect();
    let probe = book.join("probe.html");
    let script = include_str!("probe.js");
    let html = format!(
        "<!DOCTYPE html><meta charset=\"utf-8\"><pre id=\"result\"></pre>\n<script>\nconst pages = [\n{}];\n{script}</script>\n",
        pages.concat()
    );
    fs::write(&probe, html).with_context(|| format!("cannot write {}", probe.display()))?;

    let works = |name: &str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    let name = NAMES.iter().find(|name| works(name));
    let name = name.context("Chromium is not installed: `apt-get install chromium` does that on Debian")?;
    let output = Command::new(name)
        // The pages are our own, and root may not have a sandbox.
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"])
        .arg(format!("--user-data-dir={}", book.join("browser").display()))
        .arg(&probe)
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    let html = String::from_utf8_lossy(&output.stdout);
    let result = html.split_once("<pre id=\"result\">").and_then(|(_, rest)| rest.split_once("</pre>"));
    let result = result.map(|(result, _)| result).unwrap_or_default();
    let (failures, count) = result.rsplit_once('\n').unwrap_or(("", result));
    ensure!(
        count == format!("{} looks", pages.len() * 2),
        "{name} did not look at all pages: {result}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(failures.is_empty(), "{failures}");
    println!("{} pages looked at in two widths with {name}, in {:?}", pages.len(), started.elapsed());
    Ok(())
}

/// The page of a text, and the commands in its terminals.
fn commands(text: &Text) -> (PathBuf, Vec<String>) {
    let blocks = consoles(&text.markdown);
    let commands = blocks.iter().flat_map(|(_, block)| console::commands(block)).map(str::to_owned);
    (Path::new(&files::page(&text.path)).with_extension("html"), commands.collect())
}

fn slashes(path: &Path) -> String {
    path.display().to_string().replace('\\', "/")
}
