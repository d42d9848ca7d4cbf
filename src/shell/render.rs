//! Writes a [`Script`] down for a shell to evaluate.
//!
//! One text serves bash, zsh and other POSIX shells. Commands have a backslash before them so
//! that aliases do not apply. Everything that is not ours is in single quotes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::Shell;
use super::facts::is_variable_name;
use super::plan::Script;

/// Quotes any bytes so that a shell reads them as one word and as nothing else.
///
/// Single quotes keep everything but themselves; a single quote is written as `'\''`. The bytes
/// never hold a zero, which no variable and no path can have.
pub fn quote(value: &OsStr) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 2);
    out.push(b'\'');
    for &byte in value.as_bytes() {
        match byte {
            b'\'' => out.extend_from_slice(b"'\\''"),
            0 => {}
            byte => out.push(byte),
        }
    }
    out.push(b'\'');
    out
}

/// Returns the text that makes a shell do what the script says. Empty if there is nothing to do.
pub fn render(script: &Script, shell: Shell) -> Vec<u8> {
    let mut out = Vec::new();
    if script.is_empty() {
        return out;
    }
    source(&mut out, &script.before);
    for name in script.unset.iter().filter_map(|name| name.to_str()) {
        if is_variable_name(name) {
            line(&mut out, &[b"\\unset ", name.as_bytes()]);
        }
    }
    for (name, value) in &script.export {
        if let Some(name) = name.to_str().filter(|name| is_variable_name(name)) {
            line(
                &mut out,
                &[b"\\export ", name.as_bytes(), b"=", &quote(value)],
            );
        }
    }
    if let Some(prompt) = &script.prompt {
        line(&mut out, &[b"PS1=", &quote(prompt)]);
    }
    source(&mut out, &script.after);
    // What the shell remembers of where commands are is no longer right.
    match shell {
        Shell::Bash | Shell::Posix => line(&mut out, &[b"\\hash -r 2>/dev/null || :"]),
        Shell::Zsh => line(&mut out, &[b"\\rehash || :"]),
    }
    out
}

fn line(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
    out.push(b'\n');
}

/// Sources scripts of an environment, which need not bear with `set -u`, and which may be gone
/// with their mount.
fn source(out: &mut Vec<u8>, scripts: &[PathBuf]) {
    if scripts.is_empty() {
        return;
    }
    out.extend_from_slice(b"case $- in *u*) __envfs_u=1; \\set +u ;; *) __envfs_u= ;; esac\n");
    for script in scripts {
        let quoted = quote(script.as_os_str());
        line(
            out,
            &[b"if [ -r ", &quoted, b" ]; then \\. ", &quoted, b"; fi"],
        );
    }
    out.extend_from_slice(b"if [ -n \"$__envfs_u\" ]; then \\set -u; fi\n\\unset __envfs_u\n");
}
