//! Shells on a terminal.

use crate::support::{Run, TestEnv, run};

/// Types into a program on a terminal: each text once the output since the last one matches a
/// regular expression. Returns everything that was shown.
pub(crate) fn type_into(env: &TestEnv, program: &[&str], steps: &[(&str, &str)]) -> Run {
    let mut command = env.command("python3");
    command
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/it/shell/terminal.py"
        ))
        .arg(serde_json::to_string(steps).unwrap())
        .args(program);
    run(command)
}
