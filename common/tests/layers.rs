//! The layers of `common/src`: a file uses only modules of its own layer or of those below, and there are no circles.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

/// From the bottom up. Modules of one layer may use each other, as long as there is no circle.
const LAYERS: [&[&str]; 10] = [
    &["escape", "remote_error", "broker_words", "error", "json", "deadline"],
    &["options"],
    &["encoding"],
    &["connection"],
    &["session"],
    &["consumer"],
    &["channel"],
    &["worker"],
    &["rpc"],
    &["manager", "cli"],
];

/// The source of each module, by its path, such as `session::confirms`.
type Sources = BTreeMap<String, String>;

/// The modules that each module uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

#[test]
fn each_file_of_common_uses_only_what_stands_below_it() -> Result<()> {
    let mut sources = Sources::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut sources)?;
    let uses = uses(&sources)?;
    ensure!(uses.len() > 40, "only {} modules were found", uses.len());
    ensure!(uses["channel::publish"].contains("session::confirms"), "{:?}", uses["channel::publish"]);
    check(&uses)
}

#[test]
fn an_arrow_upwards_and_a_circle_are_noticed() -> Result<()> {
    let problem = |one: &str, other: &str| {
        let lib = "pub use channel::Channel;".to_owned();
        let sources = [
            ("lib", lib),
            ("session", one.to_owned()),
            ("session::setup", String::new()),
            ("channel", other.to_owned()),
        ];
        let sources = sources.map(|(name, source)| (name.to_owned(), source)).into();
        uses(&sources).and_then(|uses| check(&uses)).err().map(|error| error.to_string())
    };
    ensure!(problem("", "use crate::session::{Session, setup::SetupChannel};").is_none());
    let upwards = Some("`session` uses `channel`, which stands above it".to_owned());
    for one in [
        "use crate::{Error, channel::publish::check};",
        "use crate::Channel;",
        "fn f() { crate::channel::g() }",
        "macro_rules! m { () => { crate::channel::g() } }",
    ] {
        ensure!(problem(one, "") == upwards, "{one}: {:?}", problem(one, ""));
    }
    ensure!(problem("#[cfg(test)] mod tests { use crate::Channel; }", "").is_none());
    let sources = [("session::a", "use super::b;"), ("session::b", "use crate::session::a::f;")];
    let sources = sources.map(|(name, source)| (name.to_owned(), source.to_owned())).into();
    let circle = uses(&sources).and_then(|uses| check(&uses)).expect_err("a circle").to_string();
    ensure!(circle == "these use each other in a circle: session::a, session::b", "{circle}");
    Ok(())
}

fn read(folder: &Path, prefix: &str, sources: &mut Sources) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).context("a file without a name")?;
        let name = match (prefix, stem) {
            ("", stem) => stem.to_owned(),
            (prefix, "mod") => prefix.to_owned(),
            (prefix, stem) => format!("{prefix}::{stem}"),
        };
        if path.is_dir() {
            read(&path, &name, sources)?;
        } else if stem != "tests" {
            sources.insert(name, fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

fn uses(sources: &Sources) -> Result<Uses> {
    let exported: BTreeMap<String, String> = match sources.get("lib") {
        Some(lib) => paths_after("use", &tokens(lib)?)
            .into_iter()
            .filter_map(|path| {
                let (module, name) = path.rsplit_once("::")?;
                Some((name.to_owned(), module.to_owned()))
            })
            .collect(),
        None => BTreeMap::new(),
    };
    let mut uses = Uses::new();
    for (name, source) in sources.iter().filter(|(name, _)| *name != "lib") {
        let tokens = tokens(source).with_context(|| name.clone())?;
        let above = name.rsplit_once("::").map_or("", |(above, _)| above);
        let siblings = paths_after("super", &tokens).into_iter().map(|path| match above {
            "" => path,
            above => format!("{above}::{path}"),
        });
        let used = paths_after("crate", &tokens).into_iter().chain(siblings).filter_map(|path| {
            let path = match path.split_once("::").map_or(&*path, |(first, _)| first) {
                first if !LAYERS.concat().contains(&first) => exported.get(first)?.clone(),
                _ => path,
            };
            module_of(&path, sources)
        });
        uses.insert(name.clone(), used.filter(|used| used != name).collect());
    }
    Ok(uses)
}

/// The module that a path such as `session::confirms::ConfirmSender` leads into.
fn module_of(path: &str, sources: &Sources) -> Option<String> {
    let mut module = path;
    while !sources.contains_key(module) {
        module = match module.rsplit_once("::") {
            Some((module, _)) => module,
            // The sources in a test may leave a layer out.
            None => return LAYERS.concat().contains(&module).then(|| module.to_owned()),
        };
    }
    Some(module.to_owned())
}

fn tokens(source: &str) -> Result<Vec<TokenTree>> {
    let tokens: TokenStream = source.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(tokens.into_iter().collect())
}

/// The paths that follow this word (`use`, `crate::`, `super::`) in `use` lines, in code and in macros. Code that is
/// compiled only for tests is left out.
fn paths_after(word: &str, tokens: &[TokenTree]) -> Vec<String> {
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Group(group) if is_for_tests(group.stream()) => {
                let end = |token: &TokenTree| match token {
                    TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                    TokenTree::Punct(punct) => punct.as_char() == ';',
                    _ => false,
                };
                at += tokens[at..].iter().position(end).unwrap_or_default();
            }
            TokenTree::Group(group) => {
                paths.extend(paths_after(word, &group.stream().into_iter().collect::<Vec<_>>()));
            }
            TokenTree::Ident(ident) if ident == word => {
                let after = at + 1 + if word == "use" { 0 } else { separator(&tokens[at + 1..]) };
                paths.extend(tree("", &tokens[after..]));
            }
            _ => {}
        }
        at += 1;
    }
    paths
}

