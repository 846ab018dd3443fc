//! Finds the parts of a text that can be checked.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// One Markdown file.
#[derive(Debug, Default)]
pub struct Document {
    /// Its path below the workspace's root.
    pub path: PathBuf,
    pub blocks: Vec<Block>,
    pub links: Vec<Link>,
    /// Code in a paragraph, with its line.
    pub codes: Vec<(usize, String)>,
    /// The possible values after the `#` of a link.
    pub anchors: Vec<String>,
}

/// A code block.
#[derive(Clone, Debug)]
pub struct Block {
    /// What stands after the fence. `None` for an indented block.
    pub language: Option<String>,
    pub text: String,
    /// The number of its first line in the text.
    pub line: usize,
    /// The part of the text that contains it: under one heading, or within one pair of `<details>`.
    pub section: usize,
}

/// A link, or a picture.
#[derive(Debug)]
pub struct Link {
    pub line: usize,
    pub target: String,
}

/// The directory of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// All texts: the Markdown files of the workspace, except those in hidden directories and in `target`.
pub fn documents() -> Result<Vec<Document>> {
    let mut paths = Vec::new();
    collect(workspace(), &mut paths)?;
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

fn collect(directory: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" {
                collect(&path, paths)?;
            }
        // The table of contents belongs to the book. `cargo book` checks its links.
        } else if name.ends_with(".md") && name != "SUMMARY.md" {
            paths.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Document> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let path = path.strip_prefix(workspace())?;
    Ok(parse(path, &text))
}

/// Parses a text.
pub fn parse(path: &Path, text: &str) -> Document {
    let text = text.replace("\r\n", "\n");
    let line_of = |at: usize| text[..at].matches('\n').count() + 1;
    let mut document = Document { path: path.to_owned(), ..Document::default() };
    let mut section = 0;
    let mut block: Option<Block> = None;
    let mut heading: Option<String> = None;
    let mut counts = BTreeMap::new();
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_GFM;
    for (event, range) in Parser::new_ext(&text, options).into_offset_iter() {
        let line = line_of(range.start);
        match event {
            Event::Start(Tag::CodeBlock(kind)) => {
                let (language, line) = match kind {
                    CodeBlockKind::Fenced(language) => (Some(language.to_string()), line + 1),
                    CodeBlockKind::Indented => (None, line),
                };
                block = Some(Block { language, text: String::new(), line, section });
            }
            Event::End(TagEnd::CodeBlock) => document.blocks.extend(block.take()),
            Event::Start(Tag::Heading { .. }) => {
                section += 1;
                heading = Some(String::new());
            }
            Event::End(TagEnd::Heading(_)) => {
                let anchor = anchor(&heading.take().unwrap_or_default());
                let count = counts.entry(anchor.clone()).or_insert(0);
                document.anchors.push(if *count == 0 { anchor } else { format!("{anchor}-{count}") });
                *count += 1;
            }
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                document.links.push(Link { line, target: dest_url.to_string() });
            }
            Event::Html(html) | Event::InlineHtml(html) => {
                section += usize::from(html.contains("details>"));
                document.links.extend(links_in_html(line, &html));
            }
            Event::Text(part) => {
                if let Some(block) = &mut block {
                    block.text += &part;
                } else if let Some(heading) = &mut heading {
                    *heading += &part;
                }
            }
            Event::Code(code) => {
                if let Some(heading) = &mut heading {
                    *heading += &code;
                }
                document.codes.push((line, code.to_string()));
            }
            _ => (),
        }
    }
    document
}

/// The anchor that GitHub and mdBook give a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|letter| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter));
    kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}

fn links_in_html(line: usize, html: &str) -> Vec<Link> {
    let values = ["src=\"", "srcset=\"", "href=\""].iter().flat_map(|name| html.split(name).skip(1));
    let targets = values.filter_map(|rest| rest.split('"').next());
    targets.map(|target| Link { line, target: target.to_owned() }).collect()
}

#[test]
fn a_text_is_taken_apart() {
    let text = "# One\n\n```rust\nfn f() {}\n```\n\n## Two & `three`\n\n    indented\n\n## Two & `three`\n\n\
                ![a](b.svg) [c](d.md#e) `cargo tour` <img src=\"f.svg\">\n";
    let document = parse(Path::new("README.md"), text);
    let blocks: Vec<_> = document.blocks.iter().map(|b| (b.language.as_deref(), b.line, b.section)).collect();
    assert_eq!(blocks, [(Some("rust"), 4, 1), (None, 9, 2)]);
    assert_eq!(document.blocks[0].text, "fn f() {}\n");
    assert_eq!(document.anchors, ["one", "two--three", "two--three-1"]);
    let links: Vec<_> = document.links.iter().map(|link| link.target.as_str()).collect();
    assert_eq!(links, ["b.svg", "d.md#e", "f.svg"]);
    assert!(document.codes.contains(&(13, "cargo tour".to_owned())));
}
