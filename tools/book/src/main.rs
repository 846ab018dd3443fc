//! Makes one site of all texts and programs, with mdBook.
//!
//!     cargo book --open
//!
//! mdBook wants all that it reads in one directory, and takes everything there for a part of the book. So the texts that
//! `SUMMARY.md` names, the programs of the chapters and all other files that the texts link to are written to
//! `target/book/src` first, at their own places, as pages: see `texts` and `files`. Then mdBook runs, and in the end all
//! links of its pages are checked. With `--check` a browser also looks at every page.
#![forbid(unsafe_code)]

mod browser;
mod console;
mod files;
mod pages;
mod texts;

use std::{fs, io::ErrorKind, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use clap::Parser;

/// Makes one site of all texts and programs: target/book/html/index.html.
#[derive(Parser)]
#[command(bin_name = "cargo book", after_help = "Example: cargo book --open")]
struct Args {
    /// Show it in a browser
    #[arg(long)]
    open: bool,

    /// Look at every page with Chromium, in a wide and in a narrow window: is all of it readable, and what is copied?
    #[arg(long)]
    check: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let workspace = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let book = workspace.join("target/book");
    if book.exists() {
        fs::remove_dir_all(&book).with_context(|| format!("cannot remove {}", book.display()))?;
    }
    let texts = texts::read(workspace)?;
    texts::write(&texts, workspace, &book.join("src"))?;
    for file in ["book.toml", "book.css", "narrow.js"] {
        fs::copy(workspace.join("tools/book").join(file), book.join(file))?;
    }

    let mut mdbook = Command::new("mdbook");
    mdbook.arg("build").arg(&book).args(args.open.then_some("--open"));
    let output = match mdbook.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("mdbook is not installed: `cargo install mdbook --locked` does that, in some minutes")
        }
        output => output.context("cannot run mdbook")?,
    };
    let said = String::from_utf8_lossy(&output.stderr);
    eprint!("{said}");
    if !output.status.success() || said.contains("WARN") || said.contains("ERROR") {
        bail!("mdbook is not content with the texts");
    }
    let html = book.join("html");
    let pages = pages::check(&html)?;
    println!("{} pages: {}", pages.len(), html.join("index.html").display());
    if args.check {
        browser::check(&book, &pages, &texts)?;
    }
    Ok(())
}
