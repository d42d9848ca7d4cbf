//! What activation does for other programs, and leaves alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::terminal::type_into;
use crate::support::{Run, TestEnv, find, has, run, skip};

fn shells() -> Vec<&'static str> {
    let all = ["bash", "zsh", "fish"];
    all.into_iter().filter(|shell| has(shell)).collect()
}

/// Returns the words that start an interactive shell without the user's configuration.
fn interactive(shell: &str) -> Vec<&str> {
    match shell {
        "bash" => vec!["bash", "--noprofile", "--norc", "-i"],
        "zsh" => vec!["zsh", "-f", "-i"],
        shell => vec![shell],
    }
}

/// Returns the line that loads the hook.
fn hook(shell: &str) -> String {
    match shell {
        "fish" => "envfs hook fish | source".to_owned(),
        shell => format!("eval \"$(envfs hook {shell})\""),
    }
}

fn prompt(shell: &str, text: &str) -> String {
    match shell {
        "fish" => format!("function fish_prompt; printf '%s' '{text}'; end"),
        _ => format!("PS1='{text}'"),
    }
}

/// Writes the prefixes `conda`, `venv` and `plain` and imports them.
fn prefixes(env: &TestEnv) {
    for (path, text) in [
        ("conda/conda-meta/history", ""),
        ("conda/bin/tool", "#!/bin/sh\necho tool\n"),
        ("venv/pyvenv.cfg", "home = /usr/bin\n"),
        ("venv/bin/tool", "#!/bin/sh\necho tool\n"),
        ("plain/bin/tool", "#!/bin/sh\necho tool\n"),
    ] {
        let file = env.work().join(path);
        env.write(&file, text);
        fs::set_permissions(file, PermissionsExt::from_mode(0o755)).unwrap();
    }
    for name in ["conda", "venv", "plain"] {
        env.envfs(&["import", "-q", name, name]).ok();
    }
}

#[test]
fn settings_of_venv_and_conda_keep_the_prompt() {
    let Some(env) = TestEnv::new() else { return };
    prefixes(&env);
    let shown = |shell: &str, name: &str, variable: &str| -> String {
        let script = match shell {
            "fish" => format!(
                "{}; envfs activate {name}; echo \"<$ENVFS_PROMPT_MODIFIER>\"",
                hook(shell)
            ),
            _ => format!(
                "{}; PS1='> '; envfs activate {name}; echo \"<${{PS1%> }}>\"",
                hook(shell)
            ),
        };
        let mut command = env.command(shell);
        command.args(["-c", &script]);
        if let Some((name, value)) = variable.split_once('=') {
            command.env(name, value);
        }
        run(command).ok().out.trim_end().to_owned()
    };
    for shell in shells() {
        for (name, variable, text) in [
            ("venv", "", "<(venv) >"),
            ("venv", "VIRTUAL_ENV_DISABLE_PROMPT=", "<(venv) >"),
            ("venv", "VIRTUAL_ENV_DISABLE_PROMPT=1", "<>"),
            ("plain", "VIRTUAL_ENV_DISABLE_PROMPT=1", "<(plain) >"),
            ("conda", "", "<(conda) >"),
            ("conda", "CONDA_CHANGEPS1=false", "<>"),
            ("plain", "CONDA_CHANGEPS1=false", "<(plain) >"),
        ] {
            assert_eq!(
                shown(shell, name, variable),
                text,
                "{shell} {name} {variable}"
            );
        }
        let condarc = env.root().join("home/.condarc");
        env.write(&condarc, "channels: [a]\nchangeps1: False\n");
        assert_eq!(shown(shell, "conda", ""), "<>", "{shell}");
        assert_eq!(shown(shell, "conda", "CONDA_CHANGEPS1=yes"), "<(conda) >");
        assert_eq!(shown(shell, "venv", ""), "<(venv) >");
        fs::remove_file(condarc).unwrap();
    }
}

#[test]
fn a_nested_shell_shows_the_prompt_and_says_if_path_was_reset() {
    for env in TestEnv::of_all_users() {
        prefixes(&env);
        for shell in shells() {
            let load = hook(shell);
            let program = interactive(shell);
            let inner = program.join(" ");
            let set_path = match shell {
                "fish" => "set -gx PATH $OLDPATH".to_owned(),
                _ => "PATH=$OLDPATH".to_owned(),
            };
            let keep_path = match shell {
                "fish" => "set -gx OLDPATH $PATH".to_owned(),
                _ => "export OLDPATH=$PATH".to_owned(),
            };
            let first = format!(
                "{}; {load}; {keep_path}; envfs activate plain\n",
                prompt(shell, "A> ")
            );
            let nested = format!("{}; {load}\n", prompt(shell, "B> "));
            let reset = format!("{set_path}; {}; {load}\n", prompt(shell, "C> "));
            let inner = format!("{inner}\n");
            let done = type_into(
                &env,
                &program,
                &[
                    (".", &first),
                    (r"\(plain\) A> ", &inner),
                    (".", &nested),
                    (r"\(plain\) B> ", "exit\n"),
                    (r"\(plain\) A> ", &inner),
                    (".", &reset),
                    (
                        "only half active in this shell.*envfs reactivate(.|[\r\n])*C> ",
                        "envfs reactivate\n",
                    ),
                    ("C> ", "tool; exit\n"),
                    ("tool[\r\n](.|[\r\n])*A> ", "exit\n"),
                ],
            )
            .ok();
            let told = done.out.matches("only half active").count();
            assert_eq!(told, 1, "{shell}: {done}");
        }
    }
}

