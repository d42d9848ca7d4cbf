//! envfs and conda in one shell, in every order.
//!
//! `ENVFS_TEST_CONDA` is the path of a real conda. Without it, `conda.py` imitates conda as
//! documented.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use crate::support::{TestEnv, has, run_for, skip_allowed};

/// Returns the command of a step: `E`, `F` and `P` are environments of envfs (`P` is not a conda
/// environment), `X` and `Y` are environments of conda.
fn command(env: &TestEnv, step: &str) -> String {
    let conda = |name: &str| env.work().join(name).display().to_string();
    match step {
        "E" | "F" | "P" => format!("envfs activate {step}"),
        "+E" | "+F" | "+P" => format!("envfs activate --stack {}", &step[1..]),
        "X" => format!("conda activate {}", conda("envs/X")),
        "Y" => format!("conda activate {}", conda("Y")),
        "+X" => format!("conda activate --stack {}", conda("envs/X")),
        "+Y" => format!("conda activate --stack {}", conda("Y")),
        "e" => "envfs deactivate".to_owned(),
        "c" => "conda deactivate".to_owned(),
        "r" => "envfs reactivate".to_owned(),
        other => panic!("no step {other}"),
    }
}

/// Makes a conda prefix whose scripts write to the variable SEEN.
fn make_conda(env: &TestEnv, path: &str, name: &str) {
    let prefix = env.work().join(path);
    for (path, text) in [
        ("bin/tool".to_owned(), "#!/bin/sh\n".to_owned()),
        ("conda-meta/history".to_owned(), String::new()),
        (
            "etc/conda/env_vars.d/v.json".to_owned(),
            format!(r#"{{"BOTH":"{name}","ONLY_{name}":"1 2","FRESH":"{name}"}}"#),
        ),
        (
            "etc/conda/activate.d/s.sh".to_owned(),
            format!("export SEEN=\"${{SEEN-}} {name}+\"\n"),
        ),
        (
            "etc/conda/deactivate.d/s.sh".to_owned(),
            format!("export SEEN=\"${{SEEN-}} {name}-\"\n"),
        ),
        (
            "etc/conda/activate.d/s.fish".to_owned(),
            format!("set -gx SEEN \"$SEEN {name}+\"\n"),
        ),
        (
            "etc/conda/deactivate.d/s.fish".to_owned(),
            format!("set -gx SEEN \"$SEEN {name}-\"\n"),
        ),
    ] {
        env.write(&prefix.join(path), text);
    }
}

const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/shell/conda.py");

fn stage() -> Option<(TestEnv, PathBuf)> {
    if !has("python3") {
        return None;
    }
    let env = TestEnv::new()?;
    for (path, name) in [("E", "E"), ("F", "F"), ("envs/X", "X"), ("Y", "Y")] {
        make_conda(&env, path, name);
    }
    // conda would refer to E by name, and to F by path.
    env.envfs(&["import", "-q", "E", "E"]).ok();
    let elsewhere = env.work().join("elsewhere");
    env.envfs(&[
        "import",
        "-q",
        "F",
        "F",
        "--prefix",
        elsewhere.to_str().unwrap(),
    ])
    .ok();
    env.write(&env.work().join("P/bin/tool"), "#!/bin/sh\n");
    env.envfs(&["import", "-q", "P", "P"]).ok();
    let conda = std::env::var_os("ENVFS_TEST_CONDA");
    let conda = conda.map_or_else(|| PathBuf::from(STAND_IN), PathBuf::from);
    Some((env, conda))
}

const SHELLS: [(&str, &[&str]); 3] = [
    ("bash", &["--noprofile", "--norc", "-c"]),
    ("zsh", &["-f", "-c"]),
    ("fish", &["--no-config", "-c"]),
];

type State = BTreeMap<String, String>;

/// Runs sequences of steps, each in a shell of its own, and returns the variables after each.
fn states(
    env: &TestEnv,
    conda: &std::path::Path,
    (shell, options): (&str, &[&str]),
    sequences: &[Vec<&str>],
) -> Vec<State> {
    let conda = conda.display();
    let start = match shell {
        "fish" => format!(
            "envfs hook fish | source; {conda} shell.fish hook | source
             set -gx BOTH before; set -gx COUNT 0"
        ),
        shell => format!(
            "eval \"$(envfs hook {shell})\"; eval \"$({conda} shell.posix hook)\"; PS1='[x] $ '
             export BOTH=before"
        ),
    };
    let dump = match shell {
        "fish" => "command env -0; printf '===\\0'",
        _ => "printf 'PS1=%s\\0' \"$PS1\"; command -p env -0; printf '===\\0'",
    };
    let mut scripts = Vec::new();
    for sequence in sequences {
        let steps: Vec<String> = sequence.iter().map(|step| command(env, step)).collect();
        let steps = steps.join("\n");
        match shell {
            // fish has no subshells.
            "fish" => scripts.push(format!("{start}\n{steps}\n{dump}")),
            _ => {
                if scripts.is_empty() {
                    scripts.push(start.clone());
                }
                write!(scripts[0], "\n(\n{steps}\n{dump}\n)").unwrap();
            }
        }
    }
    let mut all = String::new();
    for script in scripts {
        let mut command = env.command(shell);
        command.args(options).arg(script).env("COUNT", "0");
        command.env("CONDA_AUTO_ACTIVATE", "false");
        // A real conda takes a fifth of a second for each step.
        let done = run_for(command, 900).ok();
        let noise = done.err.lines().filter(|line| {
            !line.contains("overwriting") && !line.contains("no environment is active")
        });
        assert_eq!(noise.count(), 0, "{done}");
        all += &done.out;
    }
    let parsed: Vec<State> = all.split("===\0").map(variables).collect();
    assert_eq!(parsed.len(), sequences.len() + 1);
    parsed[..sequences.len()].to_vec()
}

fn variables(text: &str) -> State {
    let pairs = text.split('\0').filter_map(|entry| entry.split_once('='));
    pairs
        .filter(|(name, _)| {
            let conda = [
                "CONDA_EXE",
                "CONDA_PYTHON_EXE",
                "_CONDA_EXE",
                "_CONDA_ROOT",
                "_CE_M",
                "_CE_CONDA",
            ];
            !["_", "SHLVL", "PWD", "OLDPWD"].contains(name) && !conda.contains(name)
        })
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Removes variables that conda itself leaves behind: empty ones, and saved values.
fn without_remains_of_conda(mut state: State) -> State {
    state.retain(|name, value| {
        let is_saved = name.starts_with("__CONDA_SHLVL_");
        let is_conda = name.starts_with("CONDA_") || name.starts_with("ONLY_") || name == "FRESH";
        !(is_saved || (is_conda && value.is_empty()))
    });
    state.remove("SEEN");
    state
}

/// Fails if a deactivation script ran for an inactive environment, or did not run for an active
/// one.
fn check_scripts(state: &State, what: &str) {
    let seen = state.get("SEEN").map(String::as_str).unwrap_or_default();
    for name in ["E", "F", "X", "Y"] {
        let mut is_active = false;
        for word in seen.split(' ').filter(|word| word.starts_with(name)) {
            assert!(
                word.ends_with('+') || is_active,
                "{what}: {name} was deactivated twice: {seen}"
            );
            is_active = word.ends_with('+');
        }
        assert!(!is_active, "{what}: {name} was not deactivated: {seen}");
    }
}

/// Returns all orders of `envfs` and `conda` as deactivating commands.
fn endings(envfs: usize, conda: usize) -> Vec<Vec<&'static str>> {
    if envfs + conda == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    let rest = [
        ("e", envfs.checked_sub(1).map(|envfs| (envfs, conda))),
        ("c", conda.checked_sub(1).map(|conda| (envfs, conda))),
    ];
    for (step, rest) in rest {
        let Some((envfs, conda)) = rest else { continue };
        for mut ending in endings(envfs, conda) {
            ending.insert(0, step);
            all.push(ending);
        }
    }
    all
}

fn orders(length: usize) -> Vec<Vec<&'static str>> {
    let steps = ["E", "+F", "P", "X", "+Y"];
    let mut all: Vec<Vec<&str>> = vec![Vec::new()];
    for _ in 0..length {
        all = all
            .iter()
            .flat_map(|order| {
                let more = steps.iter().filter(|step| !order.contains(step));
                more.map(|step| [order.clone(), vec![*step]].concat())
            })
            .collect();
    }
    all
}

