//! The files in `docs/images/` are what the source draws.

use std::{collections::BTreeSet, fs};

#[test]
fn the_files_are_what_cargo_pictures_draws() {
    for picture in pictures::all() {
        let file = pictures::directory().join(picture.name).with_extension("svg");
        let kept = fs::read_to_string(&file).unwrap_or_default().replace("\r\n", "\n");
        assert!(kept == picture.svg, "docs/images/{}.svg is not up to date: run `cargo pictures`", picture.name);
    }
}

#[test]
fn there_is_no_picture_without_a_source() {
    let drawn: BTreeSet<String> = pictures::all().iter().map(|picture| format!("{}.svg", picture.name)).collect();
    let kept = fs::read_dir(pictures::directory()).unwrap();
    let kept: BTreeSet<String> = kept.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(kept, drawn);
}

#[test]
fn each_has_a_description_for_screen_readers_and_two_modes() {
    for picture in pictures::all() {
        for part in ["<title id=\"title\">", "<desc id=\"description\">", "prefers-color-scheme:dark"] {
            assert!(picture.svg.contains(part), "{}.svg has no {part}", picture.name);
        }
    }
}
