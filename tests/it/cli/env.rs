//! `envfs env`: the variables of an activation, for other programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::{TestEnv, find, run};

/// Writes a conda environment with a script that sets a variable.
fn conda(env: &TestEnv) {
    env.write(&env.work().join("c/conda-meta/history"), "");
    let tool = env.work().join("c/bin/tool");
    env.write(&tool, "#!/bin/sh\necho tool\n");
    fs::set_permissions(tool, PermissionsExt::from_mode(0o755)).unwrap();
    let script = "export FROM_SCRIPT=\"it's set\"\nunset GONE\n";
    env.write(&env.work().join("c/etc/conda/activate.d/x.sh"), script);
    env.envfs(&["import", "-q", "c", "c"]).ok();
}

#[test]
fn the_variables_are_those_of_an_activated_shell() {
    for env in TestEnv::of_all_users() {
        conda(&env);
        let found = env.envfs_with("GONE", "1", &["env", "--json", "c"]).ok();
        let json = found.json();
        let prefix = env.prefix("c").display().to_string();
        assert_eq!(json["set"]["CONDA_PREFIX"], prefix.as_str(), "{found}");
        assert_eq!(json["set"]["FROM_SCRIPT"], "it's set", "{found}");
        assert_eq!(json["unset"], serde_json::json!(["GONE"]), "{found}");
        let path = json["set"]["PATH"].as_str().unwrap();
        assert!(path.starts_with(&format!("{prefix}/bin:")), "{found}");
        let plain = env.envfs(&["env", "--no-scripts", "c"]).ok();
        assert!(
            plain.out.contains(&format!("\nCONDA_PREFIX={prefix}\n")),
            "{plain}"
        );
        assert!(!plain.out.contains("FROM_SCRIPT"), "{plain}");

        // What activation exports, and nothing else.
        let line = "eval \"$(envfs activate --shell posix c)\"; env -0 | sort -z | tr '\\0' '\\n'";
        let activated = env.sh(line).ok();
        let set = json["set"].as_object().unwrap();
        for (name, value) in set {
            let wanted = format!("{name}={}\n", value.as_str().unwrap());
            let is_own = name.contains("STATE") || name.contains("PROMPT_MODIFIER");
            assert!(
                is_own || activated.out.contains(&wanted),
                "{wanted}: {activated}"
            );
        }
        // The same from within the active environment.
        let line = "eval \"$(envfs activate --shell posix c)\"; envfs env --json";
        let inside = env.sh(line).ok().json();
        for name in ["PATH", "CONDA_PREFIX", "ENVFS_ENV"] {
            assert_eq!(inside["set"][name], json["set"][name], "{name}: {inside}");
        }
        let exact = env.envfs(&["env", "-z", "c"]).ok();
        assert!(
            exact
                .out
                .split('\0')
                .any(|one| one == "FROM_SCRIPT=it's set"),
            "{exact}"
        );
        env.envfs(&["env", "nothere"]).fails(3, &["nothere"]);
        env.envfs(&["env"]).fails(2, &["no environment"]);
        env.envfs(&["env", "c@1"]).fails(4, &[]);
        env.envfs(&["unmount", "c"]).ok();
        let old = env.envfs(&["env", "c@1", "--json"]).ok().json();
        assert_eq!(old["set"]["FROM_SCRIPT"], "it's set", "{old}");
    }
}

#[test]
fn every_shell_evaluates_the_variables() {
    let Some(env) = TestEnv::new() else { return };
    conda(&env);
    for (shell, name) in [
        ("bash", "bash"),
        ("zsh", "zsh"),
        ("sh", "posix"),
        ("fish", "fish"),
    ] {
        if find(shell).is_none() {
            continue;
        }
        let script = match shell {
            "fish" => "envfs env --shell fish c | source; tool; echo $FROM_SCRIPT".to_owned(),
            _ => format!(
                "set -eu; eval \"$(envfs env --shell {name} c)\"; tool; echo \"$FROM_SCRIPT\""
            ),
        };
        let mut command = env.command(shell);
        command.args(["-c", &script]);
        assert_eq!(run(command).ok().out, "tool\nit's set\n", "{shell}");
    }
}