fn in_bash(env: &TestEnv, script: &str) -> Run {
    let mut command = env.command("bash");
    command.args(["--noprofile", "--norc", "-c"]);
    command.arg(format!("{}\n{script}", hook("bash")));
    run(command)
}

#[test]
fn package_managers_are_told_where_they_are() {
    for env in TestEnv::of_all_users() {
        prefixes(&env);
        env.write(&env.work().join("node/lib/node_modules/x"), "");
        env.envfs(&["import", "-q", "node", "node"]).ok();
        let done = in_bash(
            &env,
            "envfs activate plain; echo $UV_LINK_MODE ${NPM_CONFIG_PREFIX-none}
             envfs activate node; echo $UV_LINK_MODE $NPM_CONFIG_PREFIX; envfs deactivate
             echo ${UV_LINK_MODE-none} ${NPM_CONFIG_PREFIX-none}
             export UV_LINK_MODE=symlink NPM_CONFIG_PREFIX=/mine npm_config_prefix=/other
             envfs activate node; echo $UV_LINK_MODE $npm_config_prefix; envfs deactivate
             echo $UV_LINK_MODE $NPM_CONFIG_PREFIX $npm_config_prefix",
        )
        .ok();
        let prefix = env.prefix("node");
        let prefix = prefix.display();
        let expected = format!(
            "copy none\ncopy {prefix}\nnone none\nsymlink {prefix}\nsymlink /mine /other\n"
        );
        assert_eq!(done.out, expected);
        if find("npm").is_some() {
            // The user's own setting would take its place.
            env.write(&env.root().join("home/.npmrc"), "prefix=/nowhere\n");
            let done = in_bash(&env, "envfs activate node; npm prefix -g").ok();
            assert_eq!(done.out, format!("{prefix}\n"));
        }
    }
}

#[test]
fn direnv_activates_an_environment_in_a_directory() {
    if !has("direnv") {
        return;
    }
    for env in TestEnv::of_all_users() {
        prefixes(&env);
        let dir = env.work().join("project");
        env.write(&dir.join(".envrc"), "use envfs conda\n");
        let done = env
            .sh(
                "mkdir -p ~/.config/direnv/lib; envfs hook direnv >~/.config/direnv/lib/envfs.sh
                 cd project; direnv allow 2>/dev/null
                 direnv exec . sh -c 'tool; echo $ENVFS_ENV $CONDA_DEFAULT_ENV' 2>/dev/null
                 echo 'use envfs missing' >.envrc; direnv allow 2>/dev/null
                 direnv exec . true || echo $?",
            )
            .ok();
        assert!(done.out.starts_with("tool\nconda conda\n"), "{done}");
        assert!(done.err.contains("missing"), "{done}");
    }
}

#[test]
fn completed_words_are_quoted_on_a_terminal() {
    for env in TestEnv::of_all_users() {
        prefixes(&env);
        env.envfs(&["tag", "plain", "golden"]).ok();
        let prefix = env.mount("plain");
        let change = "mkdir etc; echo x >'etc/new $file'; echo y >\"etc/it's\"";
        env.sh(&format!("cd '{}' && {change}", prefix.display()))
            .ok();
        for shell in shells() {
            let start = match shell {
                "zsh" => "autoload -Uz compinit; compinit -u -D; ",
                _ => "",
            };
            let ready = format!("{start}{}; {}\n", hook(shell), prompt(shell, "=> "));
            // Enter follows once the completed word is shown: what is typed during a completion may
            // be taken for its input.
            let then = |word: &str| format!("envfs diff --name-only plain {word}\t");
            let (plain, double, single) = (then("etc/n"), then("\"etc/n"), then("'etc/n"));
            let quote = then("etc/i");
            let shown = "[\r\n]etc/new .file\r(.|[\r\n])*=> ";
            let steps = [
                ("[$%#>] ", ready.as_str()),
                ("[\r\n]=> ", &plain),
                ("file", "\n"),
                (shown, &double),
                ("file", "\n"),
                (shown, &single),
                ("file", "\n"),
                (shown, &quote),
                ("'s", "\n"),
                // After @ and : bash completes only a part of the word.
                ("[\r\n]etc/it's\r(.|[\r\n])*=> ", "envfs cat plain@go\t"),
                ("lden", "bin/to\t"),
                ("ol", "\n"),
                ("echo tool(.|[\r\n])*=> ", "envfs run plain to\t"),
                ("ol", "; exit\n"),
                ("[\r\n]tool\r", ""),
            ];
            type_into(&env, &interactive(shell), &steps).ok();
        }
        env.envfs(&["unmount", "plain"]).ok();
    }
}

