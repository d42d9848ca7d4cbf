#![allow(clippy::unwrap_used)]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;

use super::Shell;
use super::facts::PrefixFacts;
use super::plan::{Nesting, Settings, Variables, activate, conda_below, deactivate};
use super::render::{quote, render};

fn variables(pairs: &[(&str, &str)]) -> Variables {
    pairs
        .iter()
        .map(|(name, value)| (OsString::from(name), OsString::from(value)))
        .collect()
}

fn plain(name: &str) -> PrefixFacts {
    PrefixFacts {
        name: name.to_owned(),
        prefix: PathBuf::from("/envs").join(name),
        path: vec![PathBuf::from("/envs").join(name).join("bin")],
        revision: Some(3),
        ..PrefixFacts::default()
    }
}

fn conda(name: &str) -> PrefixFacts {
    let prefix = PathBuf::from("/envs").join(name);
    PrefixFacts {
        is_conda: true,
        activate_scripts: vec![prefix.join("a.sh"), prefix.join("b.sh")],
        deactivate_scripts: vec![prefix.join("b.sh"), prefix.join("a.sh")],
        variables: vec![
            (OsString::from("MODE"), Some(OsString::from("new"))),
            (OsString::from("GONE"), None),
        ],
        ..plain(name)
    }
}

fn value<'a>(variables: &'a Variables, name: &str) -> Option<&'a str> {
    variables
        .get(OsStr::new(name))
        .map(|value| value.to_str().unwrap())
}

/// Applies an activation and returns the variables after it.
fn after(facts: &PrefixFacts, before: &Variables, settings: &Settings) -> Variables {
    let mut variables = before.clone();
    activate(facts, before, settings).apply(&mut variables);
    variables
}

/// Applies a deactivation and returns the variables after it.
fn left(before: &Variables) -> Variables {
    let mut variables = before.clone();
    deactivate(before).apply(&mut variables);
    variables
}

fn some_shell() -> Variables {
    variables(&[
        ("PATH", "/usr/bin:/bin"),
        ("PS1", "$ "),
        ("HOME", "/h"),
        ("GONE", ""),
    ])
}

#[test]
fn activation_puts_the_environment_first_and_deactivation_restores_everything() {
    let before = some_shell();
    let active = after(&plain("one"), &before, &Settings::with_default_prompt());
    assert_eq!(value(&active, "PATH"), Some("/envs/one/bin:/usr/bin:/bin"));
    assert_eq!(value(&active, "ENVFS_ENV"), Some("one"));
    assert_eq!(value(&active, "ENVFS_PREFIX"), Some("/envs/one"));
    assert_eq!(value(&active, "ENVFS_SHLVL"), Some("1"));
    assert_eq!(value(&active, "ENVFS_REV"), Some("3"));
    assert_eq!(value(&active, "PS1"), Some("(one) $ "));
    assert_eq!(left(&active), before);
}

#[test]
fn empty_unset_and_unusual_paths_are_restored_exactly() {
    for path in [None, Some(""), Some(":/bin"), Some("/bin::/usr/bin:")] {
        let mut before = some_shell();
        before.remove(OsStr::new("PATH"));
        if let Some(path) = path {
            before.insert("PATH".into(), path.into());
        }
        let active = after(&conda("one"), &before, &Settings::with_default_prompt());
        assert_eq!(value(&active, "GONE"), None);
        assert_eq!(value(&active, "MODE"), Some("new"));
        assert_eq!(left(&active), before, "{path:?}");
    }
}

#[test]
fn activation_is_idempotent() {
    let before = some_shell();
    let facts = conda("one");
    let once = after(&facts, &before, &Settings::with_default_prompt());
    let twice = after(&facts, &once, &Settings::with_default_prompt());
    assert_eq!(once, twice);
    assert_eq!(left(&twice), before);
}

