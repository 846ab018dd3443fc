//! Draws the pictures of the chapters, as SVG.
//!
//! What a picture shows stands in `chapters`, in the words of AMQP; `topology` and `sequence` lay it out, and
//! `svg` gives all of them the same look, in light and in dark mode. `cargo pictures` writes the files; a test compares
//! them with what would be written.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod chapters;
mod sequence;
mod svg;
mod topology;

use std::path::PathBuf;

pub use chapters::all;

/// A picture, drawn.
pub struct Picture {
    /// The name of its file, without `.svg`.
    pub name: &'static str,
    /// What the file holds.
    pub svg: String,
}

/// Where the pictures are kept.
pub fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/images"))
}
