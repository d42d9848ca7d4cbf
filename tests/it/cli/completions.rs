//! `envfs completions`.

use std::fs;

use crate::support::{TestEnv, has, run};

#[test]
fn a_script_for_each_shell_is_valid_and_has_all_commands() {
    let Some(env) = TestEnv::new() else { return };
    let help = env.envfs(&["--help"]).ok().out;
    for (shell, check) in [
        ("bash", vec!["bash", "-n"]),
        ("zsh", vec!["zsh", "-n"]),
        ("fish", vec!["fish", "--no-execute"]),
        ("elvish", vec![]),
        ("powershell", vec![]),
    ] {
        let script = env.envfs(&["completions", shell]).ok();
        assert_eq!(script.err, "", "{shell}");
        for command in ["activate", "commit", "rollback", "verify"] {
            assert!(help.contains(command));
            assert!(script.out.contains(command), "{command} in {shell}");
        }
        let [program, options @ ..] = check.as_slice() else {
            continue;
        };
        if !has(program) {
            continue;
        }
        let file = env.work().join(format!("script.{shell}"));
        fs::write(&file, &script.out).unwrap();
        let mut checking = env.command(program);
        checking.args(options).arg(&file);
        run(checking).ok();
    }
    env.envfs(&["completions", "csh"])
        .fails(2, &["bash, elvish, fish, powershell, zsh"]);
}