#[test]
fn conda_and_envfs_deactivate_in_any_order() {
    let Some((env, conda)) = stage() else { return };
    for (shell, options) in SHELLS {
        if !has(shell) {
            continue;
        }
        let mut sequences = vec![vec![]];
        let mut orders_of = orders(2);
        if shell == "bash" && std::env::var_os("ENVFS_TEST_CONDA").is_none() {
            orders_of.extend(orders(3));
        }
        for order in orders_of {
            let is_conda = |step: &&&str| step.ends_with(['X', 'Y']);
            let conda = order.iter().filter(is_conda).count();
            // Without --stack, an activation replaces what envfs had activated.
            let envfs = order.iter().filter(|step| !is_conda(step)).count();
            for ending in endings(envfs, conda) {
                // Deactivates what is left if conda has ended an environment of envfs.
                sequences.push([order.clone(), ending, vec!["c", "c", "e", "e"]].concat());
            }
        }
        let all = states(&env, &conda, (shell, options), &sequences);
        let before = without_remains_of_conda(all[0].clone());
        for (state, sequence) in all.into_iter().zip(&sequences) {
            let what = format!("{shell}: {}", sequence.join(" "));
            check_scripts(&state, &what);
            assert_eq!(without_remains_of_conda(state), before, "{what}");
        }
    }
}