fn is_for_tests(attribute: TokenStream) -> bool {
    attribute.to_string().replace(' ', "") == "cfg(test)"
}

/// How many tokens a `::` at the beginning takes.
fn separator(tokens: &[TokenTree]) -> usize {
    match tokens {
        [TokenTree::Punct(one), TokenTree::Punct(two), ..]
            if one.as_char() == ':' && one.spacing() == Spacing::Joint && two.as_char() == ':' =>
        {
            2
        }
        _ => 0,
    }
}

/// All paths of `a::{b, c::d}`.
fn tree(prefix: &str, tokens: &[TokenTree]) -> Vec<String> {
    let joined = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}::{name}") };
    match tokens {
        [TokenTree::Group(group), ..] if group.delimiter() == Delimiter::Brace => {
            let inner: Vec<TokenTree> = group.stream().into_iter().collect();
            let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ',');
            inner.split(is_comma).filter(|one| !one.is_empty()).flat_map(|one| tree(prefix, one)).collect()
        }
        [TokenTree::Ident(ident), ..] => {
            let path = joined(&ident.to_string());
            match separator(&tokens[1..]) {
                0 => vec![path],
                length => tree(&path, &tokens[1 + length..]),
            }
        }
        _ if prefix.is_empty() => Vec::new(),
        _ => vec![prefix.to_owned()],
    }
}

fn check(uses: &Uses) -> Result<()> {
    let layer = |module: &str| {
        let first = module.split("::").next().unwrap_or(module);
        LAYERS.iter().position(|layer| layer.contains(&first)).with_context(|| format!("`{module}` is in no layer"))
    };
    for (name, used) in uses {
        for used in used {
            ensure!(layer(used)? <= layer(name)?, "`{name}` uses `{used}`, which stands above it");
        }
    }
    // Remove each module that uses none of the remaining ones, and repeat this until there is none to remove.
    let mut left = uses.clone();
    loop {
        let free: Vec<String> = left
            .iter()
            .filter(|(_, used)| used.iter().all(|used| !left.contains_key(used)))
            .map(|(name, _)| name.clone())
            .collect();
        if free.is_empty() {
            break;
        }
        left.retain(|name, _| !free.contains(name));
    }
    // Some of the rest only use a circle, but are not part of one: remove modules that no remaining one uses.
    loop {
        let used: BTreeSet<String> = left.values().flatten().cloned().collect();
        let before = left.len();
        left.retain(|name, _| used.contains(name));
        if left.len() == before {
            break;
        }
    }
    let circle: Vec<&str> = left.keys().map(String::as_str).collect();
    ensure!(circle.is_empty(), "these use each other in a circle: {}", circle.join(", "));
    Ok(())
}
