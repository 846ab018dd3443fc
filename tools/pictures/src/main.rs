//! Redraws all pictures in `docs/images/`.
//!
//!     cargo pictures

use std::{fs, io};

fn main() -> io::Result<()> {
    for picture in pictures::all() {
        let file = pictures::directory().join(picture.name).with_extension("svg");
        fs::write(&file, picture.svg)?;
        println!("{}", file.display());
    }
    Ok(())
}