/// With a real conda, its stand-in is compared with it, so that tests without one mean the same.
#[test]
fn the_stand_in_does_what_conda_does() {
    if std::env::var_os("ENVFS_TEST_CONDA").is_none() {
        skip_allowed("ENVFS_TEST_CONDA is not set");
        return;
    }
    let Some((env, conda)) = stage() else { return };
    let sequences: Vec<Vec<&str>> = [
        "",
        "X",
        "X c",
        "X X",
        "X Y",
        "X Y c",
        "X Y c c",
        "X +Y",
        "X +Y c",
        "X +Y c c",
        "+X",
        "+X c",
        "X +Y X",
        "X Y X c c c",
        "X +Y +X c c",
        "c",
    ]
    .iter()
    .map(|line| line.split_whitespace().collect())
    .collect();
    let stand_in = PathBuf::from(STAND_IN);
    for (shell, options) in SHELLS {
        if !has(shell) {
            continue;
        }
        let all =
            [&conda, &stand_in].map(|conda| states(&env, conda, (shell, options), &sequences));
        for ((real, other), sequence) in all[0].iter().zip(&all[1]).zip(&sequences) {
            assert_eq!(comparable(real), comparable(other), "{shell}: {sequence:?}");
        }
    }
}

/// Returns what both set: conda also puts its own directory into PATH, and knows more variables.
fn comparable(state: &State) -> State {
    let mut state = without_remains_of_conda(state.clone());
    state.retain(|name, _| name != "PATH" && !name.starts_with("_CE_"));
    state
}

#[test]
fn envfs_removes_variables_that_conda_leaves() {
    let Some((env, conda)) = stage() else { return };
    for (shell, options) in SHELLS {
        if !has(shell) {
            continue;
        }
        let sequences: Vec<Vec<&str>> =
            ["", "E X c e", "F X c e", "E +X c e", "E X Y c c e", "E c e"]
                .iter()
                .map(|line| line.split_whitespace().collect())
                .collect();
        let all = states(&env, &conda, (shell, options), &sequences);
        for (state, sequence) in all.iter().zip(&sequences).skip(1) {
            let mut state = state.clone();
            check_scripts(&state, &sequence.join(" "));
            state.remove("SEEN");
            // Conda empties the variables of X, and of its own first level.
            state.retain(|name, value| !(name.starts_with("ONLY_") && value.is_empty()));
            assert_eq!(&state, &all[0], "{shell}: {sequence:?}");
        }
    }
}

#[test]
fn environment_below_conda_can_be_deactivated() {
    let Some((env, conda)) = stage() else { return };
    let pairs = [
        ("E X e", "X"),
        ("X E e", "X"),
        ("X E Y e", "X Y"),
        ("X E +Y e", "X +Y"),
        ("X +E Y e", "X +Y"),
        ("X +E +Y e", "X +Y"),
        ("E +X e", "X"),
        ("F +X e", "X"),
        ("E X Y e", "X Y"),
        ("E +X Y e", "X Y"),
        ("E X +Y e", "X +Y"),
        ("E +F X e", "E +X"),
        ("E +F X c e", "E"),
        ("E +P X e e", "X"),
        ("E X F e", "X"),
        ("E X r e", "X"),
        ("P X e", "X"),
        ("X P e", "X"),
        ("E X c", "E"),
        ("X E c e", "X"),
        ("X F Y c e", "X"),
    ];
    for (shell, options) in SHELLS {
        if !has(shell) {
            continue;
        }
        let sequences: Vec<Vec<&str>> = pairs
            .iter()
            .flat_map(|(a, b)| [a, b])
            .map(|line| line.split(' ').collect())
            .collect();
        let all = states(&env, &conda, (shell, options), &sequences);
        for (two, (left, right)) in all.chunks(2).zip(pairs) {
            let [a, b] = two else { unreachable!() };
            let (a, b) = (
                without_remains_of_conda(a.clone()),
                without_remains_of_conda(b.clone()),
            );
            assert_eq!(a, b, "{shell}: {left} is not {right}");
        }
    }
}
