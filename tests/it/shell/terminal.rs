//! Shells on a terminal.

use crate::support::{Run, TestEnv, run};

/// Types into a program on a terminal: each text once the output since the last one matches a
/// regular expression. Returns everything that was shown.
pub(crate) fn type_into(env: &TestEnv, program: &[&str], steps: &[(&str, &str)]) -> Run {
    // Without this directory fish converts all manual pages in the background, for minutes.
    let generated = ".local/share/fish/generated_completions";
    env.write(
        &env.root().join("home").join(generated).join("none.fish"),
        "",
    );
    // The user of the test may not be able to read the source directory.
    let script = env.root().join("home/terminal.py");
    env.write(&script, include_str!("terminal.py"));
    let mut command = env.command("python3");
    command
        .arg(script)
        .arg(serde_json::to_string(steps).unwrap())
        .args(program);
    run(command)
}
