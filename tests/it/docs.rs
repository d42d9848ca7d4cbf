//! Checks that the documents match the source, and generates the command line reference.

use std::fmt::Write;
use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Renders a command and its subcommands.
fn render(command: &clap::Command, path: &str, out: &mut String) {
    let path = format!("{path} {}", command.get_name()).trim().to_owned();
    let level = "#".repeat(path.split(' ').count());
    writeln!(out, "{level} `{path}`\n").unwrap();
    if let Some(about) = command.get_long_about().or(command.get_about()) {
        writeln!(out, "{about}\n").unwrap();
    }
    let aliases: Vec<_> = command.get_visible_aliases().collect();
    if !aliases.is_empty() {
        writeln!(out, "Also: `{}`\n", aliases.join("`, `")).unwrap();
    }
    let mut shown = command.clone();
    writeln!(out, "```text\n{}\n```\n", shown.render_usage()).unwrap();
    // Global options are listed once, at the top.
    let is_top = path == "envfs";
    let arguments = command
        .get_arguments()
        .filter(|a| !a.is_hide_set())
        .filter(|a| is_top || !(a.is_global_set() || a.get_id() == "help"));
    let mut rows = String::new();
    for argument in arguments {
        let values = argument.get_value_names().unwrap_or_default();
        let mut value = values
            .iter()
            .map(|v| v.as_str())
            .collect::<Vec<_>>()
            .join(" ");
        if !argument.get_action().takes_values() {
            value.clear();
        }
        let name = match (argument.get_short(), argument.get_long()) {
            (Some(short), Some(long)) => format!("`-{short}`, `--{long} {value}`"),
            (None, Some(long)) => format!("`--{long} {value}`"),
            (Some(short), None) => format!("`-{short} {value}`"),
            (None, None) => format!("`{value}`"),
        };
        let name = name.replace(" `", "`").replace(",`", ", `");
        let mut help = argument
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let possible: Vec<String> = argument
            .get_possible_values()
            .iter()
            .filter(|value| argument.get_action().takes_values() && !value.is_hide_set())
            .filter(|_| !argument.is_hide_possible_values_set())
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        if !possible.is_empty() {
            write!(help, ": {}", possible.join(", ")).unwrap();
        }
        let cell = |text: &str| text.replace('|', "\\|");
        writeln!(rows, "| {} | {} |", cell(&name), cell(&help)).unwrap();
    }
    if !rows.is_empty() {
        writeln!(out, "| argument | meaning |\n|---|---|\n{rows}").unwrap();
    }
    if let Some(after) = command.get_after_help() {
        writeln!(out, "```text\n{after}\n```\n").unwrap();
    }
    for below in command.get_subcommands() {
        if !below.is_hide_set() && below.get_name() != "help" {
            render(below, &path, out);
        }
    }
}

#[test]
fn cli_reference_is_up_to_date() {
    let mut text = String::from(
        "<!-- Generated from the command line's definition: ENVFS_BLESS=1 tests/run docs -->\n\n",
    );
    let mut command = envfs::cli::command();
    command.build();
    render(&command, "", &mut text);
    let text = text
        .lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
        .trim_end()
        .to_owned()
        + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
    if std::env::var_os("ENVFS_BLESS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == text,
        "docs/cli.md is out of date; run ENVFS_BLESS=1 tests/run docs"
    );
}

