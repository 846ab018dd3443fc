//! The texts of the book, as mdBook gets them.

use std::{collections::BTreeSet, fs, ops::Range, path::Path};

use anyhow::{Context, Result};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag};

use crate::{console, files, pages};

/// A text that `tools/book/SUMMARY.md` names.
#[derive(Default)]
pub struct Text {
    /// From the workspace's root, with slashes on every system.
    pub path: String,
    /// As the table of contents calls it, in Markdown.
    pub title: String,
    pub markdown: String,
    /// The table of contents may have pages below it.
    pub numbered: bool,
}

/// All texts, in the order of the book.
pub fn read(workspace: &Path) -> Result<Vec<Text>> {
    let summary = summary(workspace)?;
    let entries = summary.lines().filter_map(|line| Some((line, entry(line)?)));
    let texts = entries.map(|(line, (title, path))| {
        let markdown = fs::read_to_string(workspace.join(path)).with_context(|| path.to_owned())?;
        Ok(Text { path: path.to_owned(), title: title.to_owned(), markdown, numbered: line.starts_with("- ") })
    });
    texts.collect()
}

fn summary(workspace: &Path) -> Result<String> {
    fs::read_to_string(workspace.join("tools/book/SUMMARY.md")).context("tools/book/SUMMARY.md")
}

/// The title and the path in a line of the table of contents.
pub fn entry(line: &str) -> Option<(&str, &str)> {
    line.trim_start_matches("- ").strip_prefix('[')?.strip_suffix(')')?.split_once("](")
}

/// Writes the texts, the files that they link to and the table of contents.
pub fn write(texts: &[Text], workspace: &Path, to: &Path) -> Result<()> {
    let put = |path: &str, content: &[u8]| {
        let file = to.join(path);
        fs::create_dir_all(file.parent().unwrap_or(to))?;
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))
    };
    let read = |path: &str| fs::read(workspace.join(path)).with_context(|| path.to_owned());

    let places = files::places(texts, workspace)?;
    for text in texts {
        put(&files::page(&text.path), rewritten(&text.markdown).as_bytes())?;
        let linked = links(&text.markdown).map(|link| files::resolve(&text.path, &link));
        for picture in linked.filter(|path| files::is_picture(path)).collect::<BTreeSet<_>>() {
            put(&picture, &read(&picture)?)?;
        }
    }
    for (file, text) in places.iter().flat_map(|(text, files)| files.iter().map(move |file| (file, *text))) {
        let content = String::from_utf8(read(file)?).with_context(|| format!("{file} is not a text"))?;
        put(&files::page(file), files::markdown(file, &content, text).as_bytes())?;
    }
    put("SUMMARY.md", files::contents(&summary(workspace)?, &places).as_bytes())
}

fn events(markdown: &str) -> impl Iterator<Item = (Event<'_>, Range<usize>)> {
    Parser::new_ext(markdown, Options::ENABLE_TABLES | Options::ENABLE_GFM).into_offset_iter()
}

/// The files that a text links to, without their anchors; no other sites.
pub fn links(markdown: &str) -> impl Iterator<Item = String> {
    let targets = events(markdown).flat_map(|(event, _)| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => vec![dest_url.to_string()],
        Event::Html(html) | Event::InlineHtml(html) => pages::targets(&html).map(str::to_owned).collect(),
        _ => Vec::new(),
    });
    targets.filter(|target| is_file(target)).map(|target| without_anchor(&target).0.to_owned())
}

fn is_file(target: &str) -> bool {
    !target.contains("://") && !target.starts_with(['#', '/'])
}

/// The path, and the anchor with its `#`.
fn without_anchor(target: &str) -> (&str, &str) {
    target.split_at(target.find('#').unwrap_or(target.len()))
}

/// The `console` blocks of a text, and where they stand in it.
pub fn consoles(markdown: &str) -> Vec<(Range<usize>, String)> {
    let mut blocks: Vec<(Range<usize>, String)> = Vec::new();
    for (event, range) in events(markdown) {
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) if &*language == "console" => {
                blocks.push((range, String::new()));
            }
            Event::Text(text) => match blocks.last_mut() {
                Some((block, content)) if block.end >= range.end => content.push_str(&text),
                _ => (),
            },
            _ => (),
        }
    }
    blocks
}

/// The text with links to pages, and with `console` blocks as HTML.
fn rewritten(markdown: &str) -> String {
    let consoles = consoles(markdown).into_iter().map(|(range, block)| (range, console::html(&block)));
    let mut changes: Vec<(Range<usize>, String)> = consoles.collect();
    for (event, range) in events(markdown) {
        if let Event::Start(Tag::Link { dest_url, .. }) = event
            && is_file(&dest_url)
            // The link's text may contain the same characters: the target is the last.
            && let Some(start) = markdown[range.clone()].rfind(&*dest_url)
        {
            let (path, anchor) = without_anchor(&dest_url);
            let start = range.start + start;
            changes.push((start..start + dest_url.len(), files::page(path) + anchor));
        }
    }
    changes.sort_by_key(|(range, _)| range.start);
    let mut text = markdown.to_owned();
    for (range, change) in changes.into_iter().rev() {
        text.replace_range(range, &change);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_pages_and_other_sites_and_pictures_are_left_alone() {
        let text = "[README.md](../README.md#two) [a](src/bin/a.rs) [MIT](LICENSE) [b](b.md) [#](#here)\n\
            [r](https://r.invalid/README.md) ![](a.svg) `[a](a.rs)`\n\n| [c](c.rs) |\n|---|\n";
        let expected = "[README.md](../index.md#two) [a](src/bin/a.rs.md) [MIT](LICENSE.md) [b](b.md) [#](#here)\n\
            [r](https://r.invalid/README.md) ![](a.svg) `[a](a.rs)`\n\n| [c](c.rs.md) |\n|---|\n";
        assert_eq!(rewritten(text), expected);
    }

    #[test]
    fn a_console_block_becomes_html_and_other_blocks_stay() {
        let text = "One\n\n```console\n$ a\n\nb\n```\n\n```sh\nc # d\n```\n";
        let expected = "One\n\n<div class=\"terminal\"><pre><code class=\"nohighlight\">a</code></pre>\
            <pre><samp>&#10;b</samp></pre></div>\n\n\n```sh\nc # d\n```\n";
        assert_eq!(rewritten(text), expected);
        assert_eq!(consoles(text)[0].1, "$ a\n\nb\n");
    }

    #[test]
    fn a_line_of_the_table_of_contents_has_a_title_and_a_path() {
        assert_eq!(entry("[Front page](README.md)"), Some(("Front page", "README.md")));
        assert_eq!(entry("- [How `a` is built](docs/A.md)"), Some(("How `a` is built", "docs/A.md")));
        assert_eq!(entry("# Summary"), None);
        assert_eq!(entry("---"), None);
    }
}