#[test]
fn reactivation_repairs_a_path_that_was_reset() {
    let before = some_shell();
    let facts = plain("one");
    let mut active = after(&facts, &before, &Settings::with_default_prompt());
    active.insert("PATH".into(), "/etc/bin:/envs/one/bin:/usr/bin".into());
    active.insert("PS1".into(), "# ".into());
    let repaired = after(&facts, &active, &Settings::with_default_prompt());
    assert_eq!(
        value(&repaired, "PATH"),
        Some("/envs/one/bin:/etc/bin:/usr/bin")
    );
    assert_eq!(value(&repaired, "PS1"), Some("(one) # "));
    let left = left(&repaired);
    assert_eq!(value(&left, "PATH"), Some("/etc/bin:/usr/bin"));
    assert_eq!(value(&left, "PS1"), Some("# "));
}

#[test]
fn changes_by_the_user_are_kept() {
    let mut active = after(
        &conda("one"),
        &some_shell(),
        &Settings::with_default_prompt(),
    );
    active.insert("MODE".into(), "mine".into());
    active.insert(
        "PATH".into(),
        "/home/bin:/envs/one/bin:/usr/bin:/bin".into(),
    );
    let left = left(&active);
    assert_eq!(value(&left, "MODE"), Some("mine"));
    assert_eq!(value(&left, "PATH"), Some("/home/bin:/usr/bin:/bin"));
    assert_eq!(value(&left, "ENVFS_ENV"), None);
    assert!(
        !left
            .keys()
            .any(|name| name.as_bytes().starts_with(b"__ENVFS"))
    );
}

#[test]
fn switching_replaces_the_active_environment_completely() {
    let before = some_shell();
    let mut first = after(&conda("one"), &before, &Settings::with_default_prompt());
    first.insert("PATH".into(), "/mine:/envs/one/bin:/usr/bin:/bin".into());
    let script = activate(&plain("two"), &first, &Settings::with_default_prompt());
    assert_eq!(
        script.before,
        [
            PathBuf::from("/envs/one/b.sh"),
            PathBuf::from("/envs/one/a.sh")
        ]
    );
    let mut second = first.clone();
    script.apply(&mut second);
    assert_eq!(
        value(&second, "PATH"),
        Some("/mine:/envs/two/bin:/usr/bin:/bin")
    );
    assert_eq!(value(&second, "ENVFS_SHLVL"), Some("1"));
    assert_eq!(value(&second, "CONDA_PREFIX"), None);
    assert_eq!(value(&second, "PS1"), Some("(two) $ "));
    let mut expected = before;
    expected.insert("PATH".into(), "/mine:/usr/bin:/bin".into());
    assert_eq!(left(&second), expected);
}

#[test]
fn stacking_keeps_the_environment_below_and_returns_to_it() {
    let before = some_shell();
    let stack = Settings {
        nesting: Nesting::Stack,
        ..Settings::with_default_prompt()
    };
    let one = after(&conda("one"), &before, &stack);
    let two = after(&conda("two"), &one, &stack);
    assert_eq!(
        value(&two, "PATH"),
        Some("/envs/two/bin:/envs/one/bin:/usr/bin:/bin")
    );
    assert_eq!(value(&two, "ENVFS_SHLVL"), Some("2"));
    assert_eq!(value(&two, "CONDA_SHLVL"), Some("2"));
    assert_eq!(value(&two, "CONDA_PREFIX_1"), Some("/envs/one"));
    assert_eq!(value(&two, "CONDA_STACKED_2"), Some("true"));
    assert_eq!(left(&two), one);
    assert_eq!(left(&one), before);
}

