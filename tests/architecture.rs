//! The layering of docs/architecture.md, checked in the sources themselves: who may use whom, who
//! does IO, who names a foreign crate, where `unsafe` stands.
//!
//! The checks read the text with comments and string literals blanked out. They look for what
//! people write in earnest, not for what one could hide from them.

use std::collections::BTreeMap;
use std::path::Path;

/// Every module of `src/` in reading order, with the modules it may use. Arrows go down only: a
/// module may use none that comes after it.
const MAY_USE: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("system", &["units"]),
    ("structure_file", &["units", "system"]),
    ("neighbors", &["units", "system"]),
    ("dynamics", &["units", "system"]),
    ("so3", &[]),
    ("nn", &["so3"]),
    ("backend", &["system", "neighbors", "so3", "nn"]),
    (
        "potential",
        &["units", "system", "neighbors", "so3", "nn", "backend"],
    ),
    (
        "selfcheck",
        &["system", "neighbors", "so3", "nn", "backend", "potential"],
    ),
    (
        "predict",
        &[
            "units",
            "system",
            "structure_file",
            "neighbors",
            "potential",
        ],
    ),
    ("metrics", &[]),
    ("placement", &[]),
    ("connection", &[]),
    ("comm", &["units", "system", "dynamics"]),
    ("session", &["units", "system", "dynamics", "comm"]),
    (
        "trajectory",
        &["units", "system", "structure_file", "dynamics"],
    ),
    ("scheduler", &["units", "system", "dynamics", "comm"]),
    (
        "worker",
        &[
            "units",
            "system",
            "neighbors",
            "dynamics",
            "potential",
            "comm",
        ],
    ),
    (
        "engine",
        &[
            "units",
            "system",
            "dynamics",
            "comm",
            "session",
            "trajectory",
            "scheduler",
            "metrics",
        ],
    ),
    (
        "server",
        &[
            "units", "system", "dynamics", "comm", "session", "engine", "metrics",
        ],
    ),
    (
        "recording",
        &[
            "units",
            "system",
            "dynamics",
            "comm",
            "session",
            "trajectory",
            "engine",
        ],
    ),
    ("resume", &["comm", "engine", "trajectory"]),
    ("cli", &[]),
    (
        "config",
        &[
            "units", "system", "dynamics", "backend", "session", "worker", "cli", "server",
        ],
    ),
    ("connect", &["connection", "server", "cli", "config"]),
    ("supervise", &["cli"]),
    (
        "compute",
        &["nn", "backend", "potential", "selfcheck", "cli", "config"],
    ),
    // Puts everything together; only main.rs stands above it.
    (
        "serve",
        &[
            "units",
            "system",
            "dynamics",
            "potential",
            "comm",
            "session",
            "trajectory",
            "scheduler",
            "worker",
            "engine",
            "server",
            "recording",
            "resume",
            "cli",
            "config",
            "metrics",
            "placement",
            "connection",
            "compute",
        ],
    ),
];

/// Modules that only compute: no files, sockets, clocks, threads of their own, environment.
const PURE: &[&str] = &[
    "units",
    "system",
    "neighbors",
    "dynamics",
    "so3",
    "nn",
    "session",
];

/// What IO looks like.
const IO: &[&str] = &[
    "std::fs",
    "std::io",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "Instant::now",
    "SystemTime",
    "tokio",
    "println!",
    "eprintln!",
];

/// Foreign crates and generated code that only one place may name.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("mpi::", &["comm/mpi.rs"]),
    ("cudarc", &["backend/cuda/"]),
    ("hdf5::", &["trajectory/"]),
    ("prost", &["server/convert.rs"]),
    ("OUT_DIR", &["server/convert.rs", "backend/cuda/images.rs"]),
    ("proto::", &["server/convert.rs"]),
    ("axum", &["server/", "main.rs"]),
    ("async ", &["server/", "main.rs"]),
    (".await", &["server/", "main.rs"]),
    ("clap::", &["cli.rs", "main.rs", "config.rs", "config/"]),
    ("std::env", &["config.rs", "main.rs"]),
    (
        "unsafe",
        &[
            "backend/cuda/driver.rs",
            "backend/cuda/driver/",
            // The kernels that run on the host.
            "backend/cuda/host.rs",
            "backend/cpu/",
            "comm/",
            // The memory map of a checkpoint.
            "potential/uma/checkpoint/archive.rs",
        ],
    ),
];

/// Lines that a file may have at most. Six hundred is where one should think of two files.
const MAX_LINES: usize = 1000;

/// One source file: path relative to `src/`, text.
struct Source {
    path: String,
    text: String,
}