#[test]
fn conda_lists_the_environments_that_are_mounted() {
    for env in TestEnv::of_all_users() {
        prefixes(&env);
        let list = env.root().join("home/.conda/environments.txt");
        env.envfs(&["mount", "conda"]).ok();
        // Without conda, no list is made.
        assert!(!list.exists());
        env.envfs(&["unmount", "conda"]).ok();
        env.write(&list, "/opt/other\n");
        for _ in 0..2 {
            for name in ["conda", "venv"] {
                env.envfs(&["run", name, "true"]).ok();
            }
        }
        let prefix = env.prefix("conda");
        let both = format!("/opt/other\n{}\n", prefix.display());
        assert_eq!(fs::read_to_string(&list).unwrap(), both);
        // Only when it is mounted: it is up to the user to remove lines.
        env.write(&list, "/opt/other\n");
        env.envfs(&["run", "conda", "true"]).ok();
        assert_eq!(fs::read_to_string(&list).unwrap(), "/opt/other\n");
        env.envfs(&["unmount", "conda"]).ok();
        env.envfs(&["run", "conda", "true"]).ok();
        assert_eq!(fs::read_to_string(&list).unwrap(), both);
        env.sh("envfs create -q made -- sh -c 'mkdir $ENVFS_PREFIX/conda-meta; >$ENVFS_PREFIX/conda-meta/history'")
            .ok();
        let made = format!("{both}{}\n", env.prefix("made").display());
        assert_eq!(fs::read_to_string(&list).unwrap(), made);
        env.envfs(&["remove", "-y", "conda"]).ok();
        env.envfs(&["remove", "-y", "made"]).ok();
        assert_eq!(fs::read_to_string(&list).unwrap(), "/opt/other\n");
        // Conda's own setting.
        env.envfs(&["import", "-q", "conda", "conda"]).ok();
        env.envfs_with("CONDA_REGISTER_ENVS", "false", &["mount", "conda"])
            .ok();
        assert_eq!(fs::read_to_string(&list).unwrap(), "/opt/other\n");
    }
}

#[test]
fn shells_complete_what_a_command_takes() {
    let Some(env) = TestEnv::new() else { return };
    prefixes(&env);
    env.envfs(&["tag", "plain", "golden"]).ok();
    let prefix = env.mount("plain");
    env.write(&prefix.join("etc/new file"), "");
    for name in ["zfile", "goldfile", "toolfile", "etcfile"] {
        env.write(&env.work().join(name), "");
    }
    for (line, expected) in [
        ("envfs activate pl", &["plain"][..]),
        ("envfs rollback plain g", &["golden"]),
        ("envfs discard plain e", &["etc/"]),
        ("envfs discard plain etc/n", &["etc/new file"]),
        ("envfs run plain t", &["tool"]),
        // Not mounted: read from the image.
        ("envfs run venv t", &["tool"]),
        ("envfs hook z", &["zsh"]),
        ("envfs deactivate z", &[]),
        ("envfs activate z", &[]),
        ("envfs import zf", &["zfile"]),
    ] {
        for shell in shells() {
            let words = line.split(' ').count();
            let script = match shell {
                "bash" => format!(
                    "eval \"$(envfs hook bash)\"; COMP_LINE='{line}'; COMP_POINT={}
                     compopt() {{ echo \"$2 $4\" >&2; }}; __envfs_complete
                     [ ${{#COMPREPLY[@]}} = 0 ] || printf '%s\\n' \"${{COMPREPLY[@]}}\"",
                    line.len()
                ),
                "zsh" => format!(
                    "eval \"$(envfs hook zsh)\"; words=({line}); CURRENT={words}
                     _files() {{ print -l zfile; }}
                     compadd() {{ while [[ $1 != -- ]]; do shift; done; shift; print -rl -- \"$@\"; }}
                     _envfs"
                ),
                _ => format!("envfs hook fish | source; complete -C '{line}'"),
            };
            let mut command = env.command(shell);
            match shell {
                "bash" => command.args(["--norc", "-ic", &script]),
                "zsh" => command.args(["-fic", &script]),
                _ => command.args(["--no-config", "-ic", &script]),
            };
            let done = run(command);
            let mut found: Vec<&str> = done.out.lines().collect();
            if shell == "bash" && line.contains("import") {
                // bash completes files itself where the function gives it nothing.
                assert!(done.err.contains("default"), "{done}");
                found.push("zfile");
            }
            // bash inserts what it gets, so it is quoted.
            let quoted = expected.iter().map(|one| match shell {
                "bash" => one.replace(' ', "\\ "),
                _ => (*one).to_owned(),
            });
            assert_eq!(found, quoted.collect::<Vec<_>>(), "{shell}: {line}: {done}");
        }
    }
    if find("fish").is_none() {
        skip("no fish");
    }
}