#[test]
fn a_conda_environment_is_replaced_and_returns() {
    let base = PrefixFacts {
        prefix: PathBuf::from("/base"),
        activate_scripts: vec![PathBuf::from("/base/in.sh")],
        deactivate_scripts: vec![PathBuf::from("/base/out.sh")],
        ..PrefixFacts::default()
    };
    let mut before = variables(&[
        ("PATH", "/base/bin:/base/condabin:/bin"),
        ("PS1", "(base) $ "),
        ("CONDA_PREFIX", "/base"),
        ("CONDA_SHLVL", "1"),
        ("CONDA_DEFAULT_ENV", "base"),
        ("CONDA_PROMPT_MODIFIER", "(base) "),
    ]);
    let settings = Settings {
        conda_below: Some(base),
        ..Settings::with_default_prompt()
    };
    assert_eq!(conda_below(&before), Some(PathBuf::from("/base")));
    let script = activate(&conda("one"), &before, &settings);
    assert_eq!(script.before, [PathBuf::from("/base/out.sh")]);
    let mut active = before.clone();
    script.apply(&mut active);
    assert_eq!(
        value(&active, "PATH"),
        Some("/envs/one/bin:/base/condabin:/bin")
    );
    assert_eq!(value(&active, "CONDA_PREFIX_1"), Some("/base"));
    assert_eq!(value(&active, "CONDA_SHLVL"), Some("2"));
    assert_eq!(value(&active, "PS1"), Some("(one) $ "));
    assert_eq!(conda_below(&active), Some(PathBuf::from("/base")));

    // Switching to another environment does not source base's scripts in between.
    let script = activate(&conda("two"), &active, &settings);
    assert_eq!(script.before.len(), 2);
    assert_eq!(script.after, conda("two").activate_scripts);
    let mut second = active.clone();
    script.apply(&mut second);
    assert_eq!(
        value(&second, "PATH"),
        Some("/envs/two/bin:/base/condabin:/bin")
    );

    let script = deactivate(&second);
    assert_eq!(script.after, [PathBuf::from("/base/in.sh")]);
    let mut left = second.clone();
    script.apply(&mut left);
    before.remove(OsStr::new("nothing"));
    assert_eq!(left, before);

    // The values that `conda deactivate` set in between are kept.
    let mut by_conda = active.clone();
    by_conda.insert("CONDA_PREFIX".into(), "/base".into());
    by_conda.insert("CONDA_SHLVL".into(), "1".into());
    by_conda.insert("PATH".into(), "/base/bin:/base/condabin:/bin".into());
    let mut left = by_conda.clone();
    deactivate(&by_conda).apply(&mut left);
    assert_eq!(value(&left, "CONDA_SHLVL"), Some("1"));
    assert_eq!(value(&left, "PATH"), Some("/base/bin:/base/condabin:/bin"));
    assert_eq!(value(&left, "ENVFS_PREFIX"), None);
}

#[test]
fn a_venv_hides_pythonhome_while_it_is_active() {
    let facts = PrefixFacts {
        venv_prompt: Some("v".into()),
        ..plain("one")
    };
    let mut before = some_shell();
    before.insert("PYTHONHOME".into(), "/py".into());
    let active = after(&facts, &before, &Settings::with_default_prompt());
    assert_eq!(value(&active, "VIRTUAL_ENV"), Some("/envs/one"));
    assert_eq!(value(&active, "VIRTUAL_ENV_PROMPT"), Some("v"));
    assert_eq!(value(&active, "PYTHONHOME"), None);
    assert_eq!(left(&active), before);
}

#[test]
fn empty_and_computed_prompts_are_left_alone() {
    for prompt in ["", "$(POWERLINE_COMMAND=x powerline)"] {
        let mut before = some_shell();
        before.insert("PS1".into(), prompt.into());
        let script = activate(&plain("one"), &before, &Settings::with_default_prompt());
        assert_eq!(script.prompt, None);
    }
    let off = Settings {
        prompt: None,
        ..Settings::with_default_prompt()
    };
    assert_eq!(activate(&plain("one"), &some_shell(), &off).prompt, None);
}

#[test]
fn invalid_state_is_ignored() {
    let mut broken = some_shell();
    broken.insert("ENVFS_SHLVL".into(), "1".into());
    broken.insert("ENVFS_ENV".into(), "x".into());
    broken.insert("__ENVFS_STATE_1".into(), "{\"variables\":[]".into());
    let left = left(&broken);
    assert_eq!(left, some_shell());
    broken.insert("ENVFS_SHLVL".into(), "99999999999".into());
    assert!(
        deactivate(&broken)
            .unset
            .contains(&OsString::from("ENVFS_ENV"))
    );
    assert!(deactivate(&some_shell()).is_empty());
    assert!(render(&deactivate(&some_shell()), Shell::Bash).is_empty());
}