fn sources() -> Vec<Source> {
    fn visit(directory: &Path, root: &Path, found: &mut Vec<Source>) {
        let mut entries: Vec<_> = std::fs::read_dir(directory)
            .expect("src is readable")
            .map(|entry| entry.expect("entry").path())
            .collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                visit(&path, root, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let relative = path.strip_prefix(root).expect("below src");
                found.push(Source {
                    path: relative.to_string_lossy().replace('\\', "/"),
                    text: std::fs::read_to_string(&path).expect("source is text"),
                });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    visit(&root, &root, &mut found);
    found
}

/// The text with comments, strings and character literals replaced by spaces.
fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut i = 0;
    let blank = |out: &mut [u8], range: std::ops::Range<usize>| {
        for byte in &mut out[range] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    };
    while i < bytes.len() {
        let rest = &bytes[i..];
        let end = if rest.starts_with(b"//") {
            i + rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            text[i..].find("*/").map_or(bytes.len(), |n| i + n + 2)
        } else if rest[0] == b'r' && (rest[1..].starts_with(b"\"") || rest[1..].starts_with(b"#")) {
            let hashes = rest[1..].iter().take_while(|&&b| b == b'#').count();
            if rest.get(1 + hashes) == Some(&b'"') {
                let close = format!("\"{}", "#".repeat(hashes));
                let from = i + 2 + hashes;
                text[from..]
                    .find(&close)
                    .map_or(bytes.len(), |n| from + n + close.len())
            } else {
                i
            }
        } else if rest[0] == b'"' {
            let mut j = i + 1;
            while j < bytes.len() && bytes[j] != b'"' {
                j += if bytes[j] == b'\\' { 2 } else { 1 };
            }
            (j + 1).min(bytes.len())
        } else if rest.starts_with(b"'\\") {
            i + 2
                + rest[2..]
                    .iter()
                    .position(|&b| b == b'\'')
                    .map_or(0, |n| n + 1)
        } else if rest[0] == b'\'' && rest.get(2) == Some(&b'\'') {
            i + 3
        } else {
            i
        };
        if end > i {
            blank(&mut out, i..end);
            i = end;
        } else {
            i += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The modules of the crate that a piece of code names, by `crate::` or by climbing to the root
/// with `super::`.
fn used_modules(path: &str, code: &str) -> Vec<String> {
    let mut used = Vec::new();
    let mut take = |after: &str| {
        let after = after.trim_start();
        if let Some(group) = after.strip_prefix('{') {
            let mut depth = 0;
            let mut start = true;
            for (at, c) in group.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    c if start && !c.is_whitespace() => {
                        used.push(identifier(&group[at..]));
                        start = false;
                    }
                    _ => {}
                }
            }
        } else {
            used.push(identifier(after));
        }
    };
    for (at, name) in code.match_indices("crate::") {
        // `$crate::` and `some_crate::` are other things.
        let before = code[..at].chars().next_back();
        if !before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            take(&code[at + name.len()..]);
        }
    }
    let depth = path.trim_end_matches("/mod.rs").matches('/').count() + 1;
    let to_root = "super::".repeat(depth);
    for (at, _) in code.match_indices(&to_root) {
        let name = identifier(&code[at + to_root.len()..]);
        if MAY_USE.iter().any(|(module, _)| *module == name) {
            take(&name);
        }
    }
    used
}

fn identifier(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

fn module_of(path: &str) -> &str {
    path.split('/')
        .next()
        .unwrap_or(path)
        .trim_end_matches(".rs")
}

/// Everything that breaks a rule, in words.
fn violations(sources: &[Source]) -> Vec<String> {
    let order: BTreeMap<&str, usize> = MAY_USE
        .iter()
        .enumerate()
        .map(|(at, (module, _))| (*module, at))
        .collect();
    let mut found = Vec::new();
    for Source { path, text } in sources {
        let code = code(text);
        let module = module_of(path);
        let is_root = matches!(path.as_str(), "lib.rs" | "main.rs");
        match MAY_USE.iter().find(|(name, _)| *name == module) {
            Some((_, allowed)) => {
                for used in used_modules(path, &code) {
                    let is_module = order.contains_key(used.as_str());
                    if is_module && used != module && !allowed.contains(&used.as_str()) {
                        found.push(format!("{path}: {module} may not use {used}"));
                    }
                }
            }
            None if is_root => {}
            None => found.push(format!("{path}: {module} has no place in the layering")),
        }
        // Tests of a module may read files and measure what they like.
        let tested = code.find("#[cfg(test)]").unwrap_or(code.len());
        let productive = &code[..tested];
        if PURE.contains(&module) {
            for io in IO {
                if productive.contains(io) {
                    found.push(format!("{path}: {module} does no IO, but names {io}"));
                }
            }
        }
        for (name, places) in ONLY_IN {
            let here = places
                .iter()
                .any(|place| path == place || (place.ends_with('/') && path.starts_with(place)));
            // OUT_DIR stands in a string.
            let text = if *name == "OUT_DIR" { text } else { productive };
            if !here && names(text, name) {
                found.push(format!("{path}: {name} belongs to {}", places.join(", ")));
            }
        }
        if code.contains("unsafe") {
            for (number, line) in undocumented_unsafe(text, &code) {
                found.push(format!("{path}:{number}: no SAFETY comment: {line}"));
            }
        }
        let lines = text.lines().count();
        if lines > MAX_LINES {
            found.push(format!("{path}: {lines} lines, more than {MAX_LINES}"));
        }
    }
    for (at, (module, allowed)) in MAY_USE.iter().enumerate() {
        for used in *allowed {
            match order.get(used) {
                Some(&below) if below < at => {}
                _ => found.push(format!("the table itself: {module} uses {used} upwards")),
            }
        }
    }
    found
}

/// Whether `name` occurs and is not the end of a longer word.
fn names(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        name.starts_with('.') || !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

/// `unsafe` blocks and impls without a `SAFETY:` comment in the lines above.
fn undocumented_unsafe<'a>(text: &'a str, code: &str) -> Vec<(usize, &'a str)> {
    let lines: Vec<&str> = text.lines().collect();
    code.lines()
        .enumerate()
        .filter(|(_, line)| {
            line.contains("unsafe {") || line.contains("unsafe impl") || line.contains("unsafe{")
        })
        .filter(|(at, _)| {
            let above = &lines[at.saturating_sub(8)..=*at];
            !above.iter().any(|line| line.contains("SAFETY:"))
        })
        .map(|(at, _)| (at + 1, lines[at].trim()))
        .collect()
}

#[test]
fn the_sources_keep_the_layering() {
    let sources = sources();
    assert!(sources.len() > 10, "the sources were not found");
    let found = violations(&sources);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_broken_rule_is_noticed() {
    let broken = [
        (
            "so3/mod.rs",
            "use crate::system::System;",
            "so3 may not use system",
        ),
        (
            "dynamics/fire.rs",
            "use crate::{system::{System, Cell}, server::Settings};",
            "dynamics may not use server",
        ),
        (
            "comm/mpi.rs",
            "fn f() { super::super::engine::run() }",
            "comm may not use engine",
        ),
        (
            "units.rs",
            "type T = super::session::Session;",
            "units may not use session",
        ),
        ("gadgets.rs", "", "gadgets has no place"),
        (
            "session/mod.rs",
            "let t = Instant::now();",
            "session does no IO",
        ),
        ("nn/op.rs", "use std::fs::File;", "nn does no IO"),
        (
            "engine.rs",
            "async fn run() {}",
            "async  belongs to server/",
        ),
        (
            "worker.rs",
            "let x = f().await;",
            ".await belongs to server/",
        ),
        (
            "worker.rs",
            "use mpi::traits::*;",
            "mpi:: belongs to comm/mpi.rs",
        ),
        (
            "engine.rs",
            "let f = hdf5::File::open(p);",
            "hdf5:: belongs to trajectory/",
        ),
        (
            "server/mod.rs",
            "use super::convert::proto::Frame;",
            "proto:: belongs to",
        ),
        (
            "server/mod.rs",
            "include!(concat!(env!(\"OUT_DIR\"), \"/x.rs\"));",
            "OUT_DIR belongs",
        ),
        ("session/mod.rs", "unsafe { f() }", "unsafe belongs to"),
        (
            "comm/wire.rs",
            "fn f() {\n    unsafe { g() }\n}",
            "comm/wire.rs:2: no SAFETY",
        ),
        (
            "engine.rs",
            "let home = std::env::var(x);",
            "std::env belongs to config.rs",
        ),
    ];
    for (path, text, wanted) in broken {
        let source = Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let found = violations(&[source]);
        assert!(
            found.iter().any(|v| v.contains(wanted)),
            "{path} with {text:?} gave {found:?}, not {wanted:?}"
        );
    }
    let long = Source {
        path: "engine.rs".to_owned(),
        text: "\n".repeat(MAX_LINES + 1),
    };
    assert_eq!(violations(&[long]).len(), 1);
}

#[test]
fn what_is_allowed_is_left_alone() {
    let fine = [
        (
            "units.rs",
            "/// See crate::server.\nconst S: &str = \"use crate::engine;\";",
        ),
        (
            "so3/mod.rs",
            "const R: &str = r#\"std::fs \" crate::server\"#; // unsafe { }",
        ),
        (
            "dynamics/mod.rs",
            "use crate::system::System;\nuse crate::dynamics::Method;",
        ),
        (
            "comm/mpi.rs",
            "use mpi::traits::*;\n// SAFETY: alone\nlet x = unsafe { f() };",
        ),
        (
            "session/mod.rs",
            "fn f<'a>(c: char) -> bool { c == '\"' }\n#[cfg(test)]\nmod tests { use std::fs; }",
        ),
        ("server/socket.rs", "async fn f() { g().await }"),
        ("trajectory/layout.rs", "use hdf5::File;"),
        ("engine.rs", "use rsmpi_like::x; let empi = not_mpi::f();"),
        ("main.rs", "use crate::anything::Else;"),
    ];
    for (path, text) in fine {
        let source = Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let found = violations(&[source]);
        assert!(found.is_empty(), "{path}: {found:?}");
    }
}
