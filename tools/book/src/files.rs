//! Programs, and other files that are not Markdown, as pages of the book.

use std::{collections::BTreeSet, fs, io::ErrorKind, path::Path};

use anyhow::{Context, Result};

use crate::texts::{Text, entry, links};

/// Texts, and the files whose pages stand below them. `None` stands for the files that only the front page links to.
pub type Places<'a> = Vec<(Option<&'a Text>, Vec<String>)>;

/// A chapter has all its programs, then all its examples, in the order in which its text links to them. Other files have
/// their place below the first text that links to them.
pub fn places<'a>(texts: &'a [Text], workspace: &Path) -> Result<Places<'a>> {
    let (numbered, others): (Vec<&Text>, Vec<&Text>) = texts.iter().partition(|text| text.numbered);
    let mut places = Vec::new();
    for text in numbered {
        let linked: Vec<String> = linked(text).collect();
        let mut files = programs(workspace, &text.path)?;
        files.sort_by_key(|file| {
            let position = linked.iter().position(|link| link == file);
            (file.contains("/examples/"), position.unwrap_or(usize::MAX))
        });
        places.push((Some(text), files));
    }
    let mut placed: BTreeSet<String> = places.iter().flat_map(|(_, files)| files.clone()).collect();
    for (text, files) in &mut places {
        files.extend(text.iter().flat_map(|text| linked(text)).filter(|file| placed.insert(file.clone())));
    }
    let rest = others.into_iter().flat_map(linked).filter(|file| placed.insert(file.clone()));
    places.push((None, rest.collect()));
    Ok(places)
}

/// The files that a text links to, without texts and pictures.
fn linked(text: &Text) -> impl Iterator<Item = String> {
    let files = links(&text.markdown).map(|link| resolve(&text.path, &link));
    files.filter(|file| !file.ends_with(".md") && !is_picture(file))
}

/// The programs and examples of the chapter that this text is about, in alphabetical order.
fn programs(workspace: &Path, text: &str) -> Result<Vec<String>> {
    let mut programs = Vec::new();
    for directory in ["src/bin", "examples"] {
        let directory = resolve(text, directory);
        let entries = match fs::read_dir(workspace.join(&directory)) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries.with_context(|| directory.clone())?,
        };
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.ends_with(".rs") {
                programs.push(format!("{directory}/{name}"));
            }
        }
    }
    programs.sort();
    Ok(programs)
}

/// The table of contents with the files.
pub fn contents(summary: &str, places: &Places) -> String {
    let mut contents = String::new();
    for line in summary.lines() {
        let Some((_, path)) = entry(line) else {
            contents += &format!("{line}\n");
            continue;
        };
        contents += &format!("{}\n", line.replace(path, &page(path)));
        let of_text = places.iter().filter(|(text, _)| text.is_some_and(|text| text.path == path));
        for file in of_text.flat_map(|(_, files)| files) {
            let directory = resolve(path, "") + "/";
            let short = file.strip_prefix(&directory).unwrap_or(file);
            contents += &format!("    - [{short}]({})\n", page(file));
        }
    }
    for file in places.iter().filter(|(text, _)| text.is_none()).flat_map(|(_, files)| files) {
        contents += &format!("\n[{file}]({})\n", page(file));
    }
    contents
}

/// A file as a page. Its title is its path; a link leads back to the text.
pub fn markdown(file: &str, content: &str, text: Option<&Text>) -> String {
    let (title, path) = text.map_or(("Front page", "README.md"), |text| (&text.title, &text.path));
    let back = "../".repeat(file.matches('/').count()) + &page(path);
    let language = match file.rsplit_once('.').map(|(_, extension)| extension) {
        Some("rs") => "rust",
        Some("py") => "python",
        Some("toml") => "toml",
        _ => "text",
    };
    // A fence that no file contains.
    let fence = "~".repeat(12);
    format!("# `{file}`\n\nBack to [{title}]({back})\n\n{fence}{language}\n{}\n{fence}\n", content.trim_end())
}

/// Where mdBook finds what is at this path. Of `index.md` it makes what a browser shows for the directory.
pub fn page(path: &str) -> String {
    match path.strip_suffix("README.md") {
        Some(directory) => format!("{directory}index.md"),
        None if path.ends_with(".md") || is_picture(path) => path.to_owned(),
        None => format!("{path}.md"),
    }
}

pub fn is_picture(path: &str) -> bool {
    [".svg", ".png", ".jpg", ".gif"].iter().any(|extension| path.ends_with(extension))
}

/// Where a link of this file leads to, from the workspace's root.
pub fn resolve(file: &str, link: &str) -> String {
    let mut parts: Vec<&str> = file.split('/').collect();
    parts.pop();
    for part in link.split('/').filter(|part| !part.is_empty()) {
        match part {
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str, numbered: bool, markdown: &str) -> Text {
        Text { path: path.to_owned(), title: path.to_owned(), markdown: markdown.to_owned(), numbered }
    }

    #[test]
    fn a_chapter_has_all_its_programs_and_other_files_are_where_they_are_linked() -> Result<()> {
        let workspace = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        let texts = [
            text("README.md", false, "[s](hello_world/src/bin/send.rs) [c](common/src/lib.rs) [MIT](LICENSE)"),
            text(
                "hello_world/README.md",
                true,
                "[s](src/bin/send.rs) [r](src/bin/receive.rs) ![](../docs/images/a.svg)",
            ),
            text("docs/ARCHITECTURE.md", true, "[c](../common/src/lib.rs) [t](../hello_world/README.md)"),
        ];
        let places = places(&texts, workspace)?;
        let files = |number: usize| places[number].1.iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(files(0)[..2], ["hello_world/src/bin/send.rs", "hello_world/src/bin/receive.rs"]);
        assert!(files(0)[2..].contains(&"hello_world/examples/nowhere.rs"));
        assert_eq!(files(1), ["common/src/lib.rs"]);
        assert_eq!(files(2), ["LICENSE"]);
        Ok(())
    }

    #[test]
    fn the_table_of_contents_has_the_files_below_their_text() {
        let chapter = text("rpc/README.md", true, "");
        let places = vec![
            (Some(&chapter), vec!["rpc/examples/a.rs".to_owned(), "common/src/b.rs".to_owned()]),
            (None, vec!["LICENSE".to_owned()]),
        ];
        let expected = "# Summary\n- [6 RPC](rpc/index.md)\n    - [examples/a.rs](rpc/examples/a.rs.md)\n    \
            - [common/src/b.rs](common/src/b.rs.md)\n\n[LICENSE](LICENSE.md)\n";
        assert_eq!(contents("# Summary\n- [6 RPC](rpc/README.md)\n", &places), expected);
    }

    #[test]
    fn a_program_is_a_page_that_leads_back() {
        let chapter = text("rpc/README.md", true, "");
        let expected = "# `rpc/src/bin/a.rs`\n\nBack to [rpc/README.md](../../../rpc/index.md)\n\n\
            ~~~~~~~~~~~~rust\nfn main() {}\n~~~~~~~~~~~~\n";
        assert_eq!(markdown("rpc/src/bin/a.rs", "fn main() {}\n", Some(&chapter)), expected);
    }

    #[test]
    fn a_link_is_resolved_from_the_file_that_has_it() {
        assert_eq!(resolve("rpc/README.md", "../common/src/lib.rs"), "common/src/lib.rs");
        assert_eq!(resolve("README.md", "LICENSE"), "LICENSE");
    }
}