#[test]
fn files_named_in_documents_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents = vec![root.join("README.md")];
    documents.extend(
        fs::read_dir(root.join("docs"))
            .unwrap()
            .map(|entry| entry.unwrap().path()),
    );
    let mut named = 0;
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        let quoted = text.split('`').skip(1).step_by(2);
        let linked = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for word in quoted.chain(linked) {
            let word = word.trim_end_matches('/');
            let from_root = [
                "src/",
                "tests/",
                "docs/",
                "shell/",
                "migrations/",
                "benches/",
                "fuzz/",
            ];
            if from_root.iter().any(|start| word.starts_with(start))
                && !word.contains([' ', '*', '<'])
                && !word.contains("NNNN")
            {
                named += 1;
                assert!(
                    root.join(word).exists(),
                    "{} names {word}, which does not exist",
                    document.display()
                );
            } else if word.ends_with(".md") && !word.contains([' ', '/', ':']) {
                named += 1;
                let beside = document.parent().unwrap().join(word);
                assert!(
                    beside.exists(),
                    "{} links to {word}, which does not exist",
                    document.display()
                );
            }
        }
    }
    assert!(
        named > 40,
        "only {named} names of files were found: is the search broken?"
    );
}

#[test]
fn every_fault_point_is_documented() {
    let text = read("docs/commit.md");
    for point in envfs::fault::POINTS {
        assert!(
            text.contains(&format!("`{point}`")),
            "docs/commit.md does not mention {point}"
        );
    }
}

#[test]
fn every_exit_status_is_documented() {
    let (source, text) = (read("src/cli/error.rs"), read("docs/troubleshooting.md"));
    let body = source
        .split("pub enum ExitCode {")
        .nth(1)
        .unwrap()
        .split("\n}")
        .next()
        .unwrap();
    let numbers: Vec<&str> = body
        .lines()
        .filter_map(|line| line.split(" = ").nth(1))
        .map(|number| number.trim_end_matches(','))
        .collect();
    assert!(numbers.len() > 10);
    for number in numbers {
        assert!(
            text.contains(&format!("\n| {number} |")),
            "docs/troubleshooting.md does not explain {number}"
        );
    }
}

/// Returns the rows of the first table after a heading.
fn table_rows(text: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, section) = text.split_once(heading).unwrap();
    section
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect()
        })
        .collect()
}

#[test]
fn configuration_keys_are_documented_with_their_defaults() {
    let defaults = serde_json::to_value(envfs::environment::Config::default()).unwrap();
    let mut keys = std::collections::BTreeMap::new();
    for (key, value) in defaults.as_object().unwrap() {
        match value.as_object() {
            Some(section) => {
                for (name, value) in section {
                    keys.insert(format!("`{key}.{name}`"), value.clone());
                }
            }
            None => {
                keys.insert(format!("`{key}`"), value.clone());
            }
        }
    }
    let rows = table_rows(&read("docs/configuration.md"), "\n## Keys\n");
    let documented: std::collections::BTreeMap<_, _> = rows
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    assert_eq!(
        documented.keys().collect::<Vec<_>>(),
        keys.keys().collect::<Vec<_>>()
    );
    for (key, value) in keys {
        let shown = &documented[&key];
        match value {
            serde_json::Value::Null => assert!(shown.starts_with("unset"), "{key}: {shown}"),
            value => assert_eq!(*shown, format!("`{value}`"), "{key}"),
        }
    }
}

#[test]
fn environment_variables_are_documented() {
    let text = read("docs/configuration.md");
    let mut variables = std::collections::BTreeSet::new();
    let mut pending = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        // Unit tests have other variables.
        let source = source.split("#[cfg(test)]").next().unwrap();
        for (at, _) in source.match_indices("\"ENVFS_") {
            let rest = &source[at + 1..];
            let end = rest.find(|c: char| !c.is_ascii_uppercase() && c != '_');
            variables.insert(rest[..end.unwrap()].to_owned());
        }
    }
    // Faults exist in debug builds only.
    variables.retain(|name| {
        name != "ENVFS_FAULT"
            && name != "ENVFS_PAUSE"
            && !name.starts_with("ENVFS_TEST_")
            && !name.starts_with("ENVFS_FUZZ_")
    });
    assert!(variables.len() >= 5, "{variables:?}");
    for name in variables {
        assert!(
            text.contains(&format!("`{name}`")),
            "docs/configuration.md does not mention {name}"
        );
    }
}