#[test]
fn facts_are_read_from_the_files_of_a_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path();
    let write = |path: &str, text: &str| {
        std::fs::create_dir_all(prefix.join(path).parent().unwrap()).unwrap();
        std::fs::write(prefix.join(path), text).unwrap();
    };
    write("bin/python", "");
    write("node_modules/.bin/tsc", "");
    write("pyvenv.cfg", "home = /usr/bin\nprompt = 'my env'\n");
    write(
        "conda-meta/state",
        r#"{"env_vars":{"B":"2","PATH":"/evil","C":"***unset***"}}"#,
    );
    write(
        "etc/conda/env_vars.d/x.json",
        r#"{"A":"1","B":"1","no good":"x"}"#,
    );
    write("etc/conda/activate.d/20.sh", "");
    write("etc/conda/activate.d/10.sh", "");
    write("etc/conda/activate.d/10.fish", "");
    write("etc/conda/deactivate.d/10.sh", "");
    write("etc/conda/deactivate.d/20.sh", "");
    let facts = PrefixFacts::read("n", prefix, None);
    assert!(facts.is_conda);
    assert_eq!(facts.venv_prompt.as_deref(), Some("my env"));
    assert_eq!(
        facts.path,
        [prefix.join("bin"), prefix.join("node_modules/.bin")]
    );
    let set = |name: &str, value: Option<&str>| (OsString::from(name), value.map(OsString::from));
    assert_eq!(
        facts.variables,
        [set("A", Some("1")), set("B", Some("2")), set("C", None)]
    );
    let base = prefix.join("etc/conda");
    assert_eq!(
        facts.activate_scripts,
        [
            base.join("activate.d/10.fish"),
            base.join("activate.d/10.sh"),
            base.join("activate.d/20.sh")
        ]
    );
    assert_eq!(
        facts.deactivate_scripts,
        [
            base.join("deactivate.d/20.sh"),
            base.join("deactivate.d/10.sh")
        ]
    );
    for prompt in ["a\x1b[2J", "$(id)", "`id`", "%n", "\\u"] {
        write("pyvenv.cfg", &format!("prompt = '{prompt}'\n"));
        let facts = PrefixFacts::read("n", prefix, None);
        assert_eq!(facts.venv_prompt.as_deref(), Some("n"), "{prompt:?}");
    }
    let empty = PrefixFacts::read("n", Path::new("/nowhere"), None);
    assert_eq!(empty.path, [PathBuf::from("/nowhere/bin")]);
}

fn shells() -> Vec<&'static str> {
    let found: Vec<_> = ["bash", "zsh", "dash"]
        .into_iter()
        .filter(|shell| crate::sys::process::find_program(shell).is_some())
        .collect();
    assert!(found.contains(&"bash"), "this test requires bash");
    found
}

/// Generates values: any bytes but zero, mostly those that are special in shells.
fn values() -> impl Strategy<Value = OsString> {
    let byte = prop_oneof![
        3 => prop::sample::select(b"'\"\\$`!*?~#&;|<>(){}[]= \t\n\r%^".to_vec()),
        1 => 1u8..=255,
    ];
    prop::collection::vec(byte, 0..40).prop_map(OsString::from_vec)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn real_shells_read_quoted_values_unchanged(values in prop::collection::vec(values(), 1..12)) {
        for shell in shells() {
            let mut script = Vec::new();
            for value in &values {
                script.extend_from_slice(b"export V=");
                script.extend_from_slice(&quote(value));
                script.extend_from_slice(b"\nenv -0 | grep -z '^V='\n");
            }
            // Through a function and eval, as in the hook, but read from a file.
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("script");
            std::fs::write(&file, &script).unwrap();
            let output = Command::new(shell)
                .args(["-euc", "f() { eval \"$(cat \"$1\")\"; }; f \"$1\"", "x"])
                .arg(&file)
                .env_clear()
                .env("PATH", "/usr/bin:/bin")
                .output()
                .unwrap();
            let mut expected = Vec::new();
            for value in &values {
                expected.extend_from_slice(b"V=");
                expected.extend_from_slice(value.as_bytes());
                expected.push(0);
            }
            prop_assert_eq!(&output.stdout, &expected, "{} {:?}", shell, output);
        }
    }
}
